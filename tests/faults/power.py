"""D01 and D03: power cuts. The real server records on a file system that knows what was synced; then come the cuts.

Each is an instant of the run: the image of the disk as it may be then (tests/faults/images.py) is held against what
had been acknowledged by then, on the clock that both share, by a server that is started on the image.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw

from tests.faults.bugs import synchronous_normal
from tests.faults.disk import Disk
from tests.faults.images import forgotten, image, torn
from tests.faults.ledger import Entry
from tests.faults.nursery import Quick
from tests.faults.tracing import Rule
from tests.harness import V1, Key, conversation, make_key
from tests.history import TIMESTAMP, Caller, Load, Request, check, log_problems, read_listings
from tests.older import KEY, NEWEST, old_store

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence

    from tests.faults.nursery import Changes
    from tests.faults.tracing import Trace

    # What is done to a server while it is being called.
    Meanwhile = Callable[[Disk, "TimedLoad"], Awaitable[None]]

CONVERSATIONS = 3
RETRIED = 8
"""Acknowledged requests that are sent again after a cut, the last ones before it."""


class TimedLoad(Load):
    """The load of tests/history.py with the instant of each acknowledgement; texts are ``padding`` longer."""

    def __init__(
        self, port: int, headers: Mapping[str, str], conversations: list[str], seed: int, *, padding: int = 0
    ) -> None:
        super().__init__(port, headers, conversations, seed)
        self.at_ns: dict[int, int] = {}
        """When a request was acknowledged, by its ``id()``."""
        self._seeded, self._padding = seed, padding
        self.port, self.headers, self.conversations = port, headers, conversations

    def _request(self, number: int, count: int, chance: random.Random) -> Request:
        request = super()._request(number, count, chance)
        request.texts = tuple(f"{self._seeded} {text}{'x' * self._padding}" for text in request.texts)
        request.key = request.key and f"{self._seeded}-{request.key}"
        return request

    async def _send(self, caller: Caller, request: Request) -> None:
        await super()._send(caller, request)
        if request.outcome == "acknowledged":
            self.at_ns.setdefault(id(request), time.monotonic_ns())


@dataclass
class Known:
    """What callers know at some instant."""

    key: Key | None = None
    conversations: list[str] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)

    @property
    def acknowledged(self) -> list[Request]:
        return [request for request in self.requests if request.outcome == "acknowledged"]


@dataclass
class Run:
    """One life of a server: what its disk saw, and what its callers knew when."""

    trace: Trace
    before: Known
    key: Key
    key_at_ns: int
    conversations: list[tuple[str, int]]
    load: TimedLoad
    failures: list[str]
    """What it said of failed stores and of workers that ended by themselves."""

    def known(self, at_ns: int) -> Known:
        """What was known at the instant, beside what was known before this life."""
        requests = [
            replace(request, outcome="unknown", ids=())
            if request.outcome == "acknowledged" and self.load.at_ns[id(request)] > at_ns
            else request
            for request in self.load.history.requests
        ]
        made = [name for name, made_at_ns in self.conversations if made_at_ns <= at_ns]
        key = self.before.key or (self.key if self.key_at_ns <= at_ns else None)
        return Known(key, self.before.conversations + made, self.before.requests + requests)


@dataclass(frozen=True)
class Life:
    """How a server lives: who calls it, what happens meanwhile, and what is changed in it before it begins."""

    seed: int
    meanwhile: Meanwhile
    connections: int = 6
    padding: int = 0
    changes: Changes = ()


def for_a_while(seconds: float) -> Meanwhile:
    """Nothing but the load."""
    return lambda _disk, _load: asyncio.sleep(seconds)


def until_folded(times: int) -> Meanwhile:
    """Nothing but the load, until the database was synced so often: each time is a checkpoint."""

    async def meanwhile(disk: Disk, load: TimedLoad) -> None:
        await asyncio.to_thread(disk.rule, Rule(("sync",), r"turnlog\.db", times=0))
        async with asyncio.timeout(300):
            while len(await asyncio.to_thread(disk.met)) < times:
                load.want(5)
                await load.acknowledged.wait()

    return meanwhile


def live(folder: Path, files: Mapping[str, bytes], before: Known, life: Life) -> Run:
    """Have a server record, beginning with ``files``; it is stopped in every second life, else killed."""

    async def record(disk: Disk, port: int, key: Key) -> tuple[list[tuple[str, int]], TimedLoad]:
        caller = Caller(port, key.headers)
        made = []
        for number in range(CONVERSATIONS):
            answer = await _accepted(caller, conversation(f"{life.seed}-{number}"))
            made.append((str(answer["id"]), time.monotonic_ns()))
        await caller.close()
        load = TimedLoad(port, key.headers, [name for name, _ in made], life.seed, padding=life.padding)
        load.up.set()
        running = asyncio.create_task(load.run(life.connections))
        await life.meanwhile(disk, load)
        load.stopping = True
        await asyncio.wait_for(running, 60)
        return made, load

    with Disk(folder, files) as disk:
        with Quick(disk.url, changes=life.changes) as server:
            assert server.listens(), server.said
            key = before.key or make_key(disk.url, "tests")
            key_at_ns = time.monotonic_ns()
            made, load = asyncio.run(record(disk, server.port, key))
            if life.seed % 2:
                assert server.stop() == 0, server.said
            failures = [str(event) for name in ("store_failed", "worker_ended") for event in server.events(name)]
        return Run(disk.trace(), before, key, key_at_ns, made, load, failures)


async def _accepted(caller: Caller, body: dict[str, Any]) -> dict[str, Any]:
    """The answer to a new conversation, once the server knows the new key."""
    deadline_s = time.monotonic() + 20
    while True:
        status, answer = await caller.ask("POST", f"{V1}/conversations", body)
        if status == 200:
            return dict(answer)
        assert status == 401, answer
        assert time.monotonic() < deadline_s, "the key was not accepted"


def folding(trace: Trace) -> list[int]:
    """Where the database itself is written or synced: in WAL mode those are checkpoints."""
    names = {inode: name for name, inode in trace.names.items()}
    names |= {change.inode: change.name for change in trace.changes if change.kind == "link"}
    return [place for place, change in enumerate(trace.changes) if names.get(change.inode) == "turnlog.db"]


def places(trace: Trace, chance: random.Random, count: int) -> Iterator[int]:
    """Where to cut: behind any change, and as often behind one of a checkpoint."""
    in_checkpoints = folding(trace)
    for number in range(count):
        if number % 2 and in_checkpoints:
            yield chance.choice(in_checkpoints) + 1
        else:
            yield chance.randint(1, len(trace.changes))


def cut_problems(files: Mapping[str, bytes], known: Known) -> list[str]:
    """What is wrong with a disk, for somebody who knows so much, once a server has been started on it."""
    folder = Path(tempfile.mkdtemp(prefix="turnlog-cut-"))
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        url = f"sqlite:///{folder / 'turnlog.db'}"
        with Quick(url) as server:
            if not server.listens():
                return [f"it does not open: {server.said}"]
            problems = asyncio.run(_told(server.port, known))
        connection = apsw.Connection(str(folder / "turnlog.db"))
        try:
            found = connection.pragma("integrity_check")
        finally:
            connection.close()
        problems += [] if found == "ok" else [f"integrity_check: {found}"]
        return problems + log_problems(url)
    finally:
        shutil.rmtree(folder)


async def _told(port: int, known: Known) -> list[str]:
    if known.key is None:
        return []
    caller = Caller(port, known.key.headers)
    try:
        status, _ = await caller.ask("GET", "/v1/health")
        if status != 200:
            return [f"lost: the key; health answers {status}"]
        for name in known.conversations:
            status, _ = await caller.ask("GET", f"{V1}/conversations/{name}")
            if status != 200:
                return [f"lost: the conversation {name}; {status}"]
        listings = await read_listings(caller, known.conversations, page=1000)
        problems = check(known.requests, listings)
        keyed = [request for request in known.acknowledged if request.key is not None]
        for request in keyed[-RETRIED:]:
            status, answer = await caller.ask("POST", *_as_sent(request), request.key)
            ids = tuple(answer.get("ids", [answer.get("id")]))
            if status != 200 or ids != request.ids:
                problems.append(f"another answer to a retry: {status} {ids} for {request.ids}")
        return problems
    finally:
        await caller.close()


def _as_sent(request: Request) -> tuple[str, Any]:
    sender = {"role": "agent", "externalId": "a"}
    bodies = [{"text": text, "sender": sender, "timestamp": TIMESTAMP} for text in request.texts]
    path = f"{V1}/conversations/{request.conversation}/messages"
    return (path, bodies[0]) if len(bodies) == 1 else (f"{path}/batch", {"messages": bodies})


@dataclass
class _Tally:
    cuts: int = 0
    busy: int = 0
    """Cuts that hit a request without an answer."""
    in_checkpoints: int = 0
    acknowledged: int = 0
    """Messages, looked for after each cut anew."""
    flagged: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, place: str, known: Known, problems: Sequence[str]) -> None:
        self.cuts += 1
        self.busy += any(request.outcome == "unknown" for request in known.requests)
        self.acknowledged += sum(len(request.texts) for request in known.acknowledged)
        self.flagged += bool(problems)
        self.problems += [f"{place}: {problem}" for problem in problems[:3]]

    def entry(self, measure: str) -> Entry:
        figures: dict[str, int | float | str] = {
            "cuts": self.cuts,
            "at a busy moment": self.busy,
            "in a checkpoint": self.in_checkpoints,
            "messages looked for": self.acknowledged,
            "cuts with a loss": self.flagged,
        }
        return Entry(measure, "sqlite", figures, tuple(self.problems))


def power_cuts(
    folder: Path,
    *,
    lives: int,
    cuts: int,
    seconds: float = 1.0,
    meanwhile: Meanwhile | None = None,
    seed: int = 1,
    changes: Changes = (),
    padding: int = 0,
    to_the_first: bool = False,
    measure: str = "D01 D03 power cut, torn writes",
) -> Entry:
    """So many lives of a server with so many cuts in each; every life begins with what a cut has left of the last.

    Each lasts as long as ``meanwhile``, or so many seconds; ``changes`` and ``padding`` as in ``Life``. The run ends
    with the first thing that is wrong, where that is asked for.
    """
    chance = random.Random(seed)  # noqa: S311 - a repeatable run, not a secret
    tally = _Tally()
    files: dict[str, bytes] = {}
    known = Known()
    for number in range(lives):
        life = Life(seed * 1000 + number, meanwhile or for_a_while(seconds), padding=padding, changes=changes)
        run = live(folder, files, known, life)
        in_checkpoints = {place + 1 for place in folding(run.trace)}
        for place in places(run.trace, chance, cuts):
            left = image(run.trace, place, chance.choice((forgotten, torn(chance))))
            known_then = run.known(instant_ns(run.trace, place))
            tally.add(f"seed {seed}, life {number}, cut {place}", known_then, cut_problems(left, known_then))
            tally.in_checkpoints += place in in_checkpoints and bool(known_then.acknowledged)
            if tally.flagged and to_the_first:
                break
            if known_then.key is not None:
                files, known = left, known_then
    entry = tally.entry(measure)
    busy = tally.acknowledged and tally.busy and tally.in_checkpoints
    return entry if busy else replace(entry, invalid="nothing was acknowledged, or no cut hit a busy moment")


def power_cuts_of_a_large_wal(folder: Path, *, lives: int, cuts: int) -> Entry:
    """The same with the WAL as a user has it, which is folded into the database after 8 MiB, by larger messages."""
    measure = "D01 D03 power cut, torn writes, WAL of 8 MiB"
    return power_cuts(
        folder, lives=lives, cuts=cuts, meanwhile=until_folded(3), seed=2, padding=30_000, measure=measure
    )


def instant_ns(trace: Trace, cut: int) -> int:
    """The last instant at which no more than the first ``cut`` changes had happened."""
    return trace.changes[cut].at_ns - 1 if cut < len(trace.changes) else 1 << 62


def start_cuts(folder: Path, *, cuts: int, seed: int = 1) -> Entry:
    """As many cuts while a store is made, and while one of each earlier schema is migrated: U01, too."""
    chance = random.Random(seed)  # noqa: S311 - a repeatable run, not a secret
    tally = _Tally()
    for version in range(NEWEST):
        files, known = _before(version)
        with Disk(folder, files) as disk:
            with Quick(disk.url) as server:
                assert server.listens(), server.said
            trace = disk.trace()
        for place in sorted(chance.sample(range(1, len(trace.changes)), cuts)):
            left = image(trace, place, chance.choice((forgotten, torn(chance))))
            tally.add(f"seed {seed}, from schema {version}, cut {place}", known, cut_problems(left, known))
    return tally.entry("D01 D03 U01 power cut while a store is made or migrated")


def _before(version: int) -> tuple[dict[str, bytes], Known]:
    """The files of a store of that schema, and what is in it; 0 is none."""
    if not version:
        return {}, Known()
    with tempfile.TemporaryDirectory() as folder:
        old_store(Path(folder), version)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    messages = Request(0, "C1", ("Grüße \x01\U0001f600", "Hello"), None, "acknowledged", ("M1", "M2"))
    return files, Known(KEY, ["C1"], [messages])


def control(folder: Path, *, runs: int, seconds: float = 0.7) -> Entry:
    """A server that does not wait for its disk, so many times: each run must show a loss."""
    found = [
        power_cuts(
            folder,
            lives=1,
            cuts=20,
            meanwhile=for_a_while(seconds),
            seed=run,
            changes=(synchronous_normal,),
            to_the_first=True,
        )
        for run in range(1, runs + 1)
    ]
    flagged = sum(any("lost" in problem for problem in entry.problems) for entry in found)
    figures: dict[str, int | float | str] = {"controls": runs, "flagged": flagged}
    problems = () if flagged == runs else (f"{runs - flagged} controls were not flagged",)
    return Entry("D01 control: synchronous=NORMAL", "sqlite", figures, problems)
