"""Which figures the plots show."""

from __future__ import annotations

from operator import attrgetter
from typing import TYPE_CHECKING

import msgspec

from bench import plots
from bench.plots import Bar, Panel, Percentiles
from bench.results import Figure
from bench.scenarios import CONTESTANTS, FULL, HALF, SCENARIOS, million, title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.results import Results

_OPERATIONS = ("batch10-64", "batch300-16", "read-64", "list20-64", "list1000-16", "mixed-64")


def draw(results: Results) -> dict[str, str]:
    """The plots, by the names of their files; one of which nothing was measured is left out."""
    single = [
        Panel("64 connections", "requests/s", [*_bars(results, "empty-64"), *_bars(results, FULL)]),
        Panel("1 connection", "messages/s", [*_bars(results, "raw-1"), *_bars(results, "message-1")]),
    ]
    operations = [_operation(results, name) for name in _OPERATIONS]
    stored = [
        Panel(SCENARIOS[name].title, "requests/s", _bars(results, name, ("sqlite", "sqlite-stored")))
        for name in (FULL, "read-64", "list20-64")
    ]
    drawn = {
        "single": plots.bars("Recording one message", single),
        "operations": plots.bars("Batches, reading, mixed", operations),
        "stored": plots.bars(f"With {million(results.stored)} messages stored, and with none", stored),
    }
    groups = [group for name in ("sqlite", "postgresql", "empty") if (group := _latencies(results, name))[1]]
    if groups:
        drawn["latency"] = plots.latencies("How long one message takes, under as much load as can be", groups)
    return drawn


def _bars(results: Results, scenario: str, contestants: Sequence[str] = tuple(CONTESTANTS)) -> list[Bar]:
    found = []
    for name in contestants:
        rate = results.per_s(name, scenario)
        if rate is not None:
            found.append(Bar(title(name, results.stored), plots.kind(name), rate))
    return found


def _operation(results: Results, scenario: str) -> Panel:
    """In messages where a request is about many."""
    items = SCENARIOS[scenario].items
    bars = [
        bar._replace(figure=Figure(*(items * value for value in msgspec.structs.astuple(bar.figure))))
        for bar in _bars(results, scenario)
    ]
    return Panel(
        f"{SCENARIOS[scenario].title}, {SCENARIOS[scenario].among}",
        "messages/s" if items > 1 else "requests/s",
        bars,
    )


def _latencies(results: Results, contestant: str) -> tuple[str, list[Percentiles]]:
    rows = []
    for name, scenario in SCENARIOS.items():
        if scenario.requests != ("empty" if contestant == "empty" else "message"):
            continue
        p50, p99, p999 = (
            results.figure(contestant, name, attrgetter(field)) for field in ("p50_ms", "p99_ms", "p999_ms")
        )
        if p50 and p99 and p999:
            label = f"{scenario.connections}, half load" if name == HALF else scenario.among
            rows.append(Percentiles(label, plots.kind(contestant), (p50.median, p99.median, p999.median)))
    return title(contestant, results.stored), rows
