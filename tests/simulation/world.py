"""What everything in one simulated run shares: the seed's dice, the clock, the weather, the trace and the verdict."""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import TYPE_CHECKING

from turnlog.model import EVERYTHING

if TYPE_CHECKING:
    from tests.simulation.database import Database
    from tests.simulation.loop import SimulatedLoop
    from turnlog.model import Entry

US = 1_000_000
BEGINNING_US = 1_700_000_000 * US
ACCOUNTS = ("acme", "globex")
HOUR_S = 3600.0


@dataclass
class Weather:
    """What goes wrong now, as shares of one; seconds where it says so."""

    refused: float = 0.0
    """The store certainly does not carry it out."""
    uncertain: float = 0.0
    """The way to the store is cut while it carries it out, or not, or later."""
    failed: float = 0.0
    """The disk fails: nobody knows, and the process must end."""
    unsaved: float = 0.0
    """A webhook's progress is refused."""
    unread: float = 0.0
    """A read is refused."""
    cut: float = 0.0
    """A connection breaks: before the request arrived, or behind it."""
    replayed: float = 0.0
    """A proxy sends a request twice."""
    commit_s: tuple[float, float] = (0.001, 0.01)
    way_s: tuple[float, float] = (0.0005, 0.005)
    away_until: float = 0.0
    """The database answers nobody before."""


@dataclass(frozen=True)
class Plan:
    """What a seed is about."""

    database: str
    """``memory``, ``shared`` (several nodes) or ``sqlite``."""
    nodes: int
    callers: int
    requests: int
    webhooks: int
    readers: int
    max_rows: int
    deadline_s: float
    refuse_repeats: bool
    trouble_s: float
    storms: float
    """How often something large happens, in seconds."""
    year: bool
    """The wall clock is put forward by a year, too."""
    window: int
    """Events that a webhook's session holds."""


@dataclass
class Figures:
    """What a run came to."""

    counts: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, count: int = 1) -> None:
        self.counts[name] += count


class World:
    def __init__(self, seed: int, plan: Plan, database: Database, loop: SimulatedLoop) -> None:
        self.seed = seed
        self.plan = plan
        self.loop = loop
        self.database = database
        self.random = Random(f"world {seed}")  # noqa: S311
        self.weather = Weather()
        self.figures = Figures()
        self.problems: list[str] = []
        self.clock_offset_us: dict[int, int] = {}
        """Of each machine's wall clock, by the number of its node."""
        self.wrong_year = (inf, inf)
        """From when to when some machine's wall clock was ahead so far that idempotency keys ended."""
        self.is_over = False
        self._logs: dict[str, list[Entry]] = {}
        self._trace: list[str] = []

    @property
    def now_s(self) -> float:
        return self.loop.time()

    def now_us(self, machine: int) -> int:
        return BEGINNING_US + int(self.loop.time() * US) + self.clock_offset_us.get(machine, 0)

    def dice(self, share: float) -> bool:
        return share > 0 and self.random.random() < share

    def between(self, bounds: tuple[float, float]) -> float:
        return self.random.uniform(*bounds)

    def log(self, account: str) -> list[Entry]:
        """All of an account's log, as the database has it; what was read once is not read again."""
        known = self._logs.setdefault(account, [])
        end = self.database.last_position(account)
        while len(known) < end:
            part = self.database.log(account, EVERYTHING, after=len(known), up_to=end, limit=1000, max_chars=1 << 30)
            self.check(bool(part.entries) or part.reached == end, f"{account}: nothing behind {len(known)} of {end}")
            if not part.entries:
                break
            known += part.entries
        return known

    async def sleep(self, bounds: tuple[float, float]) -> None:
        await asyncio.sleep(self.between(bounds))

    def note(self, *words: object) -> None:
        """Something happened that must happen again where the seed is replayed."""
        if not self.is_over:
            self._trace.append(f"{self.loop.time():.6f} {' '.join(map(str, words))}")

    def problem(self, text: str) -> None:
        """A promise was broken."""
        if not self.is_over:
            self.problems.append(f"at {self.loop.time():.3f} s: {text}")
            self.note("PROBLEM", text)

    def check(self, holds: bool, text: str) -> None:
        if not holds:
            self.problem(text)

    @property
    def trace(self) -> list[str]:
        return self._trace

    def digest(self) -> str:
        """Two runs with the same one did the same, callback by callback."""
        text = "\n".join([*self._trace, str(self.loop.calls)])
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
