"""The log: one JSON object per line on standard error; never a message's text, a secret or a request's body."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import sys
from typing import TYPE_CHECKING, cast

import msgspec
import structlog

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TextIO

    from structlog.typing import EventDict, Processor

_MAX_VALUE_CHARS = 2000
_MAX_TRACE_CHARS = 20_000
_MAX_LINE_CHARS = 64 * 1024
_UNPRINTABLE = re.compile("[\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
"""What JSON need not escape, and a terminal or a viewer takes for more than a character."""


class _Unfailing:
    """A stream whose reader may go away, or whose disk may fill up: what cannot be logged is lost, nothing else is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure(
    level: str, now_text: Callable[[], str], stream: TextIO | None = None, *, worker: int | None = None
) -> None:
    """Send this program's events and its libraries' warnings to ``stream`` (standard error) from ``level`` up.

    The lines of one of several processes carry its number, ``worker``.
    """
    origin = {} if worker is None else {"worker": worker}
    number = logging.getLevelNamesMapping()[level.upper()]

    def stamp(_logger: object, _method: str, event: EventDict) -> EventDict:
        return {"time": now_text(), **origin, **event}

    shared: list[Processor] = [structlog.stdlib.add_log_level, stamp]
    closing: list[Processor] = [structlog.processors.format_exc_info, _bounded, _render]
    target = cast("TextIO", _Unfailing(sys.stderr if stream is None else stream))
    structlog.configure(
        processors=[*shared, *closing],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(target),  # a line in one piece: other processes may write too
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *closing],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.WARNING), force=True)


def _bounded(_logger: object, _method: str, event: EventDict) -> EventDict:
    """Cut what is long; JSON escapes what could forge a line."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = _cut(value, _MAX_TRACE_CHARS if key == "exception" else _MAX_VALUE_CHARS)
    return event


def _cut(text: str, most: int) -> str:
    """Of what is too long, the beginning and the end: a trace says at its end what it was."""
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[-(most // 2) :]}"
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _render(_logger: object, _method: str, event: EventDict) -> str:
    try:
        line = msgspec.json.encode(event, enc_hook=_other).decode()
    except (UnicodeEncodeError, OverflowError):  # lone surrogates, huge numbers
        line = json.dumps(event, default=_other)
    if len(line) > _MAX_LINE_CHARS:
        kept = {name: event.get(name) for name in ("time", "level", "event")}
        line = json.dumps(kept | {"cut": _cut(line, _MAX_VALUE_CHARS)}, default=_other)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line)


def _other(value: object) -> str:
    """A value of a kind that JSON does not have."""
    return _cut(repr(value), _MAX_VALUE_CHARS)
