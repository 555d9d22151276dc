"""``python -m tests.simulation``: play many seeds, one again, or look how soon planted bugs are seen."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.bugs import BUGS
from tests.simulation.many import MOST_SHOWN, Played, play_many, seeds_to_catch
from tests.simulation.scenario import plan_of, play

MOST_SEEDS_FOR_A_BUG = 1000
_SAY_EVERY_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="how many (2000)")
    parser.add_argument("--first", type=int, default=0, help="the first of them (0)")
    parser.add_argument("--seed", type=int, help="play this one only, and show all that happens")
    parser.add_argument("--bugs", action="store_true", help="how many seeds each planted bug takes")
    given = parser.parse_args()
    if given.seed is not None:
        return _again(given.seed)
    return _bugs() if given.bugs else _many(given.first, given.seeds)


def _many(first: int, count: int) -> int:
    began, said = time.monotonic(), [0.0]

    def say(played: Played) -> None:
        seconds = time.monotonic() - began
        if seconds > said[0] + _SAY_EVERY_S or played.seeds == count:
            said[0] = seconds
            _print(
                f"{played.seeds} of {count} seeds, {played.seeds / seconds:.0f} a second, {len(played.failed)} failed"
            )

    played = play_many(first, count, say=say)
    for seed, problems in sorted(played.failed.items())[:MOST_SHOWN]:
        _print(f"\nseed {seed} (again: make simulate SEED={seed})")
        for problem in problems[:5]:
            _print(f"  {problem[:400]}")
    entry = played.entry()
    _print("\n" + ", ".join(f"{name} {figure}" for name, figure in entry.figures.items()))
    if entry.invalid:
        _print(f"invalid: {entry.invalid}")
    return 0 if entry.passed else 1


def _again(seed: int) -> int:
    outcome = play(seed)
    _print(f"{plan_of(seed)}")
    for line in outcome.trace:
        _print(line)
    _print(f"seed {seed}: {outcome.digest}, {len(outcome.problems)} problems")
    for problem in outcome.problems:
        _print(f"  {problem}")
    return 1 if outcome.problems else 0


def _bugs() -> int:
    missed = 0
    for bug in BUGS:
        found = seeds_to_catch(bug, MOST_SEEDS_FOR_A_BUG)
        missed += found is None
        _print(f"{bug}: " + ("not caught" if found is None else f"seed {found[0]}: {found[1][:100]}"))
    _print(f"{len(BUGS) - missed} of {len(BUGS)} caught")
    return 1 if missed else 0


def _print(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - what was asked for


if __name__ == "__main__":
    sys.exit(main())
