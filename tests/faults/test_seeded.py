"""The drivers find what is wrong: a check that has never failed proves nothing.

Here are the bugs that are found quickly; ``make faults FAULTS=seeded`` has all of them. That the drivers pass on the
program as it is, is in test_kills.py and here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.faults.bugs import BUGS
from tests.faults.seeded import DRIVERS, hunt
from tests.faults.site import Site
from tests.harness import REPOSITORY
from turnlog.config import load
from turnlog.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

QUICK = [
    "batch_reversed",
    "key_outside_the_transaction",
    "retry_gets_fresh_ids",
    "swallowed_rollback",
    "unknown_said_to_be_refused",
    "dropped_and_stored",
    "queue_without_bounds",
    "page_skips_a_message",
    "strangers_see_a_message",
    "feed_skips_an_event",
    "webhook_out_of_order",
]


@pytest.fixture
def site(store_kind: str, new_store: Callable[[], str]) -> Iterator[Site]:
    with Site(store_kind, new_store) as one:
        yield one


@pytest.mark.parametrize("driver", ["reading", "following", "delivering"])
def test_a_driver_passes_on_the_program_as_it_is(site: Site, driver: str) -> None:
    """I01 (and every way to read), E01, W01, in the short form: the controls of the bugs."""
    done = hunt(site, driver)
    assert done.good, done


@pytest.mark.sqlite_only("in PostgreSQL a database of its own is frozen: `make faults`")
def test_nothing_refused_is_stored_when_the_store_stands_still(site: Site) -> None:
    """O05: refused at once where the queue is full, dropped at the deadline; what was under way is 503-02."""
    done = hunt(site, "stalls")
    assert done.good, done


@pytest.mark.sqlite_only("the same bugs, the same drivers: `make faults` has them all")
@pytest.mark.parametrize("bug", QUICK)
def test_a_seeded_bug_is_caught(site: Site, bug: str) -> None:
    done = hunt(site, BUGS[bug].driver, bug)
    assert done.found, done


@pytest.mark.postgresql_only("of what only PostgreSQL has, or has otherwise")
@pytest.mark.parametrize("bug", ["retry_gets_fresh_ids", "webhook_out_of_order"])
def test_a_seeded_bug_is_caught_on_postgresql(site: Site, bug: str) -> None:
    done = hunt(site, BUGS[bug].driver, bug)
    assert done.found, done


def test_every_bug_has_its_driver() -> None:
    """At least twelve bugs, and none that nobody looks for."""
    assert len(BUGS) >= 12
    assert {bug.driver for bug in BUGS.values()} <= set(DRIVERS)


def test_the_program_knows_nothing_of_bugs() -> None:
    """No setting, no variable and no import leads from src/ to them; the settings are those of docs/operations.md."""
    for path in (REPOSITORY / "src").rglob("*.py"):
        text = path.read_text("utf-8")
        assert not re.search(r"import.*\btests\b|faults\.bugs", text), path
        assert not [name for name in BUGS if name in text], path
    for name in BUGS:
        with pytest.raises(SettingError, match="unknown setting"):
            load({}, {f"TURNLOG_{name.upper()}": "1"}, None)
