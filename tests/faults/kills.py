"""C01: killed at any instant under load, again and again; nothing acknowledged is lost, doubled, reordered or changed.

What is killed is the worker, the whole server, or the database behind it; or no file can be written any more, and then
all is killed. A fault that nobody felt does not count.
"""

from __future__ import annotations

import asyncio
import os
import random
import resource
import signal
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from tests.faults.checker import Checker, count
from tests.faults.ledger import Entry
from tests.faults.load import Clients
from tests.faults.stalls import file_held
from tests.harness import V1, conversation, make_key, wait_for
from tests.history import Caller, PatientCaller, log_problems
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.site import Site
    from tests.harness import Key, Server
    from tests.postgres import Cluster

Target = Literal["worker", "server", "database", "disk"]
MEASURES: dict[Target, str] = {
    "worker": "C01 kill -9 of the worker under load",
    "server": "C01 kill -9 of parent and worker under load",
    "database": "C01, P02 kill -9 in the database under load",
    "disk": "D04 no file can be written, then kill -9",
}
CONNECTIONS = 16
CONVERSATIONS = 4
PER_ROTATION = 5000
"""Messages that are acknowledged before they are checked, at least."""
SHORT = 10
"""Of so few cycles each is checked at once."""
PATIENCE_S = 60
MOST_PROBLEMS = 20


_STANDSTILL_S = 0.2
_READY = "database system is ready to accept connections"
_WITHOUT_DATABASE = ("outcome_resolved", "outcome_unknown", "store_unavailable")


class Kills:
    """One run against ``server``; ``cluster`` is its database, where it has one of its own."""

    def __init__(self, server: Server, seed: int, target: Target, cluster: Cluster | None) -> None:
        self._server = server
        self._cluster = cluster
        self._target = target
        self._chance = random.Random(seed)  # noqa: S311 - a repeatable run, not a secret
        self._seed = seed
        self._numbers = iter(range(1_000_000))
        self.checker = Checker()
        self.restarts: list[float] = []
        self.cycles = 0
        self.idle = 0
        self.events = 0

    async def run(self, cycles: int, between: tuple[int, int]) -> Clients:
        """Kill so many times, each time after so many messages more were acknowledged; check everything."""
        key = await asyncio.to_thread(make_key, self._server.url, "load", permissions=PERMISSIONS)
        caller = PatientCaller(self._server.port, key.headers)
        await self._first_answer(key)
        names = await self._new_conversations(caller)
        load = Clients(self._server.port, key.headers, names, self._seed)
        load.up.set()
        running = asyncio.create_task(load.run(CONNECTIONS))
        checked = 0
        while self.cycles < cycles and self.idle < max(5, cycles) and not self._is_broken(load):
            await self._cycle(load, key, between)
            if load.messages - checked >= PER_ROTATION or cycles <= SHORT:
                names, checked = await self._rotate(load, caller, names), load.messages
        await self._acknowledged(load, between[0])
        load.stopping = True
        await asyncio.wait_for(running, PATIENCE_S)
        await self.checker.closed(caller, load.history.requests, names)
        self.events = await self.checker.log(caller)
        await caller.close()
        return load

    def _is_broken(self, load: Clients) -> bool:
        return bool(self.checker.problems or load.surprises)

    async def _cycle(self, load: Clients, key: Key, between: tuple[int, int]) -> None:
        await self._acknowledged(load, self._chance.randint(*between))
        if self._chance.random() < 0.5:  # else at once, as the answer comes
            await asyncio.sleep(self._chance.random() * 0.03)
        before, killed_at = self._felt(load), time.perf_counter()
        await self._kill()
        if self._target == "database":
            for _ in range(400):
                if self._felt(load) != before:
                    break
                await asyncio.sleep(0.005)
        await self._first_answer(key)
        if self._target != "database":
            self.restarts.append(time.perf_counter() - killed_at)
        self.cycles += self._felt(load) != before
        self.idle += self._felt(load) == before

    def _felt(self, load: Clients) -> int:
        """Grows with every request that was cut off, and with every batch that had to do without its database."""
        if self._target != "database":
            return load.broken
        lines = list(self._server.log_lines)
        return sum(any(f'"event":"{event}"' in line for event in _WITHOUT_DATABASE) for line in lines)

    async def _kill(self) -> None:
        if self._target == "worker":
            with self._some_time_waiting() as waiting:
                await asyncio.sleep(_STANDSTILL_S if waiting else 0)
                os.kill(self._server.worker_pid, signal.SIGKILL)
        elif self._target == "database":
            assert self._cluster is not None
            await asyncio.to_thread(self._kill_database, self._cluster)
        elif self._target == "disk":
            resource.prlimit(self._server.worker_pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
            await asyncio.sleep(_STANDSTILL_S)
            self._server.kill()
            await asyncio.to_thread(self._server.start)
        else:
            with self._some_time_waiting() as waiting:
                await asyncio.sleep(_STANDSTILL_S if waiting else 0)
                self._server.kill()
            await asyncio.to_thread(self._server.start)

    @contextmanager
    def _some_time_waiting(self) -> Iterator[bool]:
        """C03: in an SQLite store, every third time, all that was asked for waits to be recorded, and is lost."""
        if self._server.url.startswith("sqlite") and self._chance.random() < 0.33:
            with file_held(self._server.url):
                yield True
        else:
            yield False

    def _kill_database(self, cluster: Cluster) -> None:
        """By turns: the whole of it, one process at work in it, every session in it."""
        kind = self._chance.choice(("all", "one", "sessions"))
        ours = "SELECT pid FROM pg_stat_activity WHERE application_name = 'turnlog' ORDER BY query_start DESC"
        if kind == "all":
            cluster.kill()
            cluster.start()
        elif kind == "one":
            ready = cluster.log.read_text("utf-8").count(_READY)
            for (pid,) in cluster.sql(ours)[:1]:
                os.kill(pid, signal.SIGKILL)  # upon which the server ends all others and begins anew
                wait_for(lambda: cluster.log.read_text("utf-8").count(_READY) > ready, PATIENCE_S)
        else:
            cluster.terminate_backends(self._server.url.rpartition("/")[2])

    async def _first_answer(self, key: Key) -> None:
        """Ask until the server answers that it is well."""
        caller = Caller(self._server.port, key.headers)
        until = time.perf_counter() + PATIENCE_S
        while time.perf_counter() < until:
            try:
                status, answer = await caller.ask("GET", "/v1/health")
            except (OSError, EOFError):
                await asyncio.sleep(0.001)
                continue
            if status == 200 and answer["healthCheck"] == "SUCCESS":
                await caller.close()
                return
            await asyncio.sleep(0.005)
        raise AssertionError("the server does not come back")

    async def _acknowledged(self, load: Clients, messages: int) -> None:
        load.want(messages)
        await asyncio.wait_for(load.acknowledged.wait(), PATIENCE_S)

    async def _new_conversations(self, caller: Caller) -> list[str]:
        made = []
        for _ in range(CONVERSATIONS):
            body = conversation(f"c{next(self._numbers)}")
            status, answer = await caller.ask("POST", f"{V1}/conversations", body)
            assert status == 200, answer
            made.append(str(answer["id"]))
        return made

    async def _rotate(self, load: Clients, caller: Caller, names: list[str]) -> list[str]:
        """Go on in new conversations, and check the former ones."""
        new = await self._new_conversations(caller)
        await self.checker.closed(caller, await load.rotate(new), names)
        return new


def kill_under_load(
    site: Site, *, cycles: int, between: tuple[int, int] = (100, 400), seed: int = 1, target: Target = "server"
) -> Entry:
    """Kill ``target`` so often, each time after ``between`` so many messages more were acknowledged."""
    server = site.start()
    kills = Kills(server, seed, target, site.cluster)
    load = asyncio.run(kills.run(cycles, between))
    status = server.stop()
    problems = [*kills.checker.problems, *load.surprises, *log_problems(server.url)]
    problems += [f"exit status: {status} after SIGTERM"] if status else []
    expected = {200, 400, 422} | ({503} if target in ("database", "disk") else set())
    problems += [f"answered {status}: {n} times" for status, n in load.statuses.items() if status not in expected]
    if target in ("worker", "database") and load.turned_away:
        problems.append(f"refused: {load.turned_away} connections, although the listening socket outlives the worker")
    checker = kills.checker
    figures: dict[str, int | float | str] = {
        "cycles": kills.cycles,
        "acknowledged": checker.acknowledged,
        **count(problems),
        "refused requests": checker.refused,
        "unknown requests": load.unknown,
        "retried until acknowledged": load.retried,
        "repeats that got the first ids": load.repeated,
        "events in the log": kills.events,
    }
    if kills.restarts:
        ordered = sorted(kills.restarts)
        figures["kill to first 200, median s"] = round(ordered[len(ordered) // 2], 2)
        figures["kill to first 200, p99 s"] = round(ordered[int(len(ordered) * 0.99)], 2)
    return Entry(
        MEASURES[target], site.store, figures, tuple(problems[:MOST_PROBLEMS]), _invalid(kills, load, cycles, target)
    )


def _invalid(kills: Kills, load: Clients, cycles: int, target: Target) -> str:
    """Why the run proves nothing; empty where it does."""
    if not kills.checker.acknowledged:
        return "nothing was acknowledged"
    if kills.cycles < cycles and not kills.checker.problems:
        return f"{kills.idle} kills hit no busy moment"
    if not kills.checker.refused:
        return "nothing was refused"
    if not load.repeated or (not load.retried and target != "database"):  # the server itself waits for its database
        return "nothing was sent again"
    return ""
