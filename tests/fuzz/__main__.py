"""``python -m tests.fuzz [TARGET…] [--seconds N] [--seed S]``: fuzz each target; what is found goes into its corpus.

The status is 1 where anything was found. ``--grow`` keeps what led somewhere new, too.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from typing import TYPE_CHECKING

from tests.fuzz.engine import Target, explore, replay
from tests.fuzz.targets import TARGETS

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_KEPT_BYTES = 600
"""Of an input that is kept only for where it led."""


def _until(end_s: float) -> Iterator[object]:
    while time.monotonic() < end_s:
        yield None


def _fuzz(target: Target, seed: int, seconds: float, *, grow: bool) -> bool:
    """Whether nothing was found."""
    outcome = explore(target, seed, _until(time.monotonic() + seconds))
    print(  # noqa: T201
        f"{target.name}: {outcome.executed:,} inputs, {outcome.ways} ways through the code, "
        f"{len(outcome.reached)} inputs led to new ones, {len(outcome.findings)} findings",
        flush=True,
    )
    for finding in outcome.findings:
        print(f"{target.keep(finding.content)}\n{finding}\n", file=sys.stderr)  # noqa: T201
    if grow:
        for content in outcome.reached:
            if len(content) <= MAX_KEPT_BYTES:
                target.keep(content)
    return not outcome.findings


def main() -> int:
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(names)}; all, without one")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of them together (60)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**32), help="which chances are taken (any)")
    parser.add_argument("--grow", action="store_true", help="keep inputs that led somewhere new in the corpus")
    asked = parser.parse_args()
    unknown = set(asked.targets) - set(names)
    if unknown:
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    chosen = [target for target in TARGETS if not asked.targets or target.name in asked.targets]
    print(f"seed {asked.seed}", flush=True)  # noqa: T201
    good = True
    for target in chosen:
        for finding in replay(target):
            good = False
            print(f"in the corpus: {finding}\n", file=sys.stderr)  # noqa: T201
        good &= _fuzz(target, asked.seed, asked.seconds / len(chosen), grow=asked.grow)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
