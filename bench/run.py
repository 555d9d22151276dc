"""A whole run: everybody starts, the scenarios take turns round after round, what was held is counted at the end."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

import apsw
import msgspec

from bench import load, seed, servers
from bench.long_list import growth_mb, stream_beside_others
from bench.requests import LONG
from bench.results import Held, Results, Round
from bench.scenarios import CONTESTANTS, FULL, HALF, SCENARIOS
from bench.taking_part import Grounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.servers import Database
    from bench.taking_part import Runner

WORKERS = 4
_WARM_UP_S = 1
_PACKAGES = ("turnlog", "uvicorn", "httptools", "uvloop", "msgspec", "apsw", "asyncpg", "fastapi", "pydantic",
             "sqlalchemy", "aiosqlite")  # fmt: skip
_SAMPLED = 20
_STARTS = 3


class Plan:
    """How much of it: rounds, seconds of each turn, messages stored before, and whether only the quick scenarios."""

    def __init__(self, rounds: int, seconds: int, stored: int, *, quick: bool) -> None:
        self.there = seed.plan(stored)  # ends the program where it cannot be so many
        self.rounds, self.seconds, self.stored, self.quick = rounds, seconds, stored, quick

    def turns(self) -> Iterator[tuple[str, str]]:
        """Contestants and scenarios, what is to be compared side by side."""
        taken = {name: one.quick if self.quick else one.scenarios for name, one in CONTESTANTS.items()}
        for scenario in SCENARIOS:
            yield from ((name, scenario) for name, scenarios in taken.items() if scenario in scenarios)


class HalfLoad:
    """The pause with which the connections ask half as much as they can; it follows what they are seen to do."""

    def __init__(self) -> None:
        self._full: list[float] = []
        self._correction_ms = 0.0

    def _wanted_ms(self) -> float:
        """From one request of a connection to its next."""
        return 1000 * SCENARIOS[HALF].connections / (median(self._full) / 2)

    def saw_full(self, per_s: float) -> None:
        self._full.append(per_s)

    def saw_half(self, per_s: float) -> None:
        self._correction_ms += self._wanted_ms() - 1000 * SCENARIOS[HALF].connections / per_s

    def pause_ms(self) -> float:
        return max(0.1, self._wanted_ms() + self._correction_ms)


class Run:
    """The turns of one run."""

    def __init__(self, grounds: Grounds, database: servers.Process, results: Results) -> None:
        self._grounds = grounds
        self._database = database
        self._results = results
        self._half = HalfLoad()
        self.runners: dict[str, Runner] = {}

    def start(self, plan: Plan) -> None:
        """Start everybody."""
        grounds = self._grounds
        for name in CONTESTANTS:
            if name.startswith("raw"):
                continue
            tell(f"starting: {name}")
            if name == "empty":
                runner = grounds.start_empty()
            elif name.startswith("textbook"):
                runner = grounds.start_textbook(name)
            elif name == "sqlite-stored":
                runner = grounds.start_stored(name, plan.stored)
            else:
                runner = grounds.start_turnlog(name, *(("--workers", str(WORKERS)) if name == "postgresql-4" else ()))
            self.runners[name] = runner
            server = runner.server
            self._results.held[name] = Held(server.start_s, server.rest_mb)
        self._raw = {name: grounds.new_store(name).url for name in CONTESTANTS if name.startswith("raw")}

    def _processes(self) -> list[servers.Process]:
        return [self._database, *(runner.server.process for runner in self.runners.values())]

    def turn(self, contestant: str, scenario: str, seconds: int, *, keep: bool) -> None:
        """One turn, once nobody works on what is over."""
        servers.settle(self._processes())
        if contestant in self._raw:
            found = self._insert(self._raw[contestant], seconds)
        else:
            found = self._ask(self.runners[contestant], scenario, seconds)
        if contestant == "sqlite" and scenario == FULL:
            self._half.saw_full(found.per_s)
        if scenario == HALF:
            self._half.saw_half(found.per_s)
        if keep:
            self._results.rounds.setdefault(contestant, {}).setdefault(scenario, []).append(found)

    def _insert(self, url: str, seconds: int) -> Round:
        command = [sys.executable, "-m", "bench.raw", url, str(seconds)]
        done = subprocess.run(command, env=servers.ENVIRONMENT, capture_output=True, text=True, check=True)
        return _round(load.told(done.stdout, "raw"))

    def _ask(self, runner: Runner, name: str, seconds: int) -> Round:
        scenario, process = SCENARIOS[name], runner.server.process
        pause_ms = self._half.pause_ms() if name == HALF else 0
        everybody = servers.Everybody()
        before, database_before = process.cpu_s(), self._database.cpu_s()
        found = load.measure(
            runner.server.base, scenario.connections, seconds, runner.folder / scenario.requests, pause_ms
        )
        server_cpu_s, database_cpu_s = process.cpu_s() - before, self._database.cpu_s() - database_before
        return _round(
            found,
            server_cpu_s,
            database_cpu_s if "postgresql" in runner.name else None,
            everybody.others_share(server_cpu_s + database_cpu_s),
        )

    def end(self) -> None:
        """What the servers have held; they still run."""
        for name, runner in self.runners.items():
            self._results.held[name].peak_mb = runner.server.process.peak_mb()
        self._results.field_bytes = _field_bytes(self.runners["sqlite"])


def _round(found: load.Load, *more: float | None) -> Round:
    return Round(*msgspec.structs.astuple(found), *(None if one is None else round(one, 4) for one in more))


def _field_bytes(runner: Runner) -> float:
    """The bytes of a message's own fields in UTF-8, as the read operation gives them; the mean of many."""

    def size(item: dict[str, Any]) -> int:
        sender = item["sender"]
        fields = (item["messageId"], item["text"], sender["role"], sender["externalId"], item["createdTimestamp"],
                  item["clientTimestamp"])  # fmt: skip
        return sum(len(field.encode()) for field in fields)

    with runner.client() as client:
        sizes: list[int] = []
        for n in range(_SAMPLED):
            path = f"/conversation/v1/conversation/messages?externalId=call-{n}&limit={LONG}"
            sizes += map(size, client.get(path).raise_for_status().json()["items"])
    return float(mean(sizes))


def machine(folder: Path) -> dict[str, str]:
    """What the figures are seen on. On tmpfs a sync costs nothing, so the kind of file system is said too."""
    model = Path("/proc/cpuinfo").read_text("utf-8").partition("model name")[2].partition("\n")[0].strip("\t :")
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    kind = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    memory_kib = int(Path("/proc/meminfo").read_text("ascii").partition("MemTotal:")[2].split()[0])
    return {
        "processor": f"{os.cpu_count()} x {model or platform.machine()}",
        "memory": f"{memory_kib / 1024**2:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}",
        "file system": kind,
    }


def versions(database: Database) -> dict[str, str]:
    """Of everything that takes part."""
    found = {"Python": platform.python_version()} | {name: version(name) for name in _PACKAGES}
    return found | {
        "SQLite": apsw.sqlite_lib_version(),
        "PostgreSQL": database.version().partition(" ")[0],
        "wrk": load.wrk_version(),
    }


def tell(text: str) -> None:
    """Say how far it is."""
    print(text, file=sys.stderr, flush=True)


def run(folder: Path, plan: Plan) -> Results:
    """The whole benchmark; the SQLite files are made in ``folder``."""
    with servers.postgresql() as database:
        results = Results(machine(folder), versions(database), plan.rounds, plan.seconds, plan.stored)
        with contextlib.ExitStack() as running:
            grounds = Grounds(folder, database, running)
            one = Run(grounds, database.process, results)
            one.start(plan)
            turns = list(plan.turns())
            for number in range(plan.rounds + 1):
                tell(f"round {number} of {plan.rounds}" if number else "warming up")
                for contestant, scenario in turns:
                    one.turn(contestant, scenario, plan.seconds if number else _WARM_UP_S, keep=number > 0)
            one.end()
            tell("the long list")
            results.long_list = stream_beside_others(
                one.runners["sqlite-stored"], plan.there.long, plan.seconds, plan.rounds
            )
        for _ in range(_STARTS):
            with contextlib.ExitStack() as running:
                again = Grounds(folder, None, running).start_again(one.runners["sqlite-stored"])
                results.long_list.growth_mb.append(growth_mb(again))
        for name, runner in one.runners.items():
            if (stored := grounds.stored(runner)) is not None:
                results.held[name].messages, results.held[name].disk_bytes = stored
    return results
