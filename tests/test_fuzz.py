"""The corpus of every fuzz target, replayed, and so many fresh mutations of it; ``make fuzz`` goes on from there."""

from __future__ import annotations

import secrets

import pytest

from tests.fuzz.engine import CORPUS, Target, explore, replay
from tests.fuzz.targets import TARGETS

MUTATIONS = {"bodies": 1500, "connections": 250, "imports": 700}
OF_OTHERS = 3000


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_what_takes_bytes_keeps_its_promise_whatever_they_are(target: Target) -> None:
    """Each input ever found, as it was; then others from a seed that a failure names."""
    assert len(target.seeds()) >= 5, "a target needs something to begin with"
    found = replay(target)
    assert not found, "\n".join(map(str, found))
    seed = secrets.randbelow(2**32)
    outcome = explore(target, seed, iter(range(MUTATIONS.get(target.name, OF_OTHERS))))
    assert not outcome.findings, "\n".join([f"--seed {seed}", *map(str, outcome.findings)])
    assert outcome.ways > 10


def test_every_folder_of_the_corpus_is_a_targets() -> None:
    assert {folder.name for folder in CORPUS.iterdir()} == {target.name for target in TARGETS}
