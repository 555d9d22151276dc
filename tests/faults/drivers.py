"""Every fault driver, in its long and its short form: one row each."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.backlog import dead_receiver
from tests.faults.backups import drill
from tests.faults.calls import every_call
from tests.faults.clocks import clock_steps
from tests.faults.crowds import many_idle_connections, many_large_bodies, one_account_over_its_rate, slow_connections
from tests.faults.delivering import deliver_through_kills
from tests.faults.disks import FULL, QUOTA, READ_ONLY, refusing, slow
from tests.faults.following import follow_through_kills
from tests.faults.generated import generated
from tests.faults.kills import kill_under_load
from tests.faults.network import lossy_network, replaying_proxy
from tests.faults.nursery import small_checkpoints
from tests.faults.overload import overload, recovery
from tests.faults.power import control, power_cuts, power_cuts_of_a_large_wal, start_cuts
from tests.faults.reading import read_everything
from tests.faults.restarts import restart
from tests.faults.seeded import seeded
from tests.faults.site import Site, new_site
from tests.faults.soak import soak
from tests.faults.stalls import stall
from tests.faults.subscribers import many_subscribers
from tests.simulation.many import play_many
from tests.stores import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.faults.kills import Target
    from tests.faults.ledger import Entry
    from tests.faults.restarts import Target as Restarted

SQLITE, POSTGRESQL = ("sqlite",), ("postgresql",)


@dataclass(frozen=True)
class Driver:
    """``run`` is given the kind of store, and whether it is to be short; it yields each entry as it is done."""

    run: Callable[[str, bool], Iterable[Entry]]
    stores: tuple[str, ...] = KINDS


def _on_sites(*runs: Callable[[Site, bool], Entry], stores: tuple[str, ...] = KINDS) -> Driver:
    """Each run on a site of its own."""

    def run(store: str, short: bool) -> Iterable[Entry]:
        for one in runs:
            with new_site(store) as site:
                yield one(site, short)

    return Driver(run, stores)


def _in_folders(*runs: Callable[[Path, bool], Entry]) -> Driver:
    """Each run in a folder of its own, for what is about an SQLite store's files."""

    def run(_: str, short: bool) -> Iterable[Entry]:
        for one in runs:
            with tempfile.TemporaryDirectory(prefix="turnlog-faults-") as folder:
                yield one(Path(folder) / "disk", short)

    return Driver(run, SQLITE)


def _kills(target: Target, cycles: int, stores: tuple[str, ...] = KINDS) -> Driver:
    """1,000 messages and a few more between two kills."""

    def run(site: Site, short: bool) -> Entry:
        between = (100, 400) if short else (500, 1700)
        return kill_under_load(site, cycles=5 if short else cycles, between=between, target=target)

    return _on_sites(run, stores=stores)


def _restart(folder: Path, short: bool, target: Restarted) -> Entry:
    folder.mkdir()
    return restart(folder, messages=100_000 if short else 1_000_000, kills=5 if short else 100, target=target)


_SOON = (partial(small_checkpoints, 200),)
"""The WAL is folded into the database so often that a short life has many checkpoints to cut."""

DRIVERS: dict[str, Driver] = {
    "kills": _kills("worker", 500),
    "kills-all": _kills("server", 50),
    "kills-database": _kills("database", 50, POSTGRESQL),
    "kills-disk": _kills("disk", 20, SQLITE),
    "restarts": _in_folders(partial(_restart, target="worker"), partial(_restart, target="server")),
    "calls": _in_folders(lambda folder, short: every_call(folder, step=40 if short else 1)),
    "power": _in_folders(
        lambda folder, short: power_cuts(folder, lives=1 if short else 22, cuts=10 if short else 20, changes=_SOON),
        lambda folder, short: power_cuts_of_a_large_wal(folder, lives=1 if short else 5, cuts=4 if short else 20),
        lambda folder, short: start_cuts(folder, cuts=2 if short else 40),
        lambda folder, short: control(folder, runs=1 if short else 20),
    ),
    "disks": _in_folders(
        lambda folder, short: refusing(folder, "D06 a full disk", FULL, times=1 if short else 5),
        lambda folder, short: refusing(folder, "D06 a quota that is used up", QUOTA, times=1 if short else 5),
        lambda folder, short: refusing(folder, "D07 a disk made read-only", READ_ONLY, times=1 if short else 5),
        lambda folder, short: slow(folder, delay_s=0.3, seconds=3 if short else 30),
        lambda folder, short: slow(folder, delay_s=5, deadline_s=2, seconds=6 if short else 30),
    ),
    "backups": _on_sites(
        lambda site, short: drill(site, messages=100_000 if short else 1_000_000, acknowledged=300 if short else 3000),
        stores=SQLITE,
    ),
    "stalls": _on_sites(lambda site, _: stall(site)),
    "network": _on_sites(
        lambda site, short: lossy_network(site, 5 if short else 60),
        lambda site, short: replaying_proxy(site, 5 if short else 60),
    ),
    "clocks": _on_sites(lambda site, _: clock_steps(site)),
    "overload": _on_sites(
        lambda site, short: overload(site.start(), "batches", seconds=3 if short else 10),
        lambda site, short: overload(site.start(), "messages", seconds=3 if short else 10),
        lambda site, short: recovery(site.start(), "batches", seconds=3 if short else 10),
        lambda site, short: recovery(site.start(), "messages", seconds=3 if short else 10),
    ),
    "crowds": _on_sites(
        lambda site, _: one_account_over_its_rate(site),
        lambda site, _: slow_connections(site),
        lambda site, _: many_large_bodies(site),
        lambda site, _: many_idle_connections(site),
        lambda site, short: many_subscribers(site, subscribers=50 if short else 2000),
    ),
    "soak": _on_sites(lambda site, short: soak(site, seconds=20 if short else 1800)),
    "reading": _on_sites(lambda site, _: read_everything(site)),
    "following": _on_sites(lambda site, short: follow_through_kills(site, 1 if short else 30)),
    "delivering": _on_sites(lambda site, short: deliver_through_kills(site, 1 if short else 20)),
    "backlog": _on_sites(lambda site, short: dead_receiver(site, backlog=3_000 if short else 100_000)),
    "simulation": Driver(lambda _, short: [play_many(0, 500 if short else 100_000).entry()], SQLITE),
    "generated": _on_sites(lambda site, short: generated(site, 500 if short else 50_000)),
    "seeded": Driver(lambda store, _: [seeded([store])]),
}
