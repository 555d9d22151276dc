"""B01: the drill. A backup in the middle of load; restored elsewhere, checked, served, held against what was told."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from bench.seed import seed

from tests.faults.ledger import Entry
from tests.harness import Server, create_conversation, make_key, run_cli
from tests.history import Caller, Load, check, log_problems, read_listings
from tests.stores import path_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.faults.site import Site
    from tests.harness import Key
    from tests.history import Request

MEASURE = "B01 backup under load, restore, check"
CONNECTIONS = 16
CONVERSATIONS = 4
PATIENCE_S = 120
_LOOK_S = 0.02


class _Made(NamedTuple):
    """What is known of a backup: who had been answered when it began, and how it went."""

    before: frozenset[int]
    seconds: float
    during: int
    wal_bytes: int


async def _load(server: Server, key: Key, names: list[str], backup: Path, acknowledged: int) -> tuple[Load, _Made]:
    load = Load(server.port, key.headers, names, seed=1)
    load.up.set()
    running = asyncio.create_task(load.run(CONNECTIONS))
    made = None
    for wanted in (acknowledged, acknowledged // 2):
        load.want(wanted)
        await asyncio.wait_for(load.acknowledged.wait(), PATIENCE_S)
        made = made or await _back_up(server.url, backup, load)
    load.stopping = True
    await asyncio.wait_for(running, PATIENCE_S)
    assert made is not None
    return load, made


async def _back_up(url: str, backup: Path, load: Load) -> _Made:
    before = frozenset(n for n, request in enumerate(load.history.requests) if request.outcome == "acknowledged")
    arguments = ("backup", str(backup), "--store", url, "--json")
    running = asyncio.create_task(asyncio.to_thread(run_cli, *arguments))
    wal, most = path_of(url + "-wal"), 0
    while not running.done():
        with suppress(FileNotFoundError):
            most = max(most, wal.stat().st_size)
        await asyncio.sleep(_LOOK_S)
    done = await running
    assert done.returncode == 0, done.stderr
    during = load.history.count("acknowledged") - len(before)
    return _Made(before, json.loads(done.stdout)["seconds"], during, most)


def _timed(*arguments: str) -> tuple[float, list[str]]:
    """How long a command took, and what it complained of."""
    begun = time.perf_counter()
    done = run_cli(*arguments)
    said = [*done.stdout.splitlines(), *done.stderr.splitlines()] if done.returncode else []
    return time.perf_counter() - begun, [f"turnlog {arguments[0]}: {line}" for line in said]


async def _listings(server: Server, key: Key, names: list[str]) -> dict[str, list[tuple[str, str]]]:
    caller = Caller(server.port, key.headers)
    found = await read_listings(caller, names, 1000)
    await caller.close()
    return found


def _known(requests: list[Request], before: frozenset[int]) -> list[Request]:
    """What callers can ask of the backup: of what came later than its beginning it may have anything."""
    return [
        one if n in before or one.outcome == "refused" else replace(one, outcome="unknown", ids=())
        for n, one in enumerate(requests)
    ]


def drill(site: Site, *, messages: int, acknowledged: int) -> Entry:
    """Back a store of so many messages up after so many acknowledged requests more, and restore it beside."""
    server = site.start()
    key = make_key(server.url, "drill")
    if messages:
        server.stop()
        seed(path_of(server.url), messages)
        server.start()
    with server.client(key) as client:
        names = [create_conversation(client, f"drill-{number}") for number in range(CONVERSATIONS)]
    server.stop()  # so that all of this is in the database, and only what is recorded from now on may be in the WAL
    server.start()
    folder = path_of(server.url).parent / "elsewhere"
    folder.mkdir()
    backup, elsewhere = folder / "backup.db", f"sqlite:///{folder / 'turnlog.db'}"
    load, made = asyncio.run(_load(server, key, names, backup, acknowledged))
    problems = [f"exit status: {status} after SIGTERM" for status in (server.stop(),) if status]
    restored_s, said = _timed("restore", str(backup), "--store", elsewhere)
    problems += said
    checked_s, said = _timed("check", "--store", elsewhere)
    problems += [*said, *log_problems(elsewhere)]
    with Server(elsewhere) as other:
        listings = asyncio.run(_listings(other, key, names))
    problems += check(_known(load.history.requests, made.before), listings)
    figures: dict[str, int | float | str] = {
        "messages stored before": messages,
        "requests acknowledged before the backup": len(made.before),
        "during it": made.during,
        "lost": sum(problem.startswith("lost") for problem in problems),
        "MB of backup": round(backup.stat().st_size / 1e6, 1),
        "MB of WAL at most": round(made.wal_bytes / 1e6, 1),
        "s to back up": round(made.seconds, 1),
        "s to restore": round(restored_s, 1),
        "s to check": round(checked_s, 1),
    }
    invalid = "" if made.during else "nothing was recorded during the backup"
    return Entry(MEASURE, site.store, figures, tuple(problems), invalid)
