"""The reader of event streams, beside a slow one that has the whole stream; whatever pieces it comes in."""

from __future__ import annotations

import random

from turnlog.following.server import Parser


def expected(content: bytes, last_id: str) -> tuple[list[tuple[str, bytes]], str, int | None]:
    """Events with their ids, the last id and the pause asked for, as the standard has it, of lines that end in LF."""
    events: list[tuple[str, bytes]] = []
    given, pause = last_id, None
    data: list[bytes] = []
    for raw in content.split(b"\n")[:-1]:
        line = raw[:-1] if raw.endswith(b"\r") else raw
        name, colon, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if not line:
            last_id = given
            if data:
                events.append((last_id, b"\n".join(data)))
            data = []
        elif name == b"data":
            data.append(value)
        elif name == b"id":
            given = value.decode("latin-1") if _can_be_sent(value) else given
        elif name == b"retry" and colon and value and all(byte in b"0123456789" for byte in value):
            pause = int(value[:9])
    return events, last_id, pause


def _can_be_sent(value: bytes) -> bool:
    """Whether it may stand in the header that asks for what comes behind it."""
    return all(byte >= 0x20 and byte != 0x7F for byte in value)


def _parsed(pieces: list[bytes]) -> tuple[list[tuple[str, bytes]], str, int | None]:
    parser = Parser("before")
    events = [event for piece in pieces for event in parser.feed(piece)]
    return [(event.id, event.line) for event in events], parser.last_id, parser.retry_ms


def check(content: bytes) -> None:
    """E01. The same events from every way of cutting the stream into pieces, and none that did not come whole."""
    wanted = expected(content, "before")
    chance = random.Random(content)  # noqa: S311 - a repeatable run, not a secret
    cuts = sorted(chance.randrange(len(content) + 1) for _ in range(4))
    parts = [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    for pieces in ([content], parts, [content[n : n + 1] for n in range(min(len(content), 500))] + [content[500:]]):
        assert _parsed(pieces) == wanted


WORDS = (b"id: 7\n", b"data: {}\n", b"\n", b"\r\n", b"\r", b"\n\n", b"retry: 100\n", b"retry: 99999999999\n",
         b": c\n", b"event: message.created\n", b"data\n", b"id\n", b"data:\n", b"id: a\0b\n", b"\xef\xbb\xbf",
         b"retry: \xb2\n")  # fmt: skip
