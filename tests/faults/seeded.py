"""``python -m tests.faults.seeded [NAME…] [--store KIND]``: every bug of bugs.py, and the driver that must find it.

A driver finds a bug by what it says is wrong, and by nothing else: a run that could not go on has found nothing. Before
that each driver has to pass on the program as it is.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from tests.faults.bugs import BUGS
from tests.faults.delivering import deliver_through_kills
from tests.faults.following import follow_through_kills
from tests.faults.kills import kill_under_load
from tests.faults.ledger import Entry
from tests.faults.nursery import small_checkpoints
from tests.faults.power import power_cuts
from tests.faults.reading import read_everything
from tests.faults.site import new_site
from tests.faults.stalls import stall
from tests.stores import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tests.faults.site import Site


def _power(site: Site) -> Entry:
    """Its servers are made in this process, so that is where the bug is planted: in each of them, before it begins."""
    soon = partial(small_checkpoints, 200)
    changes = (soon, BUGS[site.bug].plant) if site.bug else (soon,)
    with tempfile.TemporaryDirectory(prefix="turnlog-power-") as folder:
        return power_cuts(Path(folder) / "disk", lives=1, cuts=20, seconds=0.7, changes=changes, to_the_first=True)


DRIVERS: dict[str, Callable[[Site], Entry]] = {
    "kills": lambda site: kill_under_load(site, cycles=5, target="server"),
    "database": lambda site: kill_under_load(site, cycles=4, target="database"),
    "full": lambda site: kill_under_load(site, cycles=1, target="disk"),
    "power": _power,
    "stalls": stall,
    "reading": read_everything,
    "following": follow_through_kills,
    "delivering": deliver_through_kills,
}
"""In the short form."""


@dataclass(frozen=True)
class Hunt:
    """A driver's run on one bug, or on none."""

    bug: str
    driver: str
    store: str
    found: tuple[str, ...]
    """What it said is wrong."""
    ended: str = ""
    """Why the run proves nothing."""

    @property
    def good(self) -> bool:
        """Caught; without a bug, passed."""
        return bool(self.found) if self.bug else not self.found and not self.ended


def hunt(site: Site, driver: str, bug: str = "") -> Hunt:
    """Let the driver look for the bug, in the short form."""
    with site.with_bug(bug) as place:
        try:
            entry = DRIVERS[driver](place)
        except (AssertionError, OSError, EOFError, TimeoutError, httpx.HTTPError) as error:
            return Hunt(bug, driver, site.store, (), ended=f"{type(error).__name__}: {error}")
    return Hunt(bug, driver, site.store, entry.problems, entry.invalid)


def hunts(store: str, names: Iterable[str] = ()) -> Iterator[tuple[str, str]]:
    """Driver and bug for everything that is to be run on a store, the controls first."""
    chosen = [bug for bug in BUGS.values() if bug.driver in DRIVERS and store in bug.stores]
    chosen = [bug for bug in chosen if not names or bug.name in names]
    yield from ((driver, "") for driver in dict.fromkeys(bug.driver for bug in chosen))
    yield from ((bug.driver, bug.name) for bug in chosen)


def seeded(stores: Sequence[str], names: Sequence[str] = ()) -> Entry:
    """Run them all, and print what came of each."""
    done = []
    for store in stores:
        with new_site(store) as site:
            for driver, bug in hunts(store, names):
                one = hunt(site, driver, bug)
                done.append(one)
                what = bug or "(no bug)"
                verdict = ("caught" if bug else "passed") if one.good else "NOT CAUGHT" if bug else "FAILED"
                print(f"{store:10}  {driver:10}  {what:28}  {verdict:10}  {(*one.found, one.ended)[0]}")  # noqa: T201
    planted = [one for one in done if one.bug]
    problems = tuple(f"{one.bug or 'no bug'}, {one.driver}, {one.store}: {one.ended}" for one in done if not one.good)
    caught = sum(one.good for one in planted)
    print(f"caught {caught} of {len(planted)} planted")  # noqa: T201
    figures: dict[str, int | float | str] = {
        "bugs": len({one.bug for one in planted}),
        "planted": len(planted),
        "caught": caught,
        "controls passed": sum(one.good for one in done if not one.bug),
    }
    return Entry("seeded bugs", " and ".join(stores), figures, problems, "" if planted else "none was planted")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.seeded")
    parser.add_argument("names", nargs="*", metavar="NAME", help="bugs; all of them where none is named")
    parser.add_argument("--store", choices=KINDS, action="append")
    arguments = parser.parse_args()
    entry = seeded(arguments.store or KINDS, arguments.names)
    sys.exit(not entry.passed)


if __name__ == "__main__":
    main()
