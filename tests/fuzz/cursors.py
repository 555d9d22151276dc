"""Cursors: a text that was not given out is refused, or is another spelling of one that was; no other's is taken."""

from __future__ import annotations

from turnlog import ids
from turnlog.ids import LogCursors, NotACursorError, Place

_CONVERSATIONS = ("01BX5ZZKBKACTAV9WEVGEMMVS1", "01BX5ZZKBKACTAV9WEVGEMMVS2")
_LOGS = (LogCursors("log", "a"), LogCursors("log", "b"), LogCursors("other", "a"))


def _place(text: str, conversation: str) -> Place | None:
    try:
        return ids.place(text, conversation)
    except NotACursorError:
        return None


def _position(text: str, log: LogCursors) -> int | None:
    try:
        return log.position(text)
    except NotACursorError:
        return None


def _one_spelling(text: str) -> str:
    """The standard alphabet of base64 is taken for the one of URLs, and padding for nothing: the same bytes."""
    return text.translate({43: 45, 47: 95}).rstrip("=")


def _check_text(text: str) -> None:
    """What is taken spells a place that was given out, and is taken in one place only."""
    places = [_place(text, conversation) for conversation in _CONVERSATIONS]
    assert sum(place is not None for place in places) <= 1, text
    for place, conversation in zip(places, _CONVERSATIONS, strict=True):
        assert place is None or ids.cursor(place, conversation) == _one_spelling(text)
    positions = [_position(text, log) for log in _LOGS]
    assert sum(position is not None for position in positions) <= 1, text
    for position, log in zip(positions, _LOGS, strict=True):
        assert position is None or log.cursor(position) == text


def check(content: bytes) -> None:
    """I01. As text; and as a place whose cursor is changed in one character and shown to another conversation."""
    text = content.decode("utf-8", "replace")
    _check_text(text)
    padded = content[:18].ljust(18, b"\0")
    client_at, position = (int.from_bytes(padded[start : start + 8], "big", signed=True) for start in (0, 8))
    cursor = ids.cursor(Place(client_at, position), _CONVERSATIONS[0])
    assert _place(cursor, _CONVERSATIONS[0]) == (client_at, position)
    assert _place(cursor, _CONVERSATIONS[1]) is None
    event = _LOGS[0].cursor(position)
    assert [_position(event, log) for log in _LOGS] == [position, None, None]
    for whole in (cursor, event):
        place, instead = padded[16] % len(whole), chr(padded[17])
        changed = whole[:place] + instead + whole[place + 1 :]
        _check_text(changed)
        for other in (changed, whole[:place], whole + instead):
            if _one_spelling(other) != whole:
                assert _place(other, _CONVERSATIONS[0]) is None
                assert _position(other, _LOGS[0]) is None


WORDS = (b"=", b"==", b"-", b"_", b"+", b"/", b"now", b"beginning", b"A" * 22, b"A" * 32, b"\n", b" ", b"%3D")
