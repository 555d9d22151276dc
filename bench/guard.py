"""``python -m bench.guard``: is Turnlog still about as fast beside an empty ASGI callable as it was?

A quick look, for every change: it prints both ratios and fails under half of a recorded one only, after a second and a
third look, so that noise does not. ``--record`` records what it sees (on a machine without other work).
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path
from statistics import median

import msgspec

from bench import load
from bench.scenarios import SCENARIOS
from bench.taking_part import Grounds, Runner

RECORDED = Path(__file__).with_name("recorded.json")
ROUNDS = 3
LOOKS = 3
GUARDED = ("message-64", "read-64")
CEILING = "empty-64"


def look(empty: Runner, turnlog: Runner) -> dict[str, float]:
    """Requests per second of each scenario; rounds of a second, in turns."""
    found: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for name in (CEILING, *GUARDED):
            runner, scenario = empty if name == CEILING else turnlog, SCENARIOS[name]
            round_ = load.measure(runner.server.base, scenario.connections, 1, runner.folder / scenario.requests)
            found.setdefault(name, []).append(round_.per_s)
    return {name: median(rates) for name, rates in found.items()}


def guard(recorded: dict[str, float]) -> dict[str, float]:
    """The ratios, printed; the best of as many looks as it takes."""
    best = dict.fromkeys(GUARDED, 0.0)
    with contextlib.ExitStack() as running:
        folder = running.enter_context(tempfile.TemporaryDirectory(prefix="turnlog-guard-"))
        grounds = Grounds(Path(folder), None, running)
        empty, turnlog = grounds.start_empty(), grounds.start_turnlog("sqlite")
        for _ in range(LOOKS):
            seen = look(empty, turnlog)
            for name in GUARDED:
                scenario, least, ratio = SCENARIOS[name], recorded.get(name, 0) / 2, seen[name] / seen[CEILING]
                best[name] = max(best[name], ratio)
                print(
                    f"guard: {scenario.title}, {scenario.among}: {ratio:.2f} of the empty callable "
                    f"({seen[name]:,.0f} of {seen[CEILING]:,.0f} requests/s); recorded {2 * least:.2f}, "
                    f"fails under {least:.2f}",
                    flush=True,
                )
            if all(best[name] >= recorded.get(name, 0) / 2 for name in GUARDED):
                break
    return best


def main() -> int:
    """The exit status: 1 where a ratio has halved, or where CI has no wrk."""
    try:
        load.need_wrk()
    except SystemExit as lack:
        print(f"guard: not measured: {lack}")
        return int(os.environ.get("CI") == "true")
    recorded = msgspec.json.decode(RECORDED.read_bytes(), type=dict[str, float])
    if "--record" in sys.argv:
        ratios = {name: round(ratio, 2) for name, ratio in guard({}).items()}
        RECORDED.write_bytes(msgspec.json.encode(ratios) + b"\n")
        return 0
    best = guard(recorded)
    halved = [SCENARIOS[name].title for name in GUARDED if best[name] < recorded[name] / 2]
    if halved:
        print(f"guard: under half of the recorded ratio: {', '.join(halved)}; docs/benchmarks.md says what it means")
    return int(bool(halved))


if __name__ == "__main__":
    sys.exit(main())
