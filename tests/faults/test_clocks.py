"""Clocks that jump, and many ids at once (T01, T03)."""

from __future__ import annotations

import random
import threading
from typing import TYPE_CHECKING

import pytest

from tests.faults.clocks import clock_steps
from tests.faults.site import Site
from tests.harness import ULID
from turnlog.ids import Ulids

if TYPE_CHECKING:
    from collections.abc import Callable

NOW_US = 1_700_000_000_000_000


@pytest.mark.sqlite_only("the clock is the server's, whatever its store")
def test_arrival_order_and_ids_outlive_steps_of_the_wall_clock(store_kind: str, new_store: Callable[[], str]) -> None:
    """T01: an hour back, a year on and back; what was under way or idle goes on, keys are good behind a step back."""
    with Site(store_kind, new_store) as site:
        entry = clock_steps(site, messages=5)
    print(f"\n{entry.measure}: {entry.figures}")  # noqa: T201 - the figures of the run
    assert entry.passed, entry.problems


def test_ids_of_one_millisecond_are_unique_valid_and_rise() -> None:
    """T03: 100,000 of them, and with a random part that has no room left."""
    for bits in (random.Random(1).getrandbits, lambda count: (1 << count) - 1):  # noqa: S311 - repeatable
        ids = Ulids(lambda: NOW_US, bits)
        made = [ids.new() for _ in range(100_000)]
        assert made == sorted(set(made))
        assert all(ULID.fullmatch(one) for one in made)


def test_ids_of_several_workers_in_one_millisecond_are_unique() -> None:
    """T03: eight of them, each with a source of its own."""
    sources = [Ulids(lambda: NOW_US, random.SystemRandom().getrandbits) for _ in range(8)]
    made: list[list[str]] = [[] for _ in sources]

    def make(number: int) -> None:
        made[number] = [sources[number].new() for _ in range(10_000)]

    workers = [threading.Thread(target=make, args=(number,)) for number in range(len(sources))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(own == sorted(own) for own in made)
    assert len({one for own in made for one in own}) == 80_000
