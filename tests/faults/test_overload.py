"""Short runs of overload: that it is held. How well, the long ones ask, on a machine without other work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.overload import overload, recovery

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.faults.ledger import Entry
    from tests.harness import Server

TRIES = 3
"""A machine that others use, too, may stand still for a second; a server that does its work badly does so each time."""

pytestmark = pytest.mark.alone("what else the machine does would be taken for the server's own doing")


def _kept(entry: Entry) -> None:
    """What is promised at any speed: only 200 and 503-01 with Retry-After, nothing lost, nothing refused stored."""
    print(f"\n{entry.measure}, {entry.store}: {entry.figures}")  # noqa: T201 - the figures of the run
    assert not entry.invalid
    assert [problem for problem in entry.problems if problem.startswith("INV")] == []


def test_at_ten_times_its_capacity_a_server_does_half_of_its_work_at_least(start: Callable[..., Server]) -> None:
    """O01: what is too much is refused before its body is looked at; read first, a fifth of the work was done."""
    entries = []
    for _ in range(TRIES):
        entries.append(entry := overload(start(), "batches", multiples=(10,), seconds=2))
        _kept(entry)
        if float(entry.figures["10x_goodput"]) >= 0.5 and float(entry.figures["10x_accepted_p99_ms"]) < 2000:
            return
    raise AssertionError([entry.figures for entry in entries])


@pytest.mark.sqlite_only("who retries is the same whatever the store; the long form is for both")
def test_callers_that_retry_are_told_the_truth(start: Callable[..., Server]) -> None:
    """O02: whatever becomes of them, each is stored once or not at all."""
    entry = recovery(start(), "batches", multiples=(5,), seconds=1.5, rest=2)
    _kept(entry)
