"""One webhook's events delivered, for as long as this process has the claim and nobody moves the webhook's cursor.

Events of one conversation are sent one after the other, conversations side by side. What a receiver does not take
blocks its own conversation and no other; where it takes nothing at all, it is only probed.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from turnlog.deliveries.attempts import GONE, Attempts, Place
from turnlog.deliveries.means import Bell
from turnlog.deliveries.retrying import MANY_DEAD, Retrying
from turnlog.deliveries.storing import Storing
from turnlog.deliveries.window import MAX_BLOCKED
from turnlog.errors import GoneError
from turnlog.feed import PART_EVENTS
from turnlog.instants import US_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from turnlog.deliveries.means import Means
    from turnlog.model import Entry
    from turnlog.store.webhooks import Delivery

    Work = Callable[[], Coroutine[Any, Any, None]]

CONCURRENCY = 16
"""Requests under way at a time, for one webhook."""
MAX_RETRYING = 8
"""Of these, for what failed before, while there is something new to be sent."""
DRAIN_S = 3.0
"""How long requests under way are waited for at a stop."""
_ATTEMPT_S = 20.0
"""Longer than any attempt takes: how long they are waited for where only the webhook has changed."""
CLOCK_INTERVAL_S = 60.0
"""How often the clock is looked at while something waits for its time."""
_FRESH_PROBE = 2
"""Every so many probes, one is a new event: what is blocked already may be all that the receiver does not take."""


class Session:
    """From one reading of a delivery to the next; ``place.may_send`` is asked before each request."""

    def __init__(self, means: Means, delivery: Delivery, place: Place) -> None:
        self._means = means
        self._attempts = Attempts(means, delivery, place)
        self._attempts.on_news = self.ring
        self._window = self._attempts.window
        self._receiver = self._attempts.receiver
        self._retrying = Retrying(self._attempts)
        self._storing = Storing(self._attempts, self._retrying, self.end)
        self._sending = Bell(means.sleep)
        self._room = Bell(means.sleep)
        self._jobs: set[asyncio.Task[None]] = set()
        self._fresh = 0
        self._old = 0
        self._probing = False
        self._stopping = False
        self._bug: BaseException | None = None

    # From outside.

    async def run(self) -> None:
        """Deliver until ``end`` or ``stop``. Raises whatever must not go wrong and did."""
        self._storing.touched()
        loops = [self._run(self._send_along()), self._run(self._read_along()), self._run(self._storing.run())]
        sending, reading, storing = loops
        try:
            await asyncio.wait([sending])
            reading.cancel()
            await self._drained()
            await asyncio.wait([reading, storing])
            if self._stopping and self._bug is None and self._window.is_dirty and self._attempts.has_claim:
                await self._storing.save()
        finally:
            for task in (*loops, *self._jobs):
                task.cancel()
        if self._bug is not None:
            raise self._bug

    def end(self) -> None:
        """Begin nothing more; what was achieved and is not stored is forgotten."""
        self._attempts.ended = True
        self.ring()

    def stop(self) -> None:
        """Begin nothing more, wait a little for what is under way, store what was achieved."""
        self._stopping = True
        self.end()

    def look_again(self) -> None:
        """Somebody may have changed the webhook."""
        self._storing.look_again()

    def ring(self) -> None:
        """Something may be possible now that was not."""
        self._sending.ring()
        self._room.ring()
        self._storing.ring()

    @property
    def lost(self) -> bool:
        """Whether it ended because the store says that the webhook is another process's."""
        return self._storing.lost

    @property
    def cursor(self) -> int:
        """Everything up to here is done, or waits in a blocked conversation."""
        return self._window.cursor

    @property
    def under_way(self) -> int:
        """How many requests are under way, or about to be."""
        return len(self._jobs)

    @property
    def blocked(self) -> int:
        """How many conversations are blocked."""
        return len(self._window.blocked)

    @property
    def is_down(self) -> bool:
        """Whether the receiver takes nothing, as far as is known."""
        return self._receiver.down_since is not None

    # Tasks.

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        task.add_done_callback(self._note)
        return task

    def _note(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (bug := task.exception()) is not None:
            if not isinstance(bug, GoneError):  # the log was put back to an earlier time: the next session begins there
                self._bug = self._bug or bug
            self.end()

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._run(work)
        self._jobs.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, job: asyncio.Task[None]) -> None:
        self._jobs.discard(job)
        self._sending.ring()
        self._room.ring()
        self._storing.touched()

    async def _drained(self) -> None:
        timer = asyncio.ensure_future(self._means.sleep(DRAIN_S if self._stopping else _ATTEMPT_S))
        try:
            while self._jobs and not timer.done():
                await asyncio.wait({timer, *self._jobs}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()

    # Reading.

    async def _read_along(self) -> None:
        attempts, window, feed = self._attempts, self._window, self._means.feed
        account = attempts.delivery.webhook.account
        while not attempts.ended:
            room = min(window.room, PART_EVENTS)
            if room <= 0 or len(window.dead) >= MANY_DEAD:
                await self._room.wait(None)
                continue
            seen = feed.moves(account)
            part = await attempts.part(attempts.wanted, window.read_to, room)
            if part.reached == window.read_to:
                await feed.next_move(account, seen)
                continue
            window.add(part)
            self._retrying.give_up_old()
            self._sending.ring()
            self._storing.touched()

    # Sending.

    async def _send_along(self) -> None:
        while not self._attempts.ended:
            if self._next() is None:
                await self._sending.wait(self._pause_s())
                continue
            await self._means.turn()
            begin = self._next()  # what it was before the turn may be another process's by now
            if begin is not None:
                begin()

    def _next(self) -> Callable[[], None] | None:
        """What is to be begun now."""
        if not self._attempts.may_go or len(self._jobs) >= CONCURRENCY:
            return None
        now, window = self._attempts.now_us(), self._window
        fresh = window.is_ready and len(window.blocked) + self._fresh < MAX_BLOCKED
        if self._receiver.down_since is not None:
            possible = fresh or self._retrying.is_possible
            return self._begin_probe if possible and not self._probing and now >= self._receiver.probe_at else None
        if (self._old < MAX_RETRYING or not fresh) and self._retrying.is_due(now):
            return self._begin_old
        return self._begin_fresh if fresh else None

    def _pause_s(self) -> float | None:
        """How long nothing can be begun, unless somebody rings."""
        if not self._attempts.has_claim or len(self._jobs) >= CONCURRENCY or self._probing:
            return None
        receiver, due_at = self._receiver, self._window.due.next_at()
        if receiver.down_since is not None:
            if not self._window.is_ready and not self._retrying.is_possible:
                return None
            due_at = receiver.probe_at
        elif due_at is None and receiver.hold_until == 0:
            return None
        now = self._attempts.now_us()
        at = max(due_at or 0, receiver.hold_until)
        return min((at - now) / US_PER_S + 0.001, CLOCK_INTERVAL_S) if at > now else None

    def _begin_fresh(self) -> None:
        entry = self._window.take()
        if entry is not None:
            self._fresh += 1
            self._begin(self._deliver(entry))

    def _begin_old(self) -> None:
        work = self._retrying.begin(self._attempts.now_us())
        if work is not None:
            self._old += 1
            self._begin(self._again(work))

    def _begin_probe(self) -> None:
        work: Work | None = None
        if self._receiver.probes % _FRESH_PROBE != 1:
            work = self._retrying.probe()
        if work is None and len(self._window.blocked) < MAX_BLOCKED:
            entry = self._window.take()
            if entry is not None:
                self._fresh += 1
                work = partial(self._deliver, entry)
        if work is None:  # a dead letter only where there is nothing else: it has one attempt
            work = self._retrying.probe() or self._retrying.replay()
        if work is None:  # what there is has a dead letter under way
            self._receiver.probe_at = self._attempts.now_us() + US_PER_S
            return
        self._probing = True
        self._begin(self._probe(work))

    async def _deliver(self, entry: Entry) -> None:
        sent = await self._attempts.send(entry, first=True)
        self._fresh -= 1
        if sent is None or sent.status == GONE:
            self._window.put_back(entry)
        elif sent.delivered:
            self._window.done(entry)
        else:
            self._attempts.block(entry, sent)

    async def _again(self, work: Work) -> None:
        try:
            await work()
        finally:
            self._old -= 1

    async def _probe(self, work: Work) -> None:
        try:
            await work()
            now = self._attempts.now_us()
            if self._receiver.down_since is not None:
                self._receiver.probed(now)
                await self._retrying.probe_failed()
        finally:
            self._probing = False
