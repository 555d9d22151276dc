"""docs/benchmarks.md and its plots, made of a run's results alone: nothing in them is written by hand."""

from __future__ import annotations

import re
import textwrap
from operator import attrgetter
from typing import TYPE_CHECKING

from bench import figures, shortfalls, targets
from bench.long_list import OTHERS, OTHERS_PAUSE_MS
from bench.plots import number
from bench.prose import DISK, HOW, INTRODUCTION, MEANING
from bench.results import figure
from bench.scenarios import CONTESTANTS, FULL, HALF, SCENARIOS, million, title

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from bench.results import Figure, Results, Round

NOTHING = "-"
_SECTIONS = (
    ("Recording one message", "single", ("empty", "message", "half", "raw")),
    ("Batches, reading, mixed", "operations", ("batch", "read", "list", "mixed")),
)


def write(results: Results, docs: Path) -> None:
    """Write the report and its plots into ``docs`` and ``docs``/benchmarks."""
    folder = docs / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    for name, drawing in figures.draw(results).items():
        (folder / f"{name}.svg").write_text(drawing, "utf-8")
    (docs / "benchmarks.md").write_text(text(results), "utf-8")


def text(results: Results) -> str:
    """The whole page."""
    drawn = figures.draw(results)
    parts = [INTRODUCTION, _machine(results), "## Targets\n", *_table(_TARGETS, _verdicts(results))]
    for heading, plot, scenarios in _SECTIONS:
        parts += [f"\n## {heading}\n", _image(heading, plot, drawn)]
        if plot == "single":
            parts += [_image("Latency", "latency", drawn), _half(results)]
        parts += _table(_FIGURES, _rows(results, [name for name in CONTESTANTS if name != "sqlite-stored"], scenarios))
    parts += [f"\n## With {million(results.stored)} messages stored\n", _image("With many stored", "stored", drawn)]
    parts += _table(_FIGURES, _rows(results, ["sqlite", "sqlite-stored"], (FULL, "read-64", "list20-64", "page100")))
    parts += [_long_list(results), "\n## Memory, disk, start\n", *_table(_HELD, _held(results))]
    parts += ["", _paragraph(DISK.format(field_bytes=results.field_bytes))]
    parts += ["\n## Where Turnlog is not ahead\n", *map(_point, shortfalls.find(results)), "", MEANING, HOW]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip("\n") + "\n"


def _paragraph(words: str) -> str:
    return textwrap.fill(words, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def _point(sentence: str) -> str:
    return textwrap.fill(f"* {sentence}", 120, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _image(alt: str, name: str, drawn: dict[str, str]) -> str:
    return f"![{alt}](benchmarks/{name}.svg)\n" if name in drawn else ""


def _machine(results: Results) -> str:
    machine = results.machine
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    others = figure([one.others_share for by in results.rounds.values() for rounds in by.values() for one in rounds
                     if one.others_share is not None])  # fmt: skip
    neighbours = (
        f" What else ran on the machine took {100 * others.median:.0f} % of its processors' time in the median turn, "
        f"{100 * others.highest:.0f} % in the worst."
        if others
        else ""
    )
    return _paragraph(
        f"{machine['processor']}, {machine['memory']} of memory, {machine['system']}, stores on "
        f"{machine['file system']}; load generator, servers and PostgreSQL all on it. {versions}. Medians of "
        f"{results.rounds_wanted} rounds of {results.seconds} s, the lowest and the highest beside them.{neighbours}"
    )


_TARGETS = ("Target", "Wanted", "Measured", "Reached")


def _verdicts(results: Results) -> Iterator[tuple[str, ...]]:
    for one in targets.judge(results):
        word = "≥" if one.at_least else "≤"
        measured = "not in this run" if one.measured is None else f"{number(one.measured)} {one.unit}"
        reached = {True: "yes", False: "**no**", None: NOTHING}[one.reached]
        yield one.target, f"{word} {number(one.wanted)} {one.unit}", measured, reached


_FIGURES = ("", "Connections", "Requests/s", "Lowest to highest", "Of the ceiling", "p50 ms", "p99 ms", "p99.9 ms",
            "CPU µs, server", "CPU µs, database")  # fmt: skip


def _rows(results: Results, contestants: Iterable[str], scenarios: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    ceiling = results.per_s(*targets.CEILING)
    shown = list(contestants)
    for name, scenario in SCENARIOS.items():
        if not name.startswith(scenarios):
            continue
        for contestant in shown:
            rate = results.per_s(contestant, name)
            if rate is None:
                continue
            label = f"{title(contestant, results.stored)}: {scenario.title}"
            each = f" ({number(scenario.items * rate.median)} messages/s)" if scenario.items > 1 else ""
            yield (
                label,
                str(scenario.connections),
                number(rate.median) + each,
                f"{number(rate.lowest)} to {number(rate.highest)}",
                f"{rate.median / ceiling.median:.2f}" if ceiling else NOTHING,
                *_latency(results, contestant, name),
                _cpu(results.of(contestant, name), "server_cpu_s"),
                _cpu(results.of(contestant, name), "database_cpu_s"),
            )


def _latency(results: Results, contestant: str, scenario: str) -> Iterator[str]:
    """A percentile of fewer requests than it speaks of would be that of the slowest one: it is left out."""
    asked = min(one.requests for one in results.of(contestant, scenario))
    for field, enough in (("p50_ms", 1), ("p99_ms", 100), ("p999_ms", 1000)):
        found = results.figure(contestant, scenario, attrgetter(field))
        yield number(found.median) if found and asked >= enough else NOTHING


def _cpu(rounds: list[Round], field: str) -> str:
    found = figure([1e6 * getattr(one, field) / one.requests for one in rounds if getattr(one, field) is not None])
    return number(found.median) if found else NOTHING


def _half(results: Results) -> str:
    half, full = results.per_s("sqlite", HALF), results.per_s("sqlite", FULL)
    if half is None or full is None:
        return ""
    share = half.median / full.median
    near = "" if 0.4 <= share <= 0.6 else " That is **not** near half: judge the figure with care."
    return _paragraph(
        f"Half load is wrk with a pause before each request, chosen in the run: it came to {number(half.median)} "
        f"messages/s, {share:.2f} of full load.{near}"
    )


def _long_list(results: Results) -> str:
    found = results.long_list
    if found is None:
        return ""
    seconds, first, growth = figure(found.seconds), figure(found.first_byte_ms), figure(found.growth_mb)
    quiet, meanwhile = (figure([one.p99_ms for one in loads]) for loads in (found.quiet, found.meanwhile))
    if not (seconds and first and growth and quiet and meanwhile):
        return ""
    return "\n" + _paragraph(
        f"**The whole list of a conversation of {million(found.messages)} messages**, one answer of "
        f"{found.bytes / 1e6:,.0f} MB: its first byte came after {_spread(first)}, its last after "
        f"{number(seconds.median)} s. A server that was asked for nothing else grew by {number(growth.highest)} MB at "
        f"most. {OTHERS} other callers, with a pause of {OTHERS_PAUSE_MS} ms before each request of the mixed kind, "
        f"had a p99 of {_spread(quiet)} without it, and of {_spread(meanwhile)} meanwhile."
    )


def _spread(found: Figure) -> str:
    return f"{number(found.median)} ms ({number(found.lowest)} to {number(found.highest)})"


_HELD = (
    "",
    "Start to first 200, s",
    "Memory at rest, MB",
    "Peak memory, MB",
    "Messages at the end",
    "Bytes on disk each",
)


def _held(results: Results) -> Iterator[tuple[str, ...]]:
    for name, held in results.held.items():
        yield (
            title(name, results.stored),
            f"{held.start_s:.2f}",
            f"{held.rest_mb:.0f}",
            f"{held.peak_mb:.0f}",
            NOTHING if held.messages is None else f"{held.messages:,}",
            NOTHING if held.disk_bytes is None else f"{held.disk_bytes:.0f}",
        )
