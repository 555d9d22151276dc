"""Short runs of the restarts, each of them the same as the long ones but for the numbers of messages and of kills."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.restarts import Target, restart

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.sqlite_only("bench/seed.py fills a file")
@pytest.mark.parametrize(("target", "kills"), [("worker", 5), ("server", 1)])
def test_a_kill_keeps_callers_waiting_for_a_moment(tmp_path: Path, target: Target, kills: int) -> None:
    """C01: the bound is that of the fault list, times what a busy machine may make of it."""
    entry = restart(tmp_path, messages=100_000, kills=kills, target=target, bound_s=15)
    print(f"\n{entry.measure}: {entry.figures}")  # noqa: T201 - the figures of the run
    assert entry.passed, (entry.invalid, *entry.problems)
