"""How much of the processors' time this machine was not given by the one that it runs on."""

from __future__ import annotations

from itertools import starmap
from pathlib import Path

_STEAL = 7
"""Of the fields behind ``cpu`` in /proc/stat (proc(5)): user, nice, system, idle, iowait, irq, softirq, steal."""


class Stolen:
    """Percent since it was made, or asked last. Beside it, a figure about time says little of a server."""

    def __init__(self) -> None:
        self._before = _ticks()

    def percent(self) -> float:
        """From 0 to 100, with one decimal; 0 where nothing was running in between."""
        now, before = _ticks(), self._before
        self._before = now
        passed = list(starmap(int.__sub__, zip(now, before, strict=True)))
        return round(100 * passed[_STEAL] / max(1, sum(passed)), 1)


def _ticks() -> list[int]:
    return [int(one) for one in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1 : _STEAL + 2]]
