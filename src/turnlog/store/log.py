"""What rows of a log come to: the same in every store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from turnlog.model import ROLES, Conversation, Entry, Message
from turnlog.store.protocol import LogPart

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnlog.model import EventType

SCAN_ENTRIES = 4096
"""How much of a log is looked through at a time for one conversation that has too many messages to be listed."""
LISTED_MESSAGES = 10_000
"""Of a conversation that has no more, all places are listed instead."""

Row = tuple[int, str, str, str | None, int, str | None, int | None, int, str]
"""Place, the conversation's id and external id, message id, role, sender, ``client_at``, when, text.

Of a conversation's change: no message id, in the place of the role whether it was created, its state as JSON.
"""

_state = msgspec.json.Decoder(Conversation).decode


class Kinds(NamedTuple):
    """Which of the log's two tables have entries of the types that are wanted."""

    messages: bool
    changes: bool


def kinds(types: frozenset[EventType] | None) -> Kinds:
    """Where to look for ``types``."""
    if types is None:
        return Kinds(messages=True, changes=True)
    return Kinds("message.created" in types, not types.isdisjoint(("conversation.created", "conversation.updated")))


def part_of(
    rows: Iterable[tuple[Any, ...]],
    types: frozenset[EventType] | None,
    *,
    before: int,
    limit: int,
    max_chars: int,
    end: int,
) -> LogPart:
    """What ``rows`` come to, which are Rows in the log's order, at most ``limit``, and else all that there are.

    Places are counted from ``before``; ``end`` is the position up to which the log was looked through for them.
    """
    entries: list[Entry] = []
    count, left, position = 0, max_chars, end
    for place, conversation_id, external_id, message_id, role, sender, client_at, at, text in rows:
        position = place - before
        kind: EventType = "message.created"
        subject: Message | Conversation
        if message_id is not None:
            subject = Message(message_id, position, text, ROLES[role], sender, client_at, at)
            entries.append(Entry(position, kind, at, conversation_id, external_id, subject))
        else:
            kind = "conversation.created" if role else "conversation.updated"
            if types is None or kind in types:
                subject = _state(text)
                entries.append(Entry(position, kind, at, conversation_id, external_id, subject))
        count += 1
        left -= len(text)
        if left < 0:
            return LogPart(entries, position)
    return LogPart(entries, position if count >= limit else end)
