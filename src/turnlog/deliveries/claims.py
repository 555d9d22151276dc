"""Which webhooks this process works for, and that it works for each of them.

One process works for a webhook at a time: the one that has the claim in the store. It asks for it again long before it
ends, counts from before it asked, and sends nothing behind the end: then another one may.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

import structlog

from turnlog.deliveries.attempts import Place
from turnlog.deliveries.means import Bell
from turnlog.deliveries.session import DRAIN_S, Session
from turnlog.deliveries.storing import STORE_ERRORS
from turnlog.errors import OverloadedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from turnlog.deliveries.means import Means

CLAIM_INTERVAL_S = 1.5
CLAIM_TTL_S = 5.0
"""With the interval, a dead process's webhooks are taken over within seven seconds."""
CLAIM_MARGIN_S = 1.0
"""Before the end of a claim: nothing is sent any more, so that what was under way has arrived."""
VERSION_INTERVAL_S = 0.5
"""With which a new webhook is found, and a change of one."""
LAG_INTERVAL_S = 5.0
ACCOUNT_REQUESTS = 128
"""Under way at a time for one account: a quarter of sending.CONNECTIONS, so that its receivers that do not answer leave
the others' webhooks room."""
_AWAY_S = 1.0
_BUG_PAUSE_S = 10.0
_log = structlog.get_logger()


class State(NamedTuple):
    """How a webhook stands, for metrics."""

    lag: int
    """Events of the log behind its cursor, wanted or not."""
    under_way: int
    blocked: int
    is_down: bool


class Worker:
    """Works for one webhook, in one session after the other."""

    def __init__(self, means: Means, account: str, webhook_id: str, lane: asyncio.Semaphore) -> None:
        self.account = account
        self._lane = lane
        self._means = means
        self._id = webhook_id
        self._claimed_until = float("-inf")
        self._news = Bell(means.sleep)
        self._session: Session | None = None
        self._stopping = False
        self._bugs: set[str] = set()
        self.position = 0
        """Where its cursor was when it last stood still."""

    def claimed(self, until: float) -> None:
        """The claim was made, and lasts on the monotonic clock beyond ``until``."""
        if self._means.monotonic_s() >= self._claimed_until and self._session is not None:
            self._session.end()  # it may have been another one's in between
        had_claim, self._claimed_until = self._may_send(), max(until, self._claimed_until)
        if not had_claim:
            self._news.ring()
            if self._session is not None:
                self._session.ring()

    def look_again(self) -> None:
        """Some webhook was changed, perhaps this one."""
        self._news.ring()
        if self._session is not None:
            self._session.look_again()

    def stop(self) -> None:
        """Come to an end in good order."""
        self._stopping = True
        self._news.ring()
        if self._session is not None:
            self._session.stop()

    @property
    def session(self) -> Session | None:
        """What it does, unless there is nothing to do."""
        return self._session

    async def run(self) -> None:
        """Until ``stop``."""
        while not self._stopping:
            try:
                await self._work()
            except (OverloadedError, *STORE_ERRORS):
                await self._news.wait(_AWAY_S)
            except Exception as error:  # noqa: BLE001 - a bug must not end deliveries for good
                if repr(type(error)) not in self._bugs:
                    self._bugs.add(repr(type(error)))
                    _log.exception("webhook_worker_failed", webhook=self._id)
                await self._news.wait(_BUG_PAUSE_S)

    def _may_send(self) -> bool:
        return self._means.monotonic_s() < self._claimed_until - CLAIM_MARGIN_S

    async def _work(self) -> None:
        means = self._means
        if not self._may_send():
            await self._news.wait(None)
            return
        generation = means.feed.generation
        delivery = await means.store.delivery(self.account, self._id)
        if delivery is not None:
            self.position = delivery.position
        if delivery is None or delivery.webhook.disabled is not None:
            await self._news.wait(None)
            return
        cursors, end = await means.feed.cursors(self.account), await means.feed.end(self.account)
        if delivery.position > end:
            _log.warning("webhook_cursor_ahead", webhook=self._id, position=delivery.position, end=end)
        if self._stopping:
            return
        session = self._session = Session(means, delivery, Place(cursors, end, generation, self._lane, self._may_send))
        try:
            await session.run()
        finally:
            self._session = None
            self.position = session.cursor
        if session.lost:
            self._claimed_until = float("-inf")


class Deliveries:
    """Every webhook that this process has the claim for. A store that does not answer is asked again, for ever."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self._workers: dict[str, Worker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ends: dict[str, int] = {}
        self._lanes: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._loops: list[asyncio.Task[None]] = []
        self._quiet: set[str] = set()
        self._claims_due = Bell(means.sleep)

    async def run(self) -> None:
        """Until ``stop``. Cancelled, it stops where it stands: what was not stored is delivered again."""
        loops = (self._claim_along(), self._watch_along(), self._measure_along())
        self._loops = [asyncio.create_task(loop) for loop in loops]
        try:
            await asyncio.wait(self._loops)
        except asyncio.CancelledError:
            for task in (*self._loops, *self._tasks.values()):
                task.cancel()
            raise

    async def stop(self) -> None:
        """Begin nothing more, wait a little for what is under way, store what was achieved, give the claims back."""
        for loop in self._loops:
            loop.cancel()
        for worker in self._workers.values():
            worker.stop()
        tasks = list(self._tasks.values())
        timer = asyncio.ensure_future(self._means.sleep(2 * DRAIN_S))
        while not timer.done() and not all(task.done() for task in tasks):
            going = [task for task in tasks if not task.done()]
            await asyncio.wait({timer, *going}, return_when=asyncio.FIRST_COMPLETED)
        timer.cancel()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with contextlib.suppress(*STORE_ERRORS):
            await self._means.store.release_webhooks(self._means.owner)

    # Figures.

    def lags(self) -> dict[str, int]:
        """How many events of the log lie behind each webhook's cursor, as of a few seconds ago at most."""
        return {webhook_id: state.lag for webhook_id, state in self.states().items()}

    def states(self) -> Mapping[str, State]:
        """How each webhook stands that is worked for here."""
        found = {}
        for webhook_id, worker in self._workers.items():
            session = worker.session
            position = worker.position if session is None else session.cursor
            lag = max(0, self._ends.get(worker.account, 0) - position)
            if session is None:
                found[webhook_id] = State(lag, 0, 0, is_down=False)
            else:
                found[webhook_id] = State(lag, session.under_way, session.blocked, session.is_down)
        return found

    # What goes on.

    async def _claim_along(self) -> None:
        means = self._means
        while True:
            ttl_s = CLAIM_TTL_S
            until = means.monotonic_s() + ttl_s
            try:
                ours = await means.store.claim_webhooks(means.owner, ttl_s)
            except Exception as error:  # noqa: BLE001 - whatever it is, claims have to be asked for again
                self._complain("webhooks_not_claimed", error)
            else:
                self._quiet.discard("webhooks_not_claimed")
                self._arrange(ours, until)
            await self._claims_due.wait(CLAIM_INTERVAL_S)

    def _arrange(self, ours: list[tuple[str, str]], until: float) -> None:
        """Work for these webhooks, ``until`` then at least, and no others."""
        wanted = {webhook_id for _, webhook_id in ours}
        for webhook_id in [one for one in self._workers if one not in wanted]:
            del self._workers[webhook_id]
            self._tasks.pop(webhook_id).cancel()
        for account, webhook_id in ours:
            worker = self._workers.get(webhook_id)
            if worker is None:
                lane = self._lanes.setdefault(account, asyncio.Semaphore(ACCOUNT_REQUESTS))
                worker = self._workers[webhook_id] = Worker(self._means, account, webhook_id, lane)
                self._tasks[webhook_id] = asyncio.create_task(worker.run())
            worker.claimed(until)

    async def _watch_along(self) -> None:
        seen: int | None = None
        while True:
            try:
                version = await self._means.store.webhooks_version()
            except Exception as error:  # noqa: BLE001 - it is asked for again
                self._complain("webhooks_not_watched", error)
            else:
                self._quiet.discard("webhooks_not_watched")
                if version != seen:
                    seen = version
                    self._claims_due.ring()
                    for worker in self._workers.values():
                        worker.look_again()
            await self._means.sleep(VERSION_INTERVAL_S)

    async def _measure_along(self) -> None:
        while True:
            for account in {worker.account for worker in self._workers.values()}:
                try:
                    self._ends[account] = await self._means.feed.end(account)
                except Exception as error:  # noqa: BLE001 - only a figure
                    self._complain("webhooks_not_measured", error)
                else:
                    self._quiet.discard("webhooks_not_measured")
            await self._means.sleep(LAG_INTERVAL_S)

    def _complain(self, event: str, error: Exception) -> None:
        """Once, until it goes well again."""
        if event not in self._quiet:
            self._quiet.add(event)
            _log.warning(event, error=f"{type(error).__name__}: {error}")
