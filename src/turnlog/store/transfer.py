"""What a store offers for being copied whole, to another kind of store or to its own: the specification.

A copy goes account by account along the log, which is gap-free and never changes, so that the target's last position
says how far it came. What is not in the log is small or bounded and has a way of its own: keys, authentications,
idempotency keys. Texts go from store to store as they are, also those that hold JSON.

Rows are the values that both kinds of store have in common: conversations by their id instead of the store's own
number, roles by their place in ``model.ROLES``, instants as everywhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from turnlog.model import Conversation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Hashable, Iterable, Sequence

    from turnlog.store.protocol import KeyRecord

PAGE_ROWS = 2000
PAGE_CHARS = 4 * 1024 * 1024
"""What is read at a time, and written in one transaction: it is what bounds memory, whatever the store's size. The row
that takes a page over its characters is its last."""


class MessageEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A message, as an entry of the log."""

    position: int
    conversation: str
    id: str
    role: int
    sender: str
    client_at: int
    created_at: int
    text: str


class ChangeEntry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A conversation's creation or change: its state afterwards as JSON; ``client_at`` is the conversation's."""

    position: int
    conversation: str
    created: bool
    changed_at: int
    state: str
    client_at: int


Entry = MessageEntry | ChangeEntry


class ConversationRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A conversation as it stands; ``position`` is that of its creation."""

    position: int
    id: str
    external_id: str
    customer: str
    customer_name: str | None
    agent: str | None
    agent_name: str | None
    metadata: str | None
    client_at: int
    created_at: int


class AuthenticationRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The fact that a customer authenticated; ``parts`` separated by one space."""

    account: str
    conversation: str
    customer: str
    parts: str
    stream_id: str | None
    created_at: int


class IdempotencyRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An idempotency key, the digest of its request and the ids of its messages, separated by one space."""

    key: str
    fingerprint: bytes
    ids: str
    created_at: int


class WebhookRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A webhook with its cursor; ``settings`` as JSON. Who works for it is not copied."""

    account: str
    id: str
    settings: str
    position: int
    retry_from_at: int
    revision: int


class BlockedRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A conversation that a webhook could not deliver."""

    conversation: str
    position: int
    attempts: int
    first_failed_at: int
    next_at: int
    error: str


class DeadRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An event that a webhook has given up."""

    position: int
    type: str
    conversation: str
    attempts: int
    first_failed_at: int
    dead_at: int
    error: str
    replayed: bool


class Source(Protocol):
    """A store that is read, beside whoever records in it.

    Every call sees what is durable when it is made. Raises StoreUnavailableError, StoreUncertainError or
    StoreFailedError where the store does not answer. One call at a time.
    """

    @property
    def shown(self) -> str:
        """Where it is, without a password."""

    @property
    def identity(self) -> Hashable:
        """Equal for two ways to one store."""

    async def accounts(self) -> list[str]:
        """Every account, in the order in which they came into being."""

    async def keys(self) -> list[KeyRecord]:
        """Every key with all its secrets, past ones too, in the order of creation."""

    async def last_position(self, account: str) -> int:
        """The position of the newest entry of the account's log; 0 where it is empty or there is no such account."""

    async def entries(self, account: str, *, after: int, up_to: int) -> list[Entry]:
        """The first entries behind ``after`` and up to ``up_to``, by position: one page, empty where there is none."""

    async def conversations(self, account: str, *, after: int) -> tuple[int, list[ConversationRow]]:
        """The first conversations created behind the position ``after``, in that order: one page.

        And the last position of the log that they stand at: all entries up to it are in them, and none behind it.
        """

    async def idempotency(self, account: str, *, after: str, up_to: str | None = None) -> list[IdempotencyRow]:
        """The first idempotency keys behind ``after`` and up to ``up_to``, in the order of their UTF-8: one page.

        The empty text is ahead of them all: a key has at least one character.
        """

    def authentications(self) -> AsyncIterator[list[AuthenticationRow]]:
        """All of them, in pages; those of one account in the order in which they were recorded."""

    async def log_name(self) -> str:
        """See protocol.LogReader."""

    async def webhooks(self) -> list[WebhookRow]:
        """All of them, account by account, in the order of their creation there."""

    async def blocked(self, webhook: WebhookRow, *, after: str) -> list[BlockedRow]:
        """The webhook's first blocked conversations behind ``after``, in the order of their UTF-8: one page."""

    async def dead(self, webhook: WebhookRow, *, after: int) -> list[DeadRow]:
        """The webhook's first dead letters behind the position ``after``, in that order: one page."""

    async def close(self) -> None:
        """Let go of files and connections."""


class Target(Source, Protocol):
    """A store that a copy is written into, and by nobody else meanwhile.

    What a call returns from is durable, and one call is one transaction, so that it may end between any two.
    """

    async def unfinished(self) -> str | None:
        """Where a copy came from that was begun and not finished."""

    async def begin(self, source: str, at: int) -> None:
        """Mark the store as half copied from ``source``: until ``finish`` it is not opened for recording."""

    async def put_keys(self, accounts: Sequence[str], records: Sequence[KeyRecord]) -> None:
        """Make accounts and keys these, in this order; running servers learn of it. Accounts that are there stay."""

    async def add_entries(self, account: str, entries: Sequence[Entry]) -> None:
        """Add entries, and to the conversations what they change. Raises SettingError where they do not follow."""

    async def add_authentications(self, rows: Sequence[AuthenticationRow]) -> None:
        """Add them behind those that their accounts have."""

    async def put_idempotency(
        self, account: str, *, after: str, up_to: str | None, rows: Sequence[IdempotencyRow]
    ) -> None:
        """Make the account's keys behind ``after`` and up to ``up_to`` (``None``: to the end) exactly these."""

    async def put_log_name(self, name: str) -> None:
        """Make it the log's name, so that the source's cursors are good here."""

    async def put_webhooks(self, rows: Sequence[WebhookRow]) -> None:
        """Make the webhooks exactly these, with nothing blocked and nothing dead; nobody works for them."""

    async def add_blocked(self, webhook: WebhookRow, rows: Sequence[BlockedRow]) -> None:
        """Add them to a webhook that is there."""

    async def add_dead(self, webhook: WebhookRow, rows: Sequence[DeadRow]) -> None:
        """Add them to a webhook that is there."""

    async def finish(self) -> None:
        """Take the mark away, once all that was written before is on the disk."""


class Standing(NamedTuple):
    """What some changes make of a conversation; ``creation`` where it came into being with them."""

    conversation: Conversation
    creation: ChangeEntry | None


_state = msgspec.json.Decoder(Conversation).decode


def after_changes(entries: Iterable[Entry]) -> dict[str, Standing]:
    """The conversations that the entries create or change, by id, as they stand after the last."""
    last: dict[str, ChangeEntry] = {}
    creations: dict[str, ChangeEntry] = {}
    for entry in entries:
        if isinstance(entry, ChangeEntry):
            last[entry.conversation] = entry
            if entry.created:
                creations[entry.conversation] = entry
    return {one: Standing(_state(entry.state), creations.get(one)) for one, entry in last.items()}


def conversations_of(entries: Collection[Entry]) -> set[str]:
    """The ids of those conversations of the entries that existed before them."""
    created = {entry.conversation for entry in entries if isinstance(entry, ChangeEntry) and entry.created}
    return {entry.conversation for entry in entries} - created
