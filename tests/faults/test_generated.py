"""Generated API cases, a few of them; ``make faults`` has 50,000 on each store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.generated import generated
from tests.faults.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = 1000


def test_whatever_is_asked_the_answer_is_one_that_is_described(store_kind: str, new_store: Callable[[], str]) -> None:
    """J01, J09, H14: its status, its body, and never an error of ours."""
    with Site(store_kind, new_store) as site:
        entry = generated(site, CASES)
    print(f"\n{entry.measure}, {entry.store}: {entry.figures}")  # noqa: T201 - the figures of the run
    assert entry.passed, (entry.invalid, *entry.problems)
