"""The open streams of a server, and what they share: turns, and parts of the log that were rendered a moment ago."""

from __future__ import annotations

import math
from collections import OrderedDict
from contextlib import contextmanager
from time import thread_time
from typing import TYPE_CHECKING, NamedTuple

from turnlog.errors import ForbiddenError, UnauthenticatedError
from turnlog.http.events import stream_part

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from turnlog.feed import Feed
    from turnlog.http.requests import Request
    from turnlog.keyring import Keyring
    from turnlog.model import LogFilter
    from turnlog.pace import Pace

_REMEMBERED_PARTS = 16
_WATCH_INTERVAL_S = 1.0


class Rendered(NamedTuple):
    """A part of a stream."""

    events: bytes
    reached: int


class Streams:
    """The open streams of a server, at most ``most``, and what was rendered for one of them a moment ago.

    None is silent for longer than ``comment_s``.

    Those who follow an account live want the same part at the same time: it is read and rendered once.
    """

    def __init__(self, feed: Feed, pace: Pace, keyring: Keyring, most: int, comment_s: float) -> None:
        self._feed = feed
        self._keyring = keyring
        self._pace = pace
        self.most = most
        self.comment_s = comment_s
        self._open = 0
        self._sending: set[Request] = set()
        self._parts: OrderedDict[tuple[int, str, LogFilter, int], Rendered] = OrderedDict()

    def __len__(self) -> int:
        return self._open

    @contextmanager
    def open(self) -> Iterator[None]:
        """While this lasts, a stream is open."""
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def good_for_s(self, request: Request) -> float:
        """How long the key of a request is good for; 0 where it is not any more."""
        credentials = request.credentials()
        if credentials is None:
            return 0.0
        try:
            seconds = self._keyring.good_for_s(*credentials, "feed")
        except (UnauthenticatedError, ForbiddenError):
            return 0.0
        return math.inf if seconds is None else seconds

    @contextmanager
    def sending(self, request: Request) -> Iterator[None]:
        """While this lasts, a stream waits for its reader to take what it was sent."""
        self._sending.add(request)
        try:
            yield
        finally:
            self._sending.discard(request)

    async def watch(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        """For ever: cut off readers whose keys have ended. The streams of those who take what they get end anyway."""
        while True:
            await sleep(_WATCH_INTERVAL_S)
            for request in list(self._sending):
                if self.good_for_s(request) <= 0:
                    request.abort()

    async def turn(self) -> None:
        """Return when it is the caller's turn to read."""
        await self._pace.turn()

    async def part(self, account: str, wanted: LogFilter, place: int) -> Rendered:
        """The next part behind ``place``, to be sent at once, when it is the caller's turn.

        Raises OverloadedError while the store does not answer, GoneError as Feed.part.
        """
        await self._pace.turn()
        asked = (self._feed.generation, account, wanted, place)
        found = self._parts.get(asked) or await self._render(asked)
        self._pace.sent(len(found.events))
        return found

    async def _render(self, asked: tuple[int, str, LogFilter, int]) -> Rendered:
        _, account, wanted, place = asked
        began_s = thread_time()
        part = await self._feed.part(account, wanted, place)
        found = Rendered(stream_part(part.entries, await self._feed.cursors(account)), part.reached)
        self._pace.spent(thread_time() - began_s)  # others' time in between is counted too, to recording's advantage
        if part.entries:
            self._parts[asked] = found
            if len(self._parts) > _REMEMBERED_PARTS:
                self._parts.popitem(last=False)
        return found
