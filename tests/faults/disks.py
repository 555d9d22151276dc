"""D06, D07, D08: a disk that is full, cannot be written, or is slow, while a server records on it.

Behind each come power cuts that forget all that was not synced: what was acknowledged too early is lost there.
"""

from __future__ import annotations

import asyncio
import errno
import random
import re
import time
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import httpx

from tests.faults.images import forgotten, image
from tests.faults.ledger import Entry
from tests.faults.nursery import small_checkpoints, with_settings
from tests.faults.power import Known, Life, cut_problems, instant_ns, live
from tests.faults.tracing import Rule
from tests.harness import V1

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.faults.disk import Disk
    from tests.faults.power import Run, TimedLoad

FULL = Rule(("write", "size", "link"), error=errno.ENOSPC)
READ_ONLY = Rule(("write", "size", "link", "unlink", "rename"), error=errno.EROFS)
"""As of a file system that is made read-only, all that was written before being synced."""
QUOTA = Rule(FULL.kinds, error=errno.EDQUOT)
NO_RULE = Rule(times=0)
REFUSALS = 30
PATIENCE_S = 60
CUTS = 3
QUEUE = 30
"""What may wait to be recorded, in messages; the callers of a slow disk are more."""
CALLERS = 60


@dataclass
class Watch:
    """Asks a server, again and again, for what must go on whatever the disk does."""

    load: TimedLoad
    slowest_s: float = 0.0
    most_queued: float = 0.0
    problems: list[str] = field(default_factory=list)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Look until the condition holds. Raises TimeoutError after a minute."""
        base = f"http://127.0.0.1:{self.load.port}"
        async with httpx.AsyncClient(base_url=base, headers=self.load.headers) as client, asyncio.timeout(PATIENCE_S):
            while not condition():
                for path in (
                    "/livez",
                    "/v1/health",
                    f"{V1}/conversations/{self.load.conversations[0]}/messages?limit=2",
                ):
                    started_s = time.monotonic()
                    status = (await client.get(path)).status_code
                    self.slowest_s = max(self.slowest_s, time.monotonic() - started_s)
                    self.problems += [] if status == 200 else [f"{path}: {status} while the disk was troubled"]
                self.most_queued = max(self.most_queued, await _metric(client, "turnlog_queue_rows"))

    async def rows_per_batch(self) -> tuple[float, float]:
        """How many messages and batches there were so far."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.load.port}") as client:
            names = ("turnlog_batch_rows_sum", "turnlog_batch_rows_count")
            rows, batches = [await _metric(client, name) for name in names]
        return rows, batches


async def _metric(client: httpx.AsyncClient, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", (await client.get("/metrics")).text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def _recorded(load: TimedLoad, acknowledgements: int) -> None:
    load.want(acknowledgements)
    await asyncio.wait_for(load.acknowledged.wait(), PATIENCE_S)


def refusing(folder: Path, measure: str, rule: Rule, *, times: int = 2, seed: int = 1) -> Entry:
    """The disk takes nothing, so many times, and does again: 503-01 meanwhile, reads go on, nobody has to help."""
    watches: list[Watch] = []

    async def meanwhile(disk: Disk, load: TimedLoad) -> None:
        await _recorded(load, 50)
        for _ in range(times):
            watch = Watch(load)
            watches.append(watch)
            refused = load.codes["503-01"]
            await asyncio.to_thread(disk.rule, rule)
            await watch.until(lambda before=refused: load.codes["503-01"] >= before + REFUSALS)  # type: ignore[misc]
            await asyncio.to_thread(disk.rule, NO_RULE)
            await _recorded(load, 50)

    changes = (partial(small_checkpoints, 100),)
    run = live(folder, {}, Known(), Life(2 * seed + 1, meanwhile, changes=changes))
    problems = [problem for watch in watches for problem in watch.problems] + _wrong(run, {"503-01"})
    return Entry(measure, "sqlite", _figures(run, watches), tuple(problems + _after(run, seed)))


def slow(folder: Path, *, delay_s: float, deadline_s: float = 10.0, seconds: float = 3.0, seed: int = 1) -> Entry:
    """Each sync of the WAL takes so long: batches grow, the queue is bounded, health answers, nothing is early."""
    watches: list[Watch] = []
    per_batch: list[float] = []

    async def meanwhile(disk: Disk, load: TimedLoad) -> None:
        await _recorded(load, 50)
        await asyncio.to_thread(disk.rule, Rule(("sync",), names=r"turnlog\.db-wal", delay_s=delay_s))
        watch = Watch(load)
        watches.append(watch)
        rows, batches = await watch.rows_per_batch()
        end_s = time.monotonic() + seconds
        await watch.until(lambda: time.monotonic() > end_s)
        rows_then, batches_then = await watch.rows_per_batch()
        await asyncio.to_thread(disk.rule, NO_RULE)
        await _recorded(load, 50)
        per_batch.append((rows_then - rows) / max(1.0, batches_then - batches))

    settings = {"max_queued_messages": str(QUEUE), "write_deadline_s": str(deadline_s)}
    run = live(folder, {}, Known(), Life(2 * seed, meanwhile, CALLERS, changes=(partial(with_settings, settings),)))
    late = delay_s > deadline_s
    problems = watches[0].problems + _wrong(run, {"503-01", "503-02"} if late else {"503-01"})
    if not run.load.codes["503-02" if late else "503-01"]:
        problems.append(f"nobody was refused: {dict(run.load.codes)}")
    if watches[0].most_queued > QUEUE:
        problems.append(f"{watches[0].most_queued:.0f} messages were queued, of {QUEUE}")
    if watches[0].slowest_s > min(2.0, 5 * delay_s):
        problems.append(f"reads and health took up to {watches[0].slowest_s:.2f} s")
    if not late and per_batch[0] < QUEUE / 4:
        problems.append(f"{per_batch[0]:.1f} messages a batch")
    figures = _figures(run, watches) | {"messages a batch": round(per_batch[0], 1)}
    return Entry(f"D08 each sync takes {delay_s:g} s", "sqlite", figures, tuple(problems + _after(run, seed)))


def _figures(run: Run, watches: list[Watch]) -> dict[str, int | float | str]:
    return {
        "acknowledged": run.load.history.count("acknowledged"),
        "503-01": run.load.codes["503-01"],
        "503-02": run.load.codes["503-02"],
        "slowest read (s)": round(max(watch.slowest_s for watch in watches), 2),
    }


def _wrong(run: Run, refusals: set[str]) -> list[str]:
    """What callers should not have been told, and workers that should have gone on."""
    surprising = {code: count for code, count in run.load.codes.items() if code[:3] != "400" and code not in refusals}
    problems = [f"answered {count} times: {code}" for code, count in surprising.items()]
    problems += [f"{run.load.broken} connections were cut"] if run.load.broken else []
    return problems + run.failures


def _after(run: Run, seed: int) -> list[str]:
    """What is lost by power cuts at any time, the last one at the end."""
    chance = random.Random(seed)  # noqa: S311 - a repeatable run, not a secret
    length = len(run.trace.changes)
    places = [chance.randint(1, length) for _ in range(CUTS - 1)] + [length]
    return [
        f"power cut at change {place}: {problem}"
        for place in places
        for problem in cut_problems(image(run.trace, place, forgotten), run.known(instant_ns(run.trace, place)))
    ]
