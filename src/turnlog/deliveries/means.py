"""What a worker works with: everything outside it comes in here. And how it waits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from turnlog.feed import Feed
    from turnlog.model import Entry
    from turnlog.sent import Sender
    from turnlog.store.webhooks import WebhookStore


class Means(NamedTuple):
    """``owner`` is this process, under a name that no other one has or had."""

    store: WebhookStore
    feed: Feed
    sender: Sender
    render: Callable[[Entry, str], bytes]
    """The body of an event's request, by its entry and its id."""
    owner: str
    now_us: Callable[[], int]
    monotonic_s: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]
    random: Callable[[], float]
    """From 0 to 1."""
    turn: Callable[[], Awaitable[None]]
    """Waited for before each read and each request, so that recording keeps its share of the event loop."""
    on_attempt: Callable[[str, str], None]
    """Told of a webhook's id and what came of an event of its: "delivered", "failed", or "dead" once it is given up."""


class Bell:
    """Wakes the one that waits for it: once it has been rung, or once some time has passed."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        self._sleep = sleep
        self._rung = asyncio.Event()

    def ring(self) -> None:
        """Whoever waits, or comes to wait next, goes on."""
        self._rung.set()

    async def wait(self, seconds: float | None) -> None:
        """Return once it has been rung since the last time; after ``seconds`` at the latest."""
        if seconds is None or self._rung.is_set():
            await self._rung.wait()
        else:
            timer = asyncio.ensure_future(self._sleep(seconds))
            timer.add_done_callback(self._ring_after)
            try:
                await self._rung.wait()
            finally:
                timer.cancel()
        self._rung.clear()

    def _ring_after(self, timer: asyncio.Future[None]) -> None:
        if not timer.cancelled():
            self._rung.set()
