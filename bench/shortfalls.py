"""Where Turnlog is not ahead, found in the figures: nobody chooses what is told here and what is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import targets
from bench.plots import number
from bench.scenarios import FULL, SCENARIOS, title

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.results import Results

TURNLOG = ("sqlite", "postgresql", "postgresql-4")
# Whom each is held against: the textbook service on its store, the other store, one worker.
_RIVALS = {
    "sqlite": ("textbook-sqlite", "postgresql"),
    "postgresql": ("textbook-postgresql", "sqlite"),
    "postgresql-4": ("textbook-postgresql", "postgresql"),
}


def find(results: Results) -> list[str]:
    """A sentence for each."""
    return [*_missed(results), *_beaten(results), *_raw(results), *_costs(results)]


def _missed(results: Results) -> Iterator[str]:
    for one in targets.judge(results):
        if one.reached is False and one.measured is not None:
            word = "at least" if one.at_least else "at most"
            measured = f"{number(one.measured)} {one.unit}, {word} {number(one.wanted)} wanted"
            yield f"**Target missed:** {one.target}: {measured}."


def _beaten(results: Results) -> Iterator[str]:
    for name in TURNLOG:
        for rival in _RIVALS[name]:
            found = [text for scenario in SCENARIOS for text in _behind(results, name, rival, scenario)]
            if found:
                yield f"{title(name, results.stored)}, behind {title(rival, results.stored)}: {'; '.join(found)}."


def _behind(results: Results, name: str, rival: str, scenario: str) -> Iterator[str]:
    """In throughput, in p99, in both, or in nothing."""
    said = []
    mine, theirs = results.per_s(name, scenario), results.per_s(rival, scenario)
    if mine and theirs and mine.median < theirs.median:
        overlap = " (the rounds overlap)" if mine.highest >= theirs.lowest else ""
        said.append(f"{mine.median / theirs.median:.2f} of the throughput{overlap}")
    mine, theirs = (results.figure(one, scenario, lambda one: one.p99_ms) for one in (name, rival))
    if mine and theirs and mine.median > theirs.median:
        said.append(f"p99 {number(mine.median)} ms, not {number(theirs.median)} ms")
    if said:
        yield f"{SCENARIOS[scenario].title}, {SCENARIOS[scenario].among}: {', '.join(said)}"


def _raw(results: Results) -> Iterator[str]:
    """Against inserts without HTTP, which are an upper bound for one connection and not for many."""
    for kind in ("sqlite", "postgresql"):
        raw = results.per_s(f"raw-{kind}", "raw-1")
        for scenario in ("message-1", FULL):
            mine = results.per_s(kind, scenario)
            if raw and mine and mine.median < raw.median:
                yield (
                    f"{title(kind, results.stored)}, record one message, {SCENARIOS[scenario].among}: "
                    f"{mine.median / raw.median:.2f} of the messages per second of a loop of synced inserts, no HTTP."
                )


def _costs(results: Results) -> Iterator[str]:
    """Memory, disk and start, beside the textbook service on the same store."""

    def worse(name: str, what: str, unit: str, mine: float | None, theirs: float | None) -> Iterator[str]:
        if mine and theirs and mine > theirs:
            who = title(name, results.stored)
            yield f"{who}: {what} {number(mine)} {unit}, the textbook service {number(theirs)} {unit}."

    for name in TURNLOG:
        mine, theirs = results.held.get(name), results.held.get(_RIVALS[name][0])
        if mine and theirs:
            yield from worse(name, "memory at rest", "MB", mine.rest_mb, theirs.rest_mb)
            yield from worse(name, "peak memory", "MB", mine.peak_mb, theirs.peak_mb)
            yield from worse(name, "start to the first 200", "s", mine.start_s, theirs.start_s)
            yield from worse(name, "disk", "bytes per message", mine.disk_bytes, theirs.disk_bytes)
