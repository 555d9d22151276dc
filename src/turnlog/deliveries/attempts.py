"""One webhook's way to its log and to its receiver, and what is known of both."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from turnlog.deliveries.retries import TRIED_FOR_US, Receiver, reason
from turnlog.deliveries.window import Window
from turnlog.errors import GoneError, OverloadedError
from turnlog.feed import PART_EVENTS
from turnlog.instants import US_PER_S
from turnlog.model import Blocked, DeadLetter, LogFilter

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from turnlog.deliveries.means import Means
    from turnlog.ids import LogCursors
    from turnlog.model import Entry
    from turnlog.sent import Sent
    from turnlog.store.protocol import LogPart
    from turnlog.store.webhooks import Delivery

_log = structlog.get_logger()
STORE_AWAY_S = 1.0
"""How long a store that does not answer is left alone."""
_STEP_US = US_PER_S
"""A difference between the clocks that is no rounding, and no slewing of one of them."""
GONE = 410
"""The receiver wants nothing any more."""


class Place(NamedTuple):
    """Where a webhook is worked for."""

    cursors: LogCursors
    end: int
    """Of the log."""
    generation: int
    """Of the store: see Feed.generation."""
    lane: asyncio.Semaphore
    """Has room for so many requests as its account may have under way."""
    may_send: Callable[[], bool]
    """Whether this process has the claim still."""


class Attempts:
    """Reads and sends for one webhook."""

    def __init__(self, means: Means, delivery: Delivery, place: Place) -> None:
        self.means = means
        self.delivery = delivery
        now = means.now_us()
        self._ahead_us = now - self._monotonic_us()
        """How far the wall clock is ahead of the monotonic one, which nobody puts forward or back."""
        self.window = Window(delivery, place.end)
        self.receiver = Receiver(means.random, now, delivery.hold_until)
        self.window.bound(now, self.receiver.latest_try)
        types = delivery.webhook.types
        self.wanted = LogFilter(types=None if types is None else frozenset(types))
        self.disabled: str | None = None
        """Why nothing is sent any more, once that is so."""
        self.ended = False
        self.on_news: Callable[[], None] = lambda: None
        """Called where something may be possible that was not."""
        self._place = place

    @property
    def has_claim(self) -> bool:
        """Whether this process has the claim still."""
        return self._place.may_send()

    @property
    def is_current(self) -> bool:
        """Whether the store is for certain the one still, in the state, that the delivery was read from."""
        return self.means.feed.generation == self._place.generation

    @property
    def may_go(self) -> bool:
        """Whether anything at all may be sent now."""
        if self.ended or self.disabled is not None or self.now_us() < self.receiver.hold_until:
            return False
        return self._place.may_send()

    def now_us(self) -> int:
        """The wall clock. Where it was put forward or back, what waits has been moved along: it waits no longer."""
        now = self.means.now_us()
        ahead_us = now - self._monotonic_us()
        step_us = ahead_us - self._ahead_us
        if not -_STEP_US < step_us < _STEP_US:
            self._ahead_us = ahead_us
            self.window.move(step_us)
            self.receiver.move(step_us)
            _log.warning("clock_stepped", webhook=self.delivery.webhook.id, seconds=step_us / US_PER_S)
            self.on_news()
        return now

    def _monotonic_us(self) -> int:
        return int(self.means.monotonic_s() * US_PER_S)

    async def part(self, wanted: LogFilter, after: int, limit: int = PART_EVENTS) -> LogPart:
        """Entries of the log, once the store answers. Raises GoneError where it is not the log any more that it was."""
        while True:
            await self.means.turn()
            try:
                part = await self.means.feed.part(self.delivery.webhook.account, wanted, after, limit)
            except OverloadedError:
                await self.means.sleep(STORE_AWAY_S)
                continue
            if not self.is_current:
                raise GoneError("the store may have been put back to an earlier time")
            return part

    async def send(self, entry: Entry, *, first: bool) -> Sent | None:
        """Make one attempt, and learn from it about the receiver; ``first`` as in Receiver.failed.

        ``None``: none was made, because nothing may be sent any more once it was the account's turn.
        """
        means, event_id = self.means, self._place.cursors.cursor(entry.position)
        async with self._place.lane:
            if not self.may_go:
                return None
            webhook = self.delivery.webhook
            sent = await means.sender.send(webhook, event_id, means.render(entry, event_id))
        now = self.now_us()
        if sent.delivered:
            changed = self.receiver.delivered(now)
        elif sent.status == GONE:
            changed, self.disabled = False, "the receiver answered 410 Gone"
        else:
            changed = self.receiver.failed(sent, now, first=first)
            self.window.hold_until = self.receiver.hold_until
        if changed:  # up again: all are due. Down: they are probed in turn, whatever their schedules were
            self.window.due.all_now(now)
        means.on_attempt(webhook.id, "delivered" if sent.delivered else "failed")
        return sent

    def block(self, entry: Entry, sent: Sent) -> None:
        """An event of a conversation that was well until then has failed."""
        now = self.now_us()
        next_at = self.receiver.next_try(now, now)
        self.window.block(entry, Blocked(entry.conversation_id, entry.position, 1, now, next_at, reason(sent)))

    def tried_until(self, entry: Entry, since: int | None) -> int:
        """When an event is given up that has been failing ``since``; that was never tried, for ``None``."""
        return max(entry.at, self.delivery.retry_from_at, entry.at if since is None else since) + TRIED_FOR_US

    def letter(self, entry: Entry, attempts: int, since: int, error: str) -> DeadLetter:
        """The event as a dead letter."""
        self.means.on_attempt(self.delivery.webhook.id, "dead")
        now = self.now_us()
        return DeadLetter(entry.position, entry.type, entry.conversation_id, attempts, since, now, error)
