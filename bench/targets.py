"""What was aimed at, and whether a run has reached it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from bench.results import figure
from bench.scenarios import FULL, HALF, million

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bench.results import Held, Results

CEILING = ("empty", "empty-64")


class Verdict(NamedTuple):
    """``measured`` is ``None`` where the run has no figure for it."""

    target: str
    wanted: float
    measured: float | None
    unit: str
    at_least: bool

    @property
    def reached(self) -> bool | None:
        if self.measured is None:
            return None
        return self.measured >= self.wanted if self.at_least else self.measured <= self.wanted


def at_least(target: str, wanted: float, measured: float | None, unit: str) -> Verdict:
    return Verdict(target, wanted, measured, unit, at_least=True)


def at_most(target: str, wanted: float, measured: float | None, unit: str) -> Verdict:
    return Verdict(target, wanted, measured, unit, at_least=False)


def ratio(results: Results, one: tuple[str, str], other: tuple[str, str]) -> float | None:
    """Of the medians of requests per second."""
    mine, theirs = results.per_s(*one), results.per_s(*other)
    return None if mine is None or theirs is None else mine.median / theirs.median


def _p99(results: Results, contestant: str, scenario: str) -> float | None:
    found = results.figure(contestant, scenario, lambda one: one.p99_ms)
    return None if found is None else found.median


def _held(results: Results, contestant: str, value: Callable[[Held], float]) -> float | None:
    held = results.held.get(contestant)
    return None if held is None else value(held)


def judge(results: Results) -> list[Verdict]:
    """Every target, in order."""
    return [*_speed(results), *_large(results), *_small(results)]


def _speed(results: Results) -> Iterator[Verdict]:
    one, times = "one message, 64 connections", "x"
    sqlite, postgresql = ("sqlite", FULL), ("postgresql", FULL)
    yield at_least(f"SQLite, {one}, of the empty callable", 0.40, ratio(results, sqlite, CEILING), times)
    yield at_most(f"SQLite, {one}, p99 at full load", 12, _p99(results, *sqlite), "ms")
    yield at_most(f"SQLite, {one}, p99 at half load", 5, _p99(results, "sqlite", HALF), "ms")
    yield at_least(f"PostgreSQL, {one}, of the empty callable", 0.33, ratio(results, postgresql, CEILING), times)
    for kind, name in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
        took = ratio(results, (f"raw-{kind}", "raw-1"), (kind, "message-1"))
        yield at_most(f"{name}, one connection, time of a message by that of a synced insert", 1.5, took, times)
    for kind, name in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
        batches = results.per_s(kind, "batch300-16")
        messages = None if batches is None else 300 * batches.median
        yield at_least(f"{name}, batches of 300", 60_000, messages, "messages/s")
    yield at_least(
        "SQLite, read one, of the empty callable", 0.5, ratio(results, ("sqlite", "read-64"), CEILING), times
    )
    yield at_least(
        "SQLite, list 20, of the empty callable", 0.3, ratio(results, ("sqlite", "list20-64"), CEILING), times
    )
    for kind, name, wanted in (("sqlite", "SQLite", 30), ("postgresql", "PostgreSQL", 6)):
        ahead = ratio(results, (kind, FULL), (f"textbook-{kind}", FULL))
        yield at_least(f"{name}, {one}, of the textbook service", wanted, ahead, times)


def _large(results: Results) -> Iterator[Verdict]:
    stored = million(results.stored)
    kept = ratio(results, ("sqlite-stored", FULL), ("sqlite", FULL))
    yield at_least(f"{stored} stored, one message, of the throughput with none", 0.8, kept, "x")
    page = _p99(results, "sqlite-stored", "page100-4")
    yield at_most(f"{stored} stored, a page of 100 at any depth, p99", 10, page, "ms")
    listed = results.long_list
    if listed is not None:
        whole = f"whole list of {million(listed.messages)} messages"
        yield at_most(f"{whole}, growth of memory", 30, max(listed.growth_mb, default=None), "MB")
        first = figure(listed.first_byte_ms)
        yield at_most(f"{whole}, first byte", 50, None if first is None else first.median, "ms")
        quiet, meanwhile = (figure([one.p99_ms for one in loads]) for loads in (listed.quiet, listed.meanwhile))
        slower = meanwhile.median / quiet.median if meanwhile and quiet else None
        yield at_most(f"{whole}, p99 of others meanwhile, by p99 without", 3, slower, "x")
    start_s = _held(results, "sqlite-stored", lambda held: held.start_s)
    yield at_most(f"{stored} stored, start to the first 200", 1, start_s, "s")


def _small(results: Results) -> Iterator[Verdict]:
    stored = f"SQLite, {million(results.stored)} stored"
    for kind, name in (("sqlite", "SQLite"), ("sqlite-stored", stored), ("postgresql", "PostgreSQL")):
        yield at_most(f"{name}, memory at rest", 80, _held(results, kind, lambda held: held.rest_mb), "MB")
        yield at_most(f"{name}, memory at full load", 200, _held(results, kind, lambda held: held.peak_mb), "MB")
    for kind, name in (("sqlite", "SQLite"), ("postgresql", "PostgreSQL")):
        held = results.held.get(kind)
        share = held.disk_bytes / results.field_bytes if held and held.disk_bytes and results.field_bytes else None
        yield at_most(f"{name}, bytes on disk, by those of the messages' own fields", 1.6, share, "x")
