"""How much of the processors' time this machine was not given by the one that it runs on."""

from __future__ import annotations

from pathlib import Path

_STEAL = 7


class Stolen:
    """Percent since it was made, or asked last. Beside it, a figure about time says little of a server."""

    def __init__(self) -> None:
        self._before = processor_ticks()

    def percent(self) -> float:
        """From 0 to 100, with one decimal."""
        now, before = processor_ticks(), self._before
        self._before = now
        passed = [later - earlier for later, earlier in zip(now, before, strict=True)]
        return round(100 * passed[_STEAL] / max(1, sum(passed)), 1)


def processor_ticks() -> list[int]:
    """All processors' ticks since the start: user, nice, system, idle, iowait, irq, softirq, steal (proc(5))."""
    return [int(ticks) for ticks in Path("/proc/stat").read_text("ascii").split("\n", 1)[0].split()[1:9]]
