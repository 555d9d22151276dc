"""Many seeds, on all cores."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.faults.ledger import Entry
from tests.simulation.bugs import BUGS, planted
from tests.simulation.scenario import play

if TYPE_CHECKING:
    from collections.abc import Callable

CHUNK = 25
"""Seeds that a process plays before it says how it went."""
MOST_SHOWN = 20
_SHOWN = {
    "acknowledged": "told 200",
    "events delivered": "delivered",
    "nodes killed at work": "kills busy",
    "nodes stopped": "strike terminate",
    "nodes frozen": "strike freeze",
    "store failures": "fail stops",
    "clock steps": "clocks stepped",
    "bursts of one key": "bursts",
}


@dataclass
class Played:
    """What came of some seeds."""

    seeds: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failed: dict[int, tuple[str, ...]] = field(default_factory=dict)

    def add(self, other: Played) -> None:
        self.seeds += other.seeds
        self.counts += other.counts
        self.failed.update(other.failed)

    def entry(self) -> Entry:
        """For the ledger of the fault drivers."""
        figures: dict[str, int | float | str] = {"seeds": self.seeds}
        figures.update((name, self.counts[count]) for name, count in _SHOWN.items())
        figures["failing seeds"] = len(self.failed)
        problems = [f"seed {seed}: {text}" for seed, texts in sorted(self.failed.items()) for text in texts[:3]]
        idle = [name for name, count in _SHOWN.items() if not self.counts[count]]
        invalid = f"there were none: {', '.join(idle)}" if idle else ""
        measure = "C01 C03 C07 C09 N01 T01 S15 O05 W01 W02 E01 deterministic simulation"
        return Entry(measure, "", figures, tuple(problems[:MOST_SHOWN]), invalid)


def play_some(seeds: range) -> Played:
    """One after the other, in this process."""
    played = Played()
    for seed in seeds:
        outcome = play(seed)
        played.seeds += 1
        played.counts.update(outcome.counts)
        if outcome.problems:
            played.failed[seed] = outcome.problems
    gc.collect()
    return played


def play_many(
    first: int, count: int, *, processes: int | None = None, say: Callable[[Played], None] = lambda _played: None
) -> Played:
    """``count`` seeds from ``first`` on; ``say`` hears how far it is."""
    chunks = [range(start, min(start + CHUNK, first + count)) for start in range(first, first + count, CHUNK)]
    played = Played()
    with multiprocessing.get_context("spawn").Pool(processes or os.cpu_count(), initializer=gc.freeze) as pool:
        for some in pool.imap_unordered(play_some, chunks):
            played.add(some)
            say(played)
    return played


def seeds_to_catch(bug: str, most: int) -> tuple[int, str] | None:
    """How many seeds it takes until a planted bug is seen, and as what; ``None`` where ``most`` do not show it."""
    assert bug in BUGS
    with planted(bug):
        for seed in range(most):
            problems = play(seed).problems
            if problems:
                return seed + 1, problems[0]
    return None
