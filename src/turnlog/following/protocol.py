"""What both ways of following a log give, and what they are told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from turnlog.model import EVERYTHING, LogFilter

SHOWN_LINES = 10


class Event(NamedTuple):
    """An event: its id, which is the cursor behind it, and itself as a line of JSON, byte for byte the feed's."""

    id: str
    line: bytes


class Wanted(NamedTuple):
    """What is to be followed: from ``after`` on (a cursor, NOW, BEGINNING), or without it from the ``last`` events on.

    Without ``follow``, no further than to the end of the log.
    """

    after: str | None = None
    last: int = SHOWN_LINES
    filter: LogFilter = EVERYTHING
    follow: bool = True


Take = Callable[[Sequence[Event], str], None]
"""Called with what comes, in order, and with the cursor that was reached, which may be all that is new."""
Say = Callable[[str], None]
"""Called with what an operator should know meanwhile."""
