"""The fail-over test: servers of one store under load, whose database dies under them, and comes back elsewhere.

What it is told is how to make the database fail. That it comes back, and that the servers find it without being
restarted, is for the run to see.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.harness import V1, conversation
from tests.history import Caller, History, Load, Request, check, read_listings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from tests.harness import Key, Server
    from tests.history import Listings

SEED = 20211123
CONNECTIONS = 16
CONVERSATIONS = 5
BACK_OFF_S = 0.1
"""How long a caller waits before it asks again: less than Retry-After says, so that the figures are the server's."""
WARM_UP = 200
"""Acknowledgements before a failure."""


@dataclass
class Figures:
    """What a run has shown."""

    history: History = field(default_factory=History)
    first_s: list[float] = field(default_factory=list)
    """By failure: from the death of the primary to the first acknowledgement of a write that was sent after it."""
    all_s: list[float] = field(default_factory=list)
    """The same, until each server had acknowledged one in each account."""
    slowest_s: list[float] = field(default_factory=list)
    """The longest that a caller waited for an answer of any kind."""
    codes: Counter[str] = field(default_factory=Counter)
    """Of the answers that were errors."""
    cut: int = 0
    """Requests whose connection broke."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with what is stored."""

    @property
    def acknowledged(self) -> int:
        """Messages."""
        return sum(len(one.texts) for one in self.history.requests if one.outcome == "acknowledged")

    @property
    def retried(self) -> int:
        """Acknowledged requests that had to be sent more than once."""
        return sum(one.outcome == "acknowledged" and one.attempts > 1 for one in self.history.requests)

    @property
    def lost(self) -> int:
        """Acknowledged messages that are not there, or not as they were."""
        return sum(problem.startswith(("lost", "changed", "misplaced")) for problem in self.problems)

    @property
    def duplicated(self) -> int:
        """Messages that are there more than once."""
        return sum(problem.startswith(("duplicated", "recorded twice")) for problem in self.problems)


class _TimedLoad(Load):
    """A load on one account that knows which server acknowledged what when, and backs off where it is not served."""

    def __init__(
        self, ports: Sequence[int], headers: Mapping[str, str], conversations: list[str], pause_s: float
    ) -> None:
        super().__init__(ports[0], headers, conversations, SEED, others=ports[1:])
        self.conversations = conversations
        self.newest: dict[int, float] = dict.fromkeys(ports, 0.0)
        """By server: when the newest was sent of the writes that it has acknowledged."""
        self.slowest_s = 0.0
        self._pause_s = pause_s

    async def _send(self, caller: Caller, request: Request) -> None:
        sent_at = time.perf_counter()
        await super()._send(caller, request)
        self.slowest_s = max(self.slowest_s, time.perf_counter() - sent_at)
        served = request.outcome == ("acknowledged" if request.good else "refused")
        if request.outcome == "acknowledged":
            self.newest[caller.port] = max(self.newest[caller.port], sent_at)
        await asyncio.sleep(self._pause_s if served else BACK_OFF_S)

    async def listings(self) -> list[Listings]:
        """What each server lists."""
        found = []
        for port in self.newest:
            caller = Caller(port, self._headers)
            found.append(await read_listings(caller, self.conversations, page=1000))
            await caller.close()
        return found


async def _load(ports: Sequence[int], key: Key, pause_s: float) -> _TimedLoad:
    """A load on the key's account, and its conversations."""
    caller = Caller(ports[0], key.headers)
    made = [await caller.ask("POST", f"{V1}/conversations", conversation(f"c{n}")) for n in range(CONVERSATIONS)]
    await caller.close()
    load = _TimedLoad(ports, key.headers, [str(answer["id"]) for _, answer in made], pause_s)
    load.up.set()
    return load


async def run(
    servers: Sequence[Server],
    key: Key,
    fail: Callable[[], float],
    *,
    others: Sequence[Key] = (),
    rounds: int = 1,
    timeout_s: float = 60,
    pause_s: float = 0,
    told: Callable[[str], None] = lambda _: None,
) -> Figures:
    """Let the database of ``servers`` fail under load, ``rounds`` times, and hold what is stored against what was said.

    ``fail`` makes the primary fail and returns the reading of ``time.perf_counter`` when it was dead; it may take its
    time before, as long as the load goes on. Raises TimeoutError where, ``timeout_s`` after that, any server still
    acknowledges nothing in an account. The load is on the account of ``key`` and those of ``others``; each of its
    connections waits ``pause_s`` between two requests. ``told`` hears of each round.
    """
    loads = [await _load([server.port for server in servers], one, pause_s) for one in (key, *others)]
    running = asyncio.gather(*(load.run(max(1, CONNECTIONS // len(loads))) for load in loads))
    figures = Figures()
    try:
        for number in range(1, rounds + 1):
            await _warm_up(loads, timeout_s)
            for load in loads:
                load.slowest_s = 0
            dead_at = await asyncio.to_thread(fail)
            figures.first_s.append(await _acknowledging(loads, any, dead_at, timeout_s))
            figures.all_s.append(await _acknowledging(loads, all, dead_at, timeout_s))
            figures.slowest_s.append(max(load.slowest_s for load in loads))
            told(f"{number}: {figures.first_s[-1]:.2f} s to the first write, {figures.all_s[-1]:.2f} s on every server")
        await _warm_up(loads, timeout_s)
        for load in loads:
            load.stopping = True
        await asyncio.wait_for(running, timeout_s)
    finally:
        running.cancel()
    for load in loads:
        figures.history.requests += load.history.requests
        figures.codes += load.codes
        figures.cut += load.broken
        for listings in await load.listings():
            found = check(load.history.requests, listings)
            figures.problems += [problem for problem in found if problem not in figures.problems]
    return figures


async def _warm_up(loads: Sequence[Load], timeout_s: float) -> None:
    """Wait for some acknowledgements more in every account."""
    for load in loads:
        load.want(WARM_UP // len(loads))
    await asyncio.wait_for(asyncio.gather(*(load.acknowledged.wait() for load in loads)), timeout_s)


async def _acknowledging(
    loads: Sequence[_TimedLoad], how_many: Callable[[Iterable[bool]], bool], since: float, timeout_s: float
) -> float:
    """Wait until any or all servers acknowledge in their accounts what was sent after ``since``; how long that took."""
    while not how_many(sent_at > since for load in loads for sent_at in load.newest.values()):
        if time.perf_counter() > since + timeout_s:
            newest = [{port: round(sent_at - since, 1) for port, sent_at in load.newest.items()} for load in loads]
            raise TimeoutError(
                f"not recorded {timeout_s:.0f} s after the failure; the last, by account, port: {newest}"
            )
        await asyncio.sleep(0.005)
    return time.perf_counter() - since
