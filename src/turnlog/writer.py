"""Group commit: whatever is asked for while a transaction is under way goes into the next one together.

A store that records several batches side by side says which writes belong together (its lanes). Nobody waits for
company: a write that finds its lane idle is handed over in the same turn of the event loop. Knows the store's protocol
and nothing of HTTP or SQL.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import TYPE_CHECKING

import msgspec
import structlog

from turnlog.errors import Error, InternalError, OutcomeUnknownError, OverloadedError
from turnlog.store.protocol import (
    ForgetIdempotency,
    StoreFailedError,
    StoreUnavailableError,
    StoreUncertainError,
    Write,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from turnlog.store.protocol import Recorder

_log = structlog.get_logger()
RETRY_AFTER_S = 1
MAX_TRANSACTION_ROWS = 2000
MAX_TRANSACTION_CHARS = 8 * 1024 * 1024
"""What one transaction takes in: keeps the wait of those behind it in the tens of milliseconds."""
_WATCH_INTERVAL_S = 0.1
_NEARLY = 0.9


class _Waiting(msgspec.Struct):
    write: Write
    answer: asyncio.Future[object]
    submitted_at: float
    rows: int
    chars: int


class _Lane:
    """Writes that wait for each other: one batch of them is under way at a time."""

    __slots__ = ("chars", "in_flight", "queue", "rows", "task")

    def __init__(self) -> None:
        self.queue: deque[_Waiting] = deque()
        self.in_flight: list[_Waiting] = []
        self.rows = 0
        self.chars = 0
        self.task: asyncio.Task[None] | None = None

    def is_late(self, now_s: float, patience_s: float) -> bool:
        """Whether what is queued fills a transaction beside the one under way, and waits longer than it should.

        Less than that goes into the next transaction together, however long a sync takes.
        """
        fills_one = self.rows >= MAX_TRANSACTION_ROWS or self.chars >= MAX_TRANSACTION_CHARS
        return fills_one and now_s - self.queue[0].submitted_at > patience_s


class Writer:
    """The queue in front of a store's ``append``.

    ``max_rows`` and ``max_chars`` of text bound what is queued; ``deadline_s`` what a caller waits. Where a lane's
    oldest has waited for ``patience_s`` and not all of it fits into the next transaction, no more are let in: who came
    then would wait as long, and be late. ``on_batch`` hears of each batch (rows, seconds), ``on_failure`` once that the
    store must not be used any more.
    """

    def __init__(
        self,
        store: Recorder,
        *,
        max_rows: int,
        max_chars: int,
        deadline_s: float,
        patience_s: float = math.inf,
        monotonic_s: Callable[[], float],
        on_batch: Callable[[int, float], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._store = store
        self._max_rows = max_rows
        self._max_chars = max_chars
        self._deadline_s = deadline_s
        self._patience_s = patience_s
        # Not the event loop's time, which stands still within a turn: a process that was stopped there would not know.
        self._now_s = monotonic_s
        self._on_batch = on_batch
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[Hashable, _Lane] = {}
        self._last_lane: dict[str, _Lane] = {}
        """By account, the lane of its last write."""
        self._free = asyncio.Semaphore(store.parallel)
        lanes_beside = 1 if store.parallel == 1 else 2
        self._max_lane_rows = max_rows // lanes_beside
        self._max_lane_chars = max_chars // lanes_beside
        self._watch: asyncio.TimerHandle | None = None
        self._failed = False
        self.queued_rows = 0
        self._queued_chars = 0

    @property
    def failed(self) -> bool:
        """Whether the store has failed, so that nothing can be recorded before a restart."""
        return self._failed

    def submit(self, write: Write) -> asyncio.Future[object]:
        """The outcome of ``write``, once it is durable.

        The future raises OverloadedError where the write is certainly not stored, OutcomeUnknownError where that is
        not known. Raises OverloadedError itself, at once, where the queue is full.
        """
        if self._failed:
            raise OverloadedError("the store has failed and the server is restarting", retry_after_s=RETRY_AFTER_S)
        rows, chars, now_s = write.rows, write.chars, self._now_s()
        place = self._store.lane(write)
        lane = self._lanes.get(place)
        full = self.queued_rows + rows > self._max_rows or self._queued_chars + chars > self._max_chars
        if lane is not None:
            # One lane that is held up must leave room for the others.
            full |= lane.rows + rows > self._max_lane_rows or lane.chars + chars > self._max_lane_chars
            if lane.is_late(now_s, self._patience_s):
                raise _too_much_waits()
        if full and self.queued_rows:  # alone in the queue, a write of any size is let in
            raise OverloadedError("the server is overloaded: the write queue is full", retry_after_s=RETRY_AFTER_S)
        answer: asyncio.Future[object] = self._loop.create_future()
        if lane is None:
            lane = self._lanes[place] = _Lane()
            lane.task = self._loop.create_task(self._run(place, lane))
        if not isinstance(write, ForgetIdempotency):
            self._last_lane[write.account] = lane
        lane.queue.append(_Waiting(write, answer, now_s, rows, chars))
        lane.rows += rows
        lane.chars += chars
        self.queued_rows += rows
        self._queued_chars += chars
        if self._watch is None:
            self._watch = self._loop.call_later(_WATCH_INTERVAL_S, self._expire)
        return answer

    def check_room(self, account: str) -> None:
        """Raises OverloadedError where ``submit`` would, for this account, as far as that is known without the write.

        It costs next to nothing: most of a refusal's work is spared where it is called before the body is read. A
        queue that is full but for a tenth counts as full, so that hardly anything is read in vain.
        """
        lane = self._last_lane.get(account)
        if lane is None:
            return
        rows, chars = _NEARLY * self._max_rows, _NEARLY * self._max_chars
        lane_rows, lane_chars = _NEARLY * self._max_lane_rows, _NEARLY * self._max_lane_chars
        full = self.queued_rows > rows or self._queued_chars > chars or lane.rows > lane_rows or lane.chars > lane_chars
        if full or lane.is_late(self._now_s(), self._patience_s):
            raise _too_much_waits()

    async def drain(self) -> None:
        """Wait until everything queued has its outcome."""
        while tasks := [lane.task for lane in self._lanes.values() if lane.task is not None]:
            await asyncio.wait(tasks)

    async def _run(self, place: Hashable, lane: _Lane) -> None:
        try:
            while lane.queue:
                async with self._free:
                    if lane.queue:  # or all of it has expired meanwhile
                        await self._commit(lane, self._next_batch(lane))
        finally:
            while lane.queue:  # a bug let something through: nobody is left waiting
                waiting = self._take(lane)
                self._refuse([waiting], OverloadedError("the write was dropped", retry_after_s=RETRY_AFTER_S))
            del self._lanes[place]
            if not self._lanes and self._watch is not None:
                self._watch.cancel()
                self._watch = None

    def _next_batch(self, lane: _Lane) -> list[_Waiting]:
        queue = lane.queue
        rows = chars = 0
        batch: list[_Waiting] = []
        while queue and (
            not batch
            or (rows + queue[0].rows <= MAX_TRANSACTION_ROWS and chars + queue[0].chars <= MAX_TRANSACTION_CHARS)
        ):
            waiting = self._take(lane)
            rows += waiting.rows
            chars += waiting.chars
            batch.append(waiting)
        return batch

    def _take(self, lane: _Lane) -> _Waiting:
        waiting = lane.queue.popleft()
        lane.rows -= waiting.rows
        lane.chars -= waiting.chars
        self.queued_rows -= waiting.rows
        self._queued_chars -= waiting.chars
        return waiting

    async def _commit(self, lane: _Lane, batch: list[_Waiting]) -> None:
        lane.in_flight = batch
        started_at = self._now_s()
        try:
            outcomes = await self._store.append([waiting.write for waiting in batch])
        except StoreUnavailableError as cause:
            _log.warning("store_unavailable", error=str(cause), writes=len(batch))
            refusal = OverloadedError("the store cannot record now", retry_after_s=RETRY_AFTER_S)
            refusal.__cause__ = cause
            self._refuse(batch, refusal)
        except StoreUncertainError as cause:
            _log.warning("outcome_unknown", error=str(cause), writes=len(batch))
            self._refuse(batch, _unknown())
        except StoreFailedError as failure:
            self._fail(failure)
        except Exception as bug:  # noqa: BLE001 - the queue must outlive a bug, and the bug is reported by the caller
            error = InternalError("internal error")
            error.__cause__ = bug
            self._refuse(batch, error)
        else:
            self._deliver(batch, outcomes)
            self._on_batch(sum(waiting.rows for waiting in batch), self._now_s() - started_at)
        finally:
            self._refuse(batch, _unknown())  # nobody is left waiting, whatever went wrong above
            lane.in_flight = []

    def _deliver(self, batch: list[_Waiting], outcomes: list[object]) -> None:
        too_late = self._now_s() - self._deadline_s
        for waiting, outcome in zip(batch, outcomes, strict=True):
            answer = waiting.answer
            if answer.done():
                continue
            if waiting.submitted_at < too_late:
                answer.set_exception(_unknown())
            elif isinstance(outcome, Error):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

    @staticmethod
    def _refuse(batch: list[_Waiting], error: Error) -> None:
        for waiting in batch:
            if not waiting.answer.done():
                waiting.answer.set_exception(error)

    def _fail(self, failure: BaseException) -> None:
        """Fail stop: after a failed sync the next commit would succeed as if nothing had happened."""
        self._failed = True
        for lane in self._lanes.values():
            self._refuse(lane.in_flight, _unknown())
            self._refuse(list(lane.queue), _unknown())
            lane.queue.clear()
            lane.rows = lane.chars = 0
        self.queued_rows = self._queued_chars = 0
        self._on_failure(failure)

    def _expire(self) -> None:
        """Answer those who have waited past the deadline; one timer for all, not one each."""
        too_late = self._now_s() - self._deadline_s
        for lane in self._lanes.values():
            for waiting in lane.in_flight:
                if waiting.submitted_at < too_late and not waiting.answer.done():
                    waiting.answer.set_exception(_unknown())
            while lane.queue and lane.queue[0].submitted_at < too_late:
                waiting = self._take(lane)
                if not waiting.answer.done():
                    waiting.answer.set_exception(
                        OverloadedError("the write waited too long and was dropped", retry_after_s=RETRY_AFTER_S)
                    )
        self._watch = self._loop.call_later(_WATCH_INTERVAL_S, self._expire)


def _too_much_waits() -> OverloadedError:
    return OverloadedError("the server is overloaded: too much waits already", retry_after_s=RETRY_AFTER_S)


def _unknown() -> OutcomeUnknownError:
    return OutcomeUnknownError(
        "the outcome is unknown: retry with the same Idempotency-Key", retry_after_s=RETRY_AFTER_S
    )
