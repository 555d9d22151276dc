"""Half of what a server can take, for a long time: what grows? Memory, descriptors, the WAL."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import linear_regression
from typing import TYPE_CHECKING

from tests.faults.crowds import memory_mb
from tests.faults.ledger import Entry
from tests.faults.open_loop import Phase
from tests.faults.overload import Place, percentile
from tests.stores import path_of

if TYPE_CHECKING:
    from tests.faults.site import Site

SLOPE_MB_PER_H = 1.0
WAL_MB = 80.0
_WINDOW_S = 10.0
_SHORTEST_S = 600
"""A slope from less time than this is noise, and not asserted."""


def soak(site: Site, *, seconds: float = 1800, warm_up: float = 0.2, seed: int = 1) -> Entry:
    """Single messages at half of the capacity; after a share of the time to warm up, memory has to stay as it is."""
    server = site.start()
    place = Place(server, "messages", seed)
    place.capacity(2)
    capacity = place.capacity(4)
    began_at = time.monotonic()
    hours: list[float] = []
    memory: list[float] = []
    descriptors: list[int] = []
    wal = [0.0]
    sent = answered = 0
    p99 = 0.0
    problems: list[str] = []
    while (passed_s := time.monotonic() - began_at) < seconds:
        seen = place.load([Phase(_WINDOW_S, capacity / 2)])
        place.asked.clear()  # of half an hour there are millions; what is stored is counted
        sent += len(seen.asked)
        answered += sum(one.status == 200 for one in seen.asked)
        p99 = max(p99, percentile((one.waited_s for one in seen.asked), 0.99))
        if passed_s >= seconds * warm_up:
            hours.append(passed_s / 3600)
            memory.append(memory_mb(server.worker_pid))
            descriptors.append(len(list(Path(f"/proc/{server.worker_pid}/fd").iterdir())))
        if site.store == "sqlite":
            log = path_of(server.url).with_name(f"{path_of(server.url).name}-wal")
            wal.append(log.stat().st_size / 1024 / 1024)
    slope = round(linear_regression(hours, memory).slope, 2) if len(hours) > 1 else 0.0
    if sent - answered:
        problems.append(f"{sent - answered} of {sent} requests at half load were not recorded")
    if seconds >= _SHORTEST_S and slope > SLOPE_MB_PER_H:
        problems.append(f"memory grows by {slope} MB an hour, at most {SLOPE_MB_PER_H}")
    if descriptors and descriptors[-1] > descriptors[0] + 4:
        problems.append(f"{descriptors[0]} descriptors became {descriptors[-1]}")
    if max(wal) > WAL_MB:
        problems.append(f"the WAL was {max(wal):.0f} MB long, at most {WAL_MB}")
    figures: dict[str, int | float | str] = {
        "minutes": round(seconds / 60, 1),
        "messages a second": round(answered / max(time.monotonic() - began_at, 1)),
        "recorded": answered,
        "worst p99 of 10 s, ms": p99,
        "memory at the end MB": round(memory[-1], 1) if memory else 0,
        "memory MB an hour": slope,
        "descriptors at the end": descriptors[-1] if descriptors else 0,
        "WAL at most MB": round(max(wal), 1),
    }
    return Entry("soak at half load", site.store, figures, tuple(problems), "" if answered else "nothing was recorded")
