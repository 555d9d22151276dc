"""Reads that are asked for together go out together: one statement for many callers, first come, first served.

A caller need not be a task: it awaits a future, and nothing else. Timeouts and the driver belong to tasks made here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from turnlog.store.protocol import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from asyncpg import Connection

    from turnlog.store.postgres.accounts import Accounts

W = TypeVar("W")
A = TypeVar("A")
W_contra = TypeVar("W_contra", contravariant=True)
A_co = TypeVar("A_co", covariant=True)
T = TypeVar("T")

MOST_CALLERS = 64
MOST_ROWS = 2000
"""What one statement fetches, so that whoever wants much does not hold up who wants little."""


class Alone(NamedTuple):
    """In the place of an answer: it would have taken too much of a statement shared with others; ask for it alone."""


ALONE = Alone()


class Kind(Protocol[W_contra, A_co]):
    """A kind of read: what each of ``wanted`` comes to, in their order, found with one statement."""

    async def __call__(
        self, connection: Connection, accounts: Accounts, wanted: Sequence[W_contra]
    ) -> Sequence[A_co | Alone]:
        """One answer each."""


class _Ask(NamedTuple):
    asked_at: float
    wanted: Any
    rows: int
    answer: asyncio.Future[Any]


class Gatherer:
    """Up to ``size`` statements at a time. ``read`` carries one out: what its callers wanted, in their order.

    A statement goes out at the end of the turn of the event loop in which its first caller came, with all others of
    that turn; while ``size`` are under way, callers gather for the next one. Whoever waits for ``patience_s`` without
    being part of one is refused with StoreUnavailableError. An error of a statement reaches each of its callers; where
    it is no word of the store's, each is asked for alone first, so that it reaches only the one that it is about.
    """

    def __init__(
        self, read: Callable[[Any, Sequence[Any]], Coroutine[Any, Any, Sequence[Any]]], *, size: int, patience_s: float
    ) -> None:
        self._read = read
        self._free = size
        self._patience_s = patience_s
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[Kind[Any, Any], deque[_Ask]] = {}
        self._working: set[asyncio.Task[None]] = set()
        self._beginning = False
        self._refusing: asyncio.TimerHandle | None = None

    async def ask(self, kind: Kind[W, A], wanted: W, rows: int = 1) -> A:
        """What ``wanted`` comes to, which is ``rows`` rows at most. Raises StoreUnavailableError."""
        answer = self._loop.create_future()
        waiting = self._waiting.get(kind)
        if waiting is None:
            waiting = self._waiting[kind] = deque()
        waiting.append(_Ask(self._loop.time(), wanted, rows, answer))
        self._begin()
        try:
            return await answer  # type: ignore[no-any-return] # the kind says what it is
        except BaseException:
            answer.cancel()  # where the caller ends before its answer, nobody is told of it
            raise

    def _begin(self) -> None:
        """Have a task look for who waits, at the end of this turn of the loop, unless one will or all are busy."""
        if self._free and not self._beginning:
            self._free -= 1
            self._beginning = True
            task = self._loop.create_task(self._work())
            self._working.add(task)
            task.add_done_callback(self._working.discard)
        elif self._refusing is None:
            self._refuse_late()

    async def _work(self) -> None:
        self._beginning = False
        try:
            while (kind := self._oldest()) is not None:
                asks = self._next(self._waiting[kind])
                if self._oldest() is not None:
                    self._begin()
                await self._carry_out(kind, asks)
        finally:
            self._free += 1

    def _oldest(self) -> Kind[Any, Any] | None:
        """The kind whose first caller has waited longest."""
        kinds = [(waiting[0].asked_at, kind) for kind, waiting in self._waiting.items() if waiting]
        return min(kinds, key=lambda one: one[0])[1] if kinds else None

    def _next(self, waiting: deque[_Ask]) -> list[_Ask]:
        """Those who have waited longest and fit one statement."""
        asks: list[_Ask] = []
        rows = 0
        while waiting and len(asks) < MOST_CALLERS:
            rows += waiting[0].rows
            if asks and rows > MOST_ROWS:
                break
            asks.append(waiting.popleft())
        return asks

    async def _carry_out(self, kind: Kind[Any, Any], asks: Sequence[_Ask]) -> None:
        asks = [ask for ask in asks if not ask.answer.done()]
        if not asks:
            return
        alone: Sequence[_Ask] = ()
        try:
            answers = await self._read(kind, [ask.wanted for ask in asks])
        except StoreUnavailableError as error:
            for ask in asks:
                _refuse(ask, str(error), error)
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked for
            if len(asks) > 1:
                alone = asks
            elif not asks[0].answer.done():
                asks[0].answer.set_exception(error)
        except BaseException:
            for ask in asks:
                ask.answer.cancel()
            raise
        else:
            alone = [ask for ask, answer in zip(asks, answers, strict=True) if not _settle(ask, answer)]
        for ask in alone:
            await self._carry_out(kind, [ask])

    def _refuse_late(self) -> None:
        """Refuse those who have waited too long, and look again when the next one will have."""
        self._refusing = None
        now = self._loop.time()
        for waiting in self._waiting.values():
            while waiting and waiting[0].asked_at + self._patience_s <= now:
                _refuse(waiting.popleft(), "every connection to the database is in use", None)
        oldest = self._oldest()
        if oldest is not None:
            self._refusing = self._loop.call_at(self._waiting[oldest][0].asked_at + self._patience_s, self._refuse_late)

    async def close(self) -> None:
        """Once the connections are closed: wait until every caller has been told."""
        while self._working:
            await asyncio.wait(self._working)
        if self._refusing is not None:
            self._refusing.cancel()


def _settle(ask: _Ask, answer: object) -> bool:
    """Whether that was an answer."""
    if answer is ALONE:
        return False
    if not ask.answer.done():
        ask.answer.set_result(answer)
    return True


def _refuse(ask: _Ask, why: str, cause: BaseException | None) -> None:
    """Each caller gets an error of its own: an error that is raised in many places collects the traces of all."""
    if not ask.answer.done():
        error = StoreUnavailableError(why)
        error.__cause__ = cause
        ask.answer.set_exception(error)


async def in_a_task(work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` comes to, for a caller that need not be a task; it ends with the caller."""
    task = asyncio.get_running_loop().create_task(work)
    try:
        return await task
    except BaseException:
        task.cancel()
        raise
