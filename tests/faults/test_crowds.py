"""Short runs of crowds. How much others notice is asserted by the long ones, on a machine without other work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults import crowds
from tests.faults.backlog import dead_receiver
from tests.faults.site import Site
from tests.faults.subscribers import many_subscribers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.ledger import Entry

NOISY = 20.0
"""How many times as long others may wait here: the machine has other work."""

pytestmark = pytest.mark.alone("what else the machine does would be taken for the server's own doing")


@pytest.fixture
def site(store_kind: str, new_store: Callable[[], str]) -> Iterator[Site]:
    with Site(store_kind, new_store) as one:
        yield one


def _passed(entry: Entry) -> None:
    print(f"\n{entry.measure}, {entry.store}: {entry.figures}")  # noqa: T201 - the figures of the run
    assert entry.passed, (entry.invalid, *entry.problems)


def test_an_account_over_its_rate_is_told_so_and_others_are_answered(site: Site) -> None:
    """O03."""
    _passed(crowds.one_account_over_its_rate(site, windows=1, seconds=1, most=NOISY))


@pytest.mark.sqlite_only("it is about connections, which know nothing of the store")
def test_slow_connections_are_closed_and_others_are_answered(site: Site) -> None:
    """O06."""
    settings = {"TURNLOG_HEADER_TIMEOUT_S": "1.5", "TURNLOG_BODY_TIMEOUT_S": "1.5"}
    _passed(crowds.slow_connections(site, connections=300, windows=1, seconds=1, most=NOISY, **settings))


@pytest.mark.sqlite_only("it is about connections, which know nothing of the store")
def test_the_largest_bodies_at_once_take_bounded_memory(site: Site) -> None:
    """O08."""
    _passed(crowds.many_large_bodies(site, bodies=40))


@pytest.mark.sqlite_only("it is about connections, which know nothing of the store")
def test_idle_connections_take_little_memory_and_too_many_are_told_so(site: Site) -> None:
    """O08."""
    _passed(crowds.many_idle_connections(site, connections=500))


@pytest.mark.sqlite_only("streams are the same whatever the store")
def test_subscribers_take_nothing_from_those_who_record_and_a_slow_one_is_cut(site: Site) -> None:
    """E02."""
    _passed(many_subscribers(site, subscribers=50, seconds=1, windows=1, most=NOISY))


@pytest.mark.sqlite_only("its minute is spent once; the long form is for both")
def test_a_dead_receiver_and_its_backlog_keep_nobody_else_waiting(site: Site) -> None:
    """W03."""
    _passed(dead_receiver(site, backlog=2000, windows=1, seconds=2, most=NOISY))
