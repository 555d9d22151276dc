"""Sets rows of two stores against each other: how many there are, a checksum of each side, the first that differ.

A difference names the row and its fields and never what is in them.
"""

from __future__ import annotations

import asyncio
import hashlib
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeVar

import msgspec

from turnlog.store.protocol import KeyRecord
from turnlog.store.transfer import (
    AuthenticationRow,
    BlockedRow,
    ChangeEntry,
    ConversationRow,
    DeadRow,
    IdempotencyRow,
    MessageEntry,
    WebhookRow,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

T = TypeVar("T")
OfWebhook = WebhookRow | BlockedRow | DeadRow
Row = MessageEntry | ChangeEntry | ConversationRow | AuthenticationRow | IdempotencyRow | KeyRecord | OfWebhook

_lines = msgspec.json.Encoder().encode_lines


class Side(msgspec.Struct, frozen=True):
    """What one store has of a kind of row."""

    count: int
    checksum: str


class Check(msgspec.Struct, frozen=True):
    """How two stores compare in one kind of row; ``difference`` is the first, ``None`` where there is none."""

    kind: str
    source: Side
    target: Side
    difference: str | None


class Tally:
    """Rows of one side, counted and digested in their order, whatever the parts in which they come."""

    def __init__(self) -> None:
        self.count = 0
        self._digest = hashlib.blake2b(digest_size=16)

    def add(self, rows: Sequence[Row]) -> None:
        """The next rows."""
        self.add_lines(_lines(rows), len(rows))

    def add_lines(self, lines: bytes, count: int) -> None:
        """What stands for the next ``count`` rows."""
        self._digest.update(lines)
        self.count += count

    @property
    def side(self) -> Side:
        """Count and checksum so far."""
        return Side(self.count, self._digest.hexdigest())


class Comparison:
    """Takes the rows of one kind, account by account, in the same order from both sides."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._account: str | None = None
        self._ours = Tally()
        self._theirs = Tally()
        self._difference: str | None = None

    def enter(self, account: str) -> None:
        """What comes now is this account's; the checksums say so too."""
        self._account = account
        self._take_lines(_lines([account]), 0)

    def take(self, ours: Sequence[Row], theirs: Sequence[Row]) -> None:
        """The next rows of the source and of the target."""
        if ours == theirs:
            self._take_lines(_lines(ours), len(ours))
            return
        self._ours.add(ours)
        self._theirs.add(theirs)
        if self._difference is None:
            where = "" if self._account is None else f"account {self._account!r}: "
            self._difference = where + _first_difference(ours, theirs)

    def take_equal(self, both: Side) -> None:
        """Rows that were found equal by their digest."""
        self._take_lines(_lines([both]), both.count)

    def _take_lines(self, lines: bytes, count: int) -> None:
        self._ours.add_lines(lines, count)
        self._theirs.add_lines(lines, count)

    @property
    def check(self) -> Check:
        """What came of it."""
        return Check(self._kind, self._ours.side, self._theirs.side, self._difference)


def _first_difference(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    for mine, other in zip_longest(ours, theirs):
        if mine == other:
            continue
        if other is None:
            return f"{_name(mine)} is missing in the target"
        if mine is None:
            return f"{_name(other)} is in the target only"
        if _place(mine) == _place(other):
            fields = [field for field in mine.__struct_fields__ if getattr(mine, field) != getattr(other, field)]
            return f"{_name(mine)} differs in {', '.join(fields)}"
        if _place(mine) > _place(other):
            return f"{_name(other)} is in the target only"
        return f"{_name(mine)} is missing in the target"
    raise AssertionError


def _place(row: Row) -> tuple[int, str]:
    """Where the row stands among its kind; keys and authentications have no place but their turn."""
    if isinstance(row, IdempotencyRow):
        return 0, row.key
    if isinstance(row, BlockedRow):
        return 0, row.conversation
    return (0, "") if isinstance(row, AuthenticationRow | KeyRecord | WebhookRow) else (row.position, "")


def _name(row: Row) -> str:
    if isinstance(row, MessageEntry):
        return f"the message {row.id} at position {row.position}"
    if isinstance(row, ChangeEntry):
        return f"the change of the conversation {row.conversation} at position {row.position}"
    if isinstance(row, AuthenticationRow):
        return f"an authentication in the conversation {row.conversation}"
    if isinstance(row, IdempotencyRow):
        return f"the idempotency key {row.key!r}"
    if isinstance(row, OfWebhook):
        return _name_of_webhook(row)
    return f"the key {row.key.id}" if isinstance(row, KeyRecord) else f"the conversation {row.id}"


def _name_of_webhook(row: OfWebhook) -> str:
    if isinstance(row, WebhookRow):
        return f"the webhook {row.id}"
    if isinstance(row, BlockedRow):
        return f"the blocked conversation {row.conversation} of a webhook"
    return f"the dead letter at position {row.position} of a webhook"


async def aligned(
    ours: AsyncIterator[list[T]], theirs: AsyncIterator[list[T]]
) -> AsyncIterator[tuple[list[T], list[T]]]:
    """The rows of both in parts of equal length, until one side ends; then what the other has more."""
    left: list[T] = []
    right: list[T] = []
    while True:
        left, right = await asyncio.gather(_more(left, ours), _more(right, theirs))
        if not left and not right:
            return
        size = min(len(left), len(right)) or max(len(left), len(right))
        yield left[:size], right[:size]
        left, right = left[size:], right[size:]


async def _more(rest: list[T], pages: AsyncIterator[list[T]]) -> list[T]:
    return rest or await anext(pages, [])
