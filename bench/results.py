"""What a run has found, whole: the report is made of this alone."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING

import msgspec

from bench.load import Load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Round(Load):
    """One turn of a scenario: what wrk says, and the processor time meanwhile, where it is known."""

    server_cpu_s: float | None = None
    database_cpu_s: float | None = None
    others_share: float | None = None
    """Of all processor time there was: what neither these processes nor wrk took."""


class Figure(msgspec.Struct):
    """A median, with the lowest and the highest beside it."""

    median: float
    lowest: float
    highest: float


class Held(msgspec.Struct):
    """What a server took besides time. Bytes are those of the whole store by message; ``None``: it stores nothing."""

    start_s: float
    rest_mb: float
    peak_mb: float = 0
    messages: int | None = None
    disk_bytes: float | None = None


class LongList(msgspec.Struct):
    """The whole list of a long conversation, read while others ask; ``quiet`` is those others without it."""

    messages: int
    bytes: int
    seconds: list[float] = []
    first_byte_ms: list[float] = []
    growth_mb: list[float] = []
    quiet: list[Load] = []
    meanwhile: list[Load] = []


class Results(msgspec.Struct):
    """``rounds``: by contestant and scenario, in order."""

    machine: dict[str, str]
    versions: dict[str, str]
    rounds_wanted: int
    seconds: int
    stored: int
    field_bytes: float = 0
    """Of a message's own fields, as the read operation gives them."""
    rounds: dict[str, dict[str, list[Round]]] = {}
    held: dict[str, Held] = {}
    long_list: LongList | None = None

    def of(self, contestant: str, scenario: str) -> list[Round]:
        """The rounds of a scenario; none where it was not part of the run."""
        return self.rounds.get(contestant, {}).get(scenario, [])

    def figure(self, contestant: str, scenario: str, value: Callable[[Round], float]) -> Figure | None:
        """A value over all rounds; ``None`` where there are none."""
        return figure([value(one) for one in self.of(contestant, scenario)])

    def per_s(self, contestant: str, scenario: str) -> Figure | None:
        """Requests per second."""
        return self.figure(contestant, scenario, lambda one: one.per_s)


def figure(values: list[float]) -> Figure | None:
    """The median of the values, and how far they are apart; ``None`` where there are none."""
    return Figure(median(values), min(values), max(values)) if values else None


def read(path: Path) -> Results:
    return msgspec.json.decode(path.read_bytes(), type=Results)


def write(results: Results, path: Path) -> None:
    text = msgspec.json.format(msgspec.json.encode(results), indent=1)
    path.write_bytes(text + b"\n")
