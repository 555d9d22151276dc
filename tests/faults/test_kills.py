"""Short runs of the kills, each of them the same as the long ones but for the number of cycles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.kills import kill_under_load
from tests.faults.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.faults.ledger import Entry
    from tests.postgres import Cluster

CYCLES = 5


@pytest.fixture
def site(store_kind: str, new_store: Callable[[], str]) -> Iterator[Site]:
    with Site(store_kind, new_store) as one:
        yield one


def passed(entry: Entry) -> None:
    """Shows the figures, and what is wrong."""
    print(f"\n{entry.measure}, {entry.store}: {entry.figures}")  # noqa: T201 - the figures of the run
    assert entry.passed, (entry.invalid, *entry.problems)


def test_nothing_acknowledged_is_lost_when_the_worker_is_killed(site: Site) -> None:
    """C01."""
    passed(kill_under_load(site, cycles=CYCLES, target="worker"))


def test_nothing_acknowledged_is_lost_when_parent_and_worker_are_killed(site: Site) -> None:
    """C01, as a machine that dies, and is started again."""
    passed(kill_under_load(site, cycles=3, target="server"))


@pytest.mark.sqlite_only("an SQLite file is written by the server itself")
def test_nothing_acknowledged_is_lost_when_no_file_can_be_written(site: Site) -> None:
    """D04, C01: every write fails, then all is killed."""
    passed(kill_under_load(site, cycles=2, target="disk"))


@pytest.mark.postgresql_only("an SQLite file has no server")
def test_nothing_acknowledged_is_lost_when_the_database_is_killed(cluster: Cluster) -> None:
    """C01, P01, P02: its processes, one of them, or every session, in the middle of what they do."""
    with Site("postgresql", cluster.create_database, cluster) as site:
        passed(kill_under_load(site, cycles=CYCLES, target="database"))
