"""The change feed: an account's log from a cursor on, in pages or followed live.

The log is the truth, and nothing is kept for a reader but its place: whoever follows is only woken, then reads on where
it stands. Knows the store's protocol and nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from turnlog.errors import GoneError, MalformedParameterError
from turnlog.ids import LogCursors, NotACursorError
from turnlog.service import asking_the_store

if TYPE_CHECKING:
    from turnlog.model import LogFilter
    from turnlog.store.protocol import LogPart, LogReader

PART_EVENTS = 200
PART_CHARS = 128 * 1024
"""What is read at a time: bounds a reader's memory, and how long it keeps others waiting."""
NOW = "now"
"""Stands for the cursor behind everything that is recorded."""
BEGINNING = "beginning"
"""Stands for the cursor before everything that is kept."""


_BEHIND_THE_END = "the log ends before this cursor: it was restored to an earlier time: start without one"


class _Moves:
    """How often something was recorded in an account, and who waits for the next time."""

    __slots__ = ("count", "waiting")

    def __init__(self) -> None:
        self.count = 0
        self.waiting: set[asyncio.Future[None]] = set()


class Feed:
    """The logs of all accounts, for those who read them from a cursor on."""

    def __init__(self, reader: LogReader) -> None:
        self._reader = reader
        self._loop = asyncio.get_running_loop()
        self._cursors: dict[str, LogCursors] = {}
        self._generation = reader.generation
        self._moves: dict[str, _Moves] = {}

    @property
    def generation(self) -> int:
        """See protocol.LogReader."""
        return self._reader.generation

    # Places.

    async def cursors(self, account: str) -> LogCursors:
        """The account's cursors. Raises OverloadedError while the store does not answer."""
        if self._generation != self._reader.generation:
            self._generation, self._cursors = self._reader.generation, {}
        found = self._cursors.get(account)
        if found is None:
            with asking_the_store:
                name = await self._reader.log_name()
            found = self._cursors[account] = LogCursors(name, account)
        return found

    async def place(self, account: str, after: str | None, parameter: str = "Query 'after'") -> int:
        """The position that a reader begins behind: NOW is the end; ``None`` and BEGINNING, where what is kept begins.

        Raises MalformedParameterError where ``after`` is no cursor of this log, GoneError where it points at what is
        not kept, OverloadedError while the store does not answer.
        """
        with asking_the_store:
            start = await self._reader.log_start(account)
            if after is None or after == BEGINNING:
                return start
            end = await self._reader.last_position(account)
        if after == NOW:
            return end
        try:
            position = (await self.cursors(account)).position(after)
        except NotACursorError:
            raise MalformedParameterError(
                f"[{parameter}] not a cursor of this account's log: send a nextCursor or an event's id as it was "
                f"given, or {NOW} or {BEGINNING}"
            ) from None
        if position < start:
            raise GoneError(f"[{parameter}] what comes behind this cursor is not kept any more: start without one")
        if position > end:
            raise GoneError(f"[{parameter}] {_BEHIND_THE_END}")
        return position

    # Reading.

    async def end(self, account: str) -> int:
        """The position of the newest entry. Raises OverloadedError."""
        with asking_the_store:
            return await self._reader.last_position(account)

    async def part(self, account: str, wanted: LogFilter, after: int, limit: int = PART_EVENTS) -> LogPart:
        """The next entries behind ``after``, some of them, and how far the log was looked through for them.

        ``reached`` equal to ``after``: there is nothing more now. Raises OverloadedError; GoneError where the log ends
        before ``after``, as where the store was put back to an earlier time meanwhile.
        """
        with asking_the_store:
            end = await self._reader.last_position(account)
            if end < after:
                raise GoneError(_BEHIND_THE_END)
            return await self._reader.log(account, wanted, after=after, up_to=end, limit=limit, max_chars=PART_CHARS)

    # Following.

    def moved(self, account: str) -> None:
        """Something was recorded in ``account``: wake those who wait for that."""
        moves = self._moves.get(account)
        if moves is None:
            return
        moves.count += 1
        waiting, moves.waiting = moves.waiting, set()
        for future in waiting:
            wake(future)

    def wake_all(self) -> None:
        """Let everybody look again, as when keys have changed."""
        for account in list(self._moves):
            self.moved(account)

    def moves(self, account: str) -> int:
        """How often the account has moved: what ``next_move`` is asked with, taken before the log is read."""
        moves = self._moves.get(account)
        if moves is None:
            moves = self._moves[account] = _Moves()
        return moves.count

    def next_move(self, account: str, seen: int) -> asyncio.Future[None]:
        """Done once the account has moved since ``moves`` gave ``seen``; others may ``wake`` it, too."""
        future = self._loop.create_future()
        moves = self._moves[account]
        if moves.count != seen:
            future.set_result(None)
        else:
            moves.waiting.add(future)
            future.add_done_callback(moves.waiting.discard)
        return future

    async def wait(self, account: str, seen: int, seconds: float) -> None:
        """Return once the account has moved since ``seen``, after ``seconds`` at the latest."""
        move = self.next_move(account, seen)
        timer = self._loop.call_later(seconds, wake, move)
        try:
            await move
        finally:
            timer.cancel()
            move.cancel()


def wake(future: asyncio.Future[None]) -> None:
    """Let who waits go on; nothing where it has gone on already."""
    if not future.done():
        future.set_result(None)
