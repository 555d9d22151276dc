"""An event loop whose clock jumps to the next timer, and the processes that live on it.

Several processes share one loop. Each callback belongs to the process in whose context it was asked for; those of a
process that is stopped (SIGSTOP) are held back, and those of one that was killed are never called: not even its
``finally`` blocks run, as with kill -9.
"""

from __future__ import annotations

import asyncio
import heapq
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable, Coroutine
    from random import Random

NEVER = "everybody waits, and nothing is ever going to happen"


class _Numbered:
    """Hashed by a number instead of an address, so that a set of them has the same order in every run."""

    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            self._hash = hash_ = next(_numbers) * 0x9E3779B1 & 0xFFFFFFFF
            return hash_


_numbers = count()


class SimulatedFuture(_Numbered, asyncio.Future[Any]):
    """Knows when it was done."""

    done_at: float | None = None

    def set_result(self, result: Any) -> None:
        super().set_result(result)
        self.done_at = self.get_loop().time()

    def set_exception(self, exception: type[BaseException] | BaseException) -> None:
        super().set_exception(exception)
        self.done_at = self.get_loop().time()


class SimulatedTask(_Numbered, asyncio.Task[Any]):
    pass


class SimulatedLoop(asyncio.BaseEventLoop):
    """Calls what is ready in the order that asyncio promises; how late a timer is, ``lateness`` says."""

    def __init__(self, lateness: Callable[[], float] | None = None) -> None:
        super().__init__()
        global _numbers  # noqa: PLW0603 - a run's numbers begin at its beginning
        _numbers = count()
        self._now_s = 0.0
        self._lateness = lateness
        self._ready: deque[asyncio.Handle]
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._count = 0
        self.calls = 0
        """Callbacks so far: two runs that differ anywhere differ here, too."""

    def time(self) -> float:
        return self._now_s

    def create_future(self) -> SimulatedFuture:
        return SimulatedFuture(loop=self)

    def create_task(  # type: ignore[override]
        self, coro: Coroutine[Any, Any, Any], *, name: object = None, context: Context | None = None
    ) -> SimulatedTask:
        task = SimulatedTask(coro, loop=self, name=name or "task", context=context)  # type: ignore[arg-type]
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.tasks.append(task)
        return task

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        if self._lateness is not None:
            when += self._lateness()
        timer = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, timer))
        return timer

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready:
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            assert timers, NEVER
            self._now_s = max(self._now_s, timers[0][0])
        now = self._now_s
        while timers and timers[0][0] <= now:
            timer = heapq.heappop(timers)[2]
            if not timer._cancelled:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            process = handle._context.get(PROCESS)  # type: ignore[attr-defined]
            if process is not None and process.held is not None:
                process.held.append(handle)
                continue
            self.calls += 1
            handle._run()

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """It is forgotten when its time has come."""

    def _process_events(self, event_list: object) -> None:
        """There are no files in this world."""

    def _write_to_self(self) -> None:
        """Nobody else's thread is in it."""


class Process:
    """A process on the loop: what is asked for in its context ends with it."""

    def __init__(self, loop: SimulatedLoop, name: str) -> None:
        self.name = name
        self.is_alive = True
        self.tasks: list[SimulatedTask] = []
        self.held: list[asyncio.Handle] | None = None
        self.stopped_at: list[tuple[float, float]] = []
        """From when to when it was stopped."""
        self._stopped_s = 0.0
        self._loop = loop
        self.context = Context()
        self.context.run(PROCESS.set, self)

    def start(self, work: Coroutine[Any, Any, Any]) -> SimulatedTask:
        return self._loop.create_task(work, context=self.context.copy())

    def run(self, call: Callable[[], Any]) -> Any:
        return self.context.copy().run(call)

    def later(self, seconds: float, call: Callable[..., object], *args: object) -> None:
        """A call in the process that comes from outside."""
        self._loop.call_later(seconds, call, *args, context=self.context)

    def stop(self) -> None:
        """SIGSTOP."""
        assert self.held is None
        self.held, self._stopped_s = [], self._loop.time()

    def go_on(self, random: Random) -> None:
        """SIGCONT. What came from outside meanwhile may be looked at before the timers that are over, as in asyncio."""
        assert self.held is not None
        held, self.held = self.held, None
        self.stopped_at.append((self._stopped_s, self._loop.time()))
        if random.random() < 0.5:
            held.sort(key=lambda handle: isinstance(handle, asyncio.TimerHandle))
        self._loop._ready.extend(held)

    def kill(self) -> None:
        """SIGKILL."""
        self.is_alive = False
        if self.held is None:
            self.held = []

    async def bury(self) -> None:
        """Take away what a killed process has left in the memory of this one; nothing of it may reach anything."""
        held, self.held = self.held or [], None
        for task in self.tasks:
            task.cancel()
        self._loop._ready.extend(held)
        await end_all(self.tasks)


PROCESS: ContextVar[Process | None] = ContextVar("process", default=None)
OUTSIDE = copy_context()
"""The context of what belongs to no process: the network, the disk of another machine."""


async def end_all(tasks: list[SimulatedTask]) -> None:
    """Cancel what is not done; ``tasks`` may grow meanwhile."""
    for _ in range(20):
        left = [task for task in tasks if not task.done()]
        if not left:
            return
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.001)
    raise AssertionError(f"tasks that do not end: {[task for task in tasks if not task.done()]}")


def run(main: Coroutine[Any, Any, None], loop: SimulatedLoop) -> None:
    """Carry out ``main``; whatever it leaves behind is ended."""
    try:
        loop.run_until_complete(main)
    finally:
        left = [task for task in asyncio.all_tasks(loop) if not task.done()]
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
