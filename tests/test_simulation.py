"""Turnlog's own code in a simulated world (tests/simulation/): whatever fails at random, the promises are kept.

Another 100,000 seeds: ``make simulate SEEDS=100000``; one again, with all that happens: ``make simulate SEED=17``.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.harness import REPOSITORY
from tests.simulation.bugs import BUGS, RARE
from tests.simulation.many import play_many, seeds_to_catch
from tests.simulation.scenario import plan_of, play

SEEDS = 2000
AGAIN = (0, 3, 5, 6, 12, 20, 22, 41)
MOST_SEEDS_FOR_A_BUG = 150


@pytest.mark.timeout(600)
def test_two_thousand_seeds_keep_every_promise() -> None:
    """C01 C03 C07 C09 N01 T01 S15 O05 W01 W02 E01: INV, readers see the log, webhooks get it, deadlines are kept."""
    entry = play_many(0, SEEDS).entry()
    assert entry.passed, (entry.problems, entry.invalid)


def test_a_seed_is_the_same_callback_by_callback_whenever_and_wherever_it_is_played() -> None:
    assert {plan_of(seed).database for seed in AGAIN} == {"memory", "shared", "sqlite"}
    here = [play(seed).digest for seed in AGAIN]
    assert [play(seed).digest for seed in AGAIN] == here
    assert len(set(here)) == len(here)
    program = f"from tests.simulation.scenario import play\nfor seed in {AGAIN}: print(play(seed).digest)"
    for hash_seed in ("0", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        there = subprocess.run(
            [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True
        )
        assert there.stdout.split() == here


@pytest.mark.timeout(300)
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug not in RARE])
def test_a_planted_bug_is_seen(bug: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A check that cannot fail proves nothing."""
    found = seeds_to_catch(bug, MOST_SEEDS_FOR_A_BUG)
    assert found is not None, f"{MOST_SEEDS_FOR_A_BUG} seeds do not show it"
    with capsys.disabled():
        print(f"\n{bug}: seen with seed {found[0] - 1}: {found[1][:100]}")  # noqa: T201
