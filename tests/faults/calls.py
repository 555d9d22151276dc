"""C02 and D04: every write and sync system call of a fixed workload, failed once, or its caller killed there.

The calls are those that reach the file system (tests/faults/filesystem.py) from whatever thread of the server or of its
workers. What its caller was told of each request is held against what is there in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import apsw

from tests.faults.disk import Disk
from tests.faults.ledger import Entry
from tests.faults.nursery import Quick, small_checkpoints
from tests.faults.tracing import Rule
from tests.harness import V1, Key, conversation, make_key, wait_for
from tests.history import TIMESTAMP, Caller, Request, check, log_problems, read_listings

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.faults.nursery import Changes

FAULTS: dict[str, Rule] = {
    "EIO": Rule(times=1, error=errno.EIO),
    "ENOSPC": Rule(times=1, error=errno.ENOSPC),
    "kill": Rule(times=1, kill=True),
}
_CHECKPOINT_PAGES = 20
_PATIENCE_S = 30.0
_SURE = 3
"""So many positions behind the last call that was met are tried: threads take turns in no fixed order."""


@dataclass
class Workload:
    """A few requests of every kind that records, one after the other, and what came of each attempt."""

    port: int
    key: Key
    conversation: str
    requests: list[Request] = field(default_factory=list)
    codes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    async def run(self) -> None:
        """Every request until it is answered for good; only those with a key are sent again after a doubt."""
        caller = Caller(self.port, self.key.headers)
        try:
            body = conversation("c", agent={"externalId": "bob"})
            await self._settle(caller, Request(1, "", ()), f"{V1}/conversations", body)
            await self._record(caller, 1, "k1")
            await self._record(caller, 1, None)
            await self._record(caller, 3, "k2")
            await self._record(caller, 1, "k3", "x" * 20_000)
            await self._settle(caller, Request(1, "", ()), f"{V1}/conversations", conversation("d"))
            await self._record(caller, 1, "k4")
        finally:
            await caller.close()

    async def _record(self, caller: Caller, count: int, key: str | None, padding: str = "") -> None:
        texts = tuple(f"{len(self.requests)}-{number} {padding}" for number in range(count))
        request = Request(1, self.conversation, texts, key)
        self.requests.append(request)
        sender = {"role": "agent", "externalId": "a"}
        bodies = [{"text": text, "sender": sender, "timestamp": TIMESTAMP} for text in texts]
        path = f"{V1}/conversations/{self.conversation}/messages"
        if count == 1:
            await self._settle(caller, request, path, bodies[0])
        else:
            await self._settle(caller, request, f"{path}/batch", {"messages": bodies})

    async def _settle(self, caller: Caller, request: Request, path: str, body: dict[str, Any]) -> None:
        deadline_s = time.monotonic() + _PATIENCE_S
        doubtful = False
        while time.monotonic() < deadline_s:
            try:
                status, answer = await caller.ask("POST", path, body, request.key)
            except (OSError, EOFError):
                status, answer = 0, {}
            if status == 200:
                request.outcome = "acknowledged"
                request.ids = tuple(answer.get("ids") or filter(None, [answer.get("id")]))
                return
            code = answer["error"]["code"] if status else "cut off"
            self.codes[code] += 1
            if code not in ("503-01", "503-02", "cut off"):
                break
            doubtful |= code != "503-01"
            if doubtful and request.texts and request.key is None:
                return  # nobody knows
        self.problems.append(f"{path}: no good answer, but {dict(self.codes)}")


@dataclass
class _Found:
    """What one run came to."""

    hit: str = ""
    """The call that was failed; empty where there was none at that position."""
    problems: list[str] = field(default_factory=list)


class Calls:
    """The runs, all on one file system."""

    def __init__(self, disk: Disk, changes: Changes = ()) -> None:
        self._disk = disk
        self._changes: Changes = (partial(small_checkpoints, _CHECKPOINT_PAGES), *changes)
        with self._server() as server:
            assert server.listens(), server.said
            self._key = make_key(disk.url, "tests")
            self._conversation = asyncio.run(self._made(server.port))
            assert server.stop() == 0, server.said
        self._files = disk.files()

    def _server(self) -> Quick:
        return Quick(self._disk.url, changes=self._changes)

    async def _made(self, port: int) -> str:
        caller = Caller(port, self._key.headers)
        try:
            while True:
                status, answer = await caller.ask("POST", f"{V1}/conversations", conversation("c"))
                if status != 401:  # the new key is known by now
                    return str(answer["id"])
        finally:
            await caller.close()

    def making(self, fault: Rule, position: int) -> _Found:
        """A store is made, with the fault at that call; whatever that comes to, the next start finds a store."""
        self._disk.put({})
        rule = Rule(skip=position, times=1, error=fault.error, kill=fault.kill)
        self._disk.rule(rule)
        with self._server() as server:
            server.listens()
            server.stop()
        found = _Found(self._hit(position))
        self._disk.rule(Rule(times=0))
        with self._server() as server:
            if not server.listens():
                found.problems.append(f"it does not open: {server.said}")
            server.stop()
        found.problems += self._stored()
        return found

    def recording(self, fault: Rule, position: int) -> _Found:
        """The workload and a stop, with the fault at that call; the caller goes on with whoever answers."""
        self._disk.put(self._files)
        with self._server() as server:
            assert server.listens(), server.said
            load = Workload(server.port, self._key, self._conversation)
            self._disk.rule(Rule(skip=position, times=1, error=fault.error, kill=fault.kill))
            asyncio.run(load.run())
            hit_before_the_stop = self._hit(position)
            if hit_before_the_stop and _must_fall(fault, hit_before_the_stop):  # perhaps beside the requests
                with contextlib.suppress(AssertionError):
                    wait_for(lambda: server.events("worker_ended"))
            ended = server.events("worker_ended")
            server.stop()
        found = _Found(self._hit(position), load.problems)
        if hit_before_the_stop:
            found.problems += _reaction(fault, hit_before_the_stop, load.codes, fell=bool(ended))
        found.problems += self._inv(load) + self._stored()
        return found

    def _hit(self, position: int) -> str:
        met = self._disk.met()
        return met[position] if position < len(met) else ""

    def _inv(self, load: Workload) -> list[str]:
        """After one more start: everything is there once, and a retry gets its first id."""
        self._disk.rule(Rule(times=0))
        with self._server() as server:
            if not server.listens():
                return [f"it does not open: {server.said}"]
            return asyncio.run(_held(server.port, load))

    def _stored(self) -> list[str]:
        connection = apsw.Connection(str(self._disk.folder / "turnlog.db"))
        try:
            found = connection.pragma("integrity_check")
        finally:
            connection.close()
        return ([] if found == "ok" else [f"integrity_check: {found}"]) + log_problems(self._disk.url)


async def _held(port: int, load: Workload) -> list[str]:
    caller = Caller(port, load.key.headers)
    try:
        problems = check(load.requests, await read_listings(caller, [load.conversation], page=1000))
    finally:
        await caller.close()
    again = Workload(port, load.key, load.conversation)
    await again.run()
    for first, second in zip(load.requests, again.requests, strict=True):
        if first.key is not None and first.outcome == "acknowledged" and second.ids != first.ids:
            problems.append(f"another answer to a retry: {second.ids} for {first.ids}")
    return problems


def _must_fall(fault: Rule, hit: str) -> bool:
    """Whether the worker may not go on after this."""
    return fault.kill or hit in ("sync turnlog.db", "sync turnlog.db-wal")


def _reaction(fault: Rule, hit: str, codes: Counter[str], *, fell: bool) -> list[str]:
    """What is wrong with how the server took the fault, for whoever it was serving at the time."""
    kind, _, name = hit.partition(" ")
    told = f"{hit}: callers were told {dict(codes)}"
    data = name in ("turnlog.db", "turnlog.db-wal")
    if fault.kill:
        return [] if fell and set(codes) <= {"cut off"} else [f"{told} when the worker was killed; ended: {fell}"]
    if _must_fall(fault, hit) and not fell:
        return [f"{told}: no fail stop after a failed sync"]
    if data and kind == "write" and fault.error == errno.ENOSPC and (fell or set(codes) - {"503-01"}):
        return [f"{told} for a full disk, expected 503-01; ended: {fell}"]
    return []


def positions(step: int, first: int = 0) -> Iterator[int]:
    """Every position from ``first`` on, or one of so many."""
    return itertools.count(first, step)


def every_call(folder: Path, *, step: int = 1, changes: Changes = (), faults: Iterable[str] = tuple(FAULTS)) -> Entry:
    """Every call of making a store and of the workload, or one of ``step``, with each fault.

    ``changes`` are carried out in the server before it begins.
    """
    problems: list[str] = []
    hits: Counter[str] = Counter()
    runs = 0
    with Disk(folder) as disk:
        calls = Calls(disk, changes)
        for act, (number, name) in itertools.product((calls.making, calls.recording), enumerate(faults)):
            missed = 0
            for position in positions(step, number * step // len(FAULTS)):
                found = act(FAULTS[name], position)
                missed = 0 if found.hit else missed + 1
                if missed == _SURE:
                    break
                runs += bool(found.hit)
                hits[found.hit] += bool(found.hit)
                where = f"{name} at call {position} of {act.__name__}, {found.hit or 'none'}"
                problems += [f"{where}: {problem}" for problem in found.problems]
    figures: dict[str, int | float | str] = {"positions x faults": runs, "kinds of calls": len(+hits)}
    invalid = "" if runs else "no call was met"
    return Entry("C02 D04 faults at system calls", "sqlite", figures, tuple(problems), invalid)
