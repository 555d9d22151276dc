"""Entries of the log as the wire has them: in pages, and as Server-Sent Events (WHATWG HTML, "Server-sent events")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnlog.http.representations import ConversationView, MessageView, conversation_view, encode, message_view
from turnlog.instants import render
from turnlog.model import EventType, Message

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnlog.ids import LogCursors
    from turnlog.model import Entry

EVENT_STREAM = b"text/event-stream"
SLICE_BYTES = 64 * 1024
RETRY_MS = 2000
"""How long a client waits before it connects again."""


class EventView(msgspec.Struct, rename="camel", omit_defaults=True):
    """An event; ``id`` is the cursor behind it. Of ``message`` and ``conversation`` it has one."""

    id: str
    type: EventType
    time: str
    conversation_id: str
    external_id: str
    message: MessageView | None = None
    conversation: ConversationView | None = None


def event_view(entry: Entry, event_id: str) -> EventView:
    """An entry of the log, with the object as the read operations give it."""
    view = EventView(event_id, entry.type, render(entry.at), entry.conversation_id, entry.external_id)
    if isinstance(entry.subject, Message):
        view.message = message_view(entry.subject)
    else:
        view.conversation = conversation_view(entry.subject)
    return view


def event_json(entry: Entry, event_id: str) -> bytes:
    """An event as one line of JSON: the same in pages, in streams and in webhooks."""
    return encode(event_view(entry, event_id))


def page_json(events: Sequence[bytes], cursor: str) -> bytes:
    """A page of the feed, with the cursor behind it."""
    return b'{"items":[%b],"nextCursor":"%b"}' % (b",".join(events), cursor.encode())


def stream_start(cursor: str) -> bytes:
    """The first words of a stream: how long to wait before the next, and the place where it begins."""
    return b"retry: %d\nid: %b\n\n" % (RETRY_MS, cursor.encode())


def stream_end() -> bytes:
    """The last words of a stream whose server stops: come again soon, there is another one or will be."""
    return b"retry: %d\n\n" % (RETRY_MS // 2)


def stream_part(entries: Sequence[Entry], cursors: LogCursors) -> bytes:
    """Events of a stream."""
    parts = []
    for entry in entries:
        event_id = cursors.cursor(entry.position)
        parts.append(
            b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id.encode(), entry.type.encode(), event_json(entry, event_id))
        )
    return b"".join(parts)


def slices(events: bytes) -> Iterator[bytes]:
    """Events in pieces: the next one is not sent before a reader has taken the one before."""
    for start in range(0, len(events), SLICE_BYTES):
        yield events[start : start + SLICE_BYTES]


def stream_comment(cursor: str) -> bytes:
    """A sign of life. It carries the place that was reached, which a filter may have left far behind."""
    return b": alive\nid: %b\n\n" % cursor.encode()
