"""The processes under load: started, timed, asked for their time and memory, stopped."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
from tests.faults.machine import processor_ticks
from tests.postgres import Home
from tests.postgres_programs import find

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.postgres import Cluster

TURNLOG = str(Path(sys.executable).with_name("turnlog"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TURNLOG_")}
EMPTY = (sys.executable, "-m", "bench.empty")
POSTGRES_SETTINGS = {"shared_buffers": "512MB", "max_wal_size": "4GB", "checkpoint_timeout": "30min"}
"""What one sets for such a load; what makes a commit durable stays as it comes."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_QUIET_SHARE = 0.05
_LOOK_S = 0.1
_PATIENCE_S = 15


class Process(NamedTuple):
    """A process and its children: of a server, its workers; of PostgreSQL, its backends."""

    pid: int

    def family(self) -> Iterator[int]:
        """Its own id, and those of its children and theirs."""
        yield self.pid
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            for child in (task / "children").read_text("ascii").split():
                with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
                    yield from Process(int(child)).family()

    def cpu_s(self) -> float:
        """Processor time until now; that of children which have ended is included."""
        ticks = 0
        for pid in self.family():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                stat = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
                ticks += sum(map(int, stat[11:15]))
        return ticks / _TICKS_PER_S

    def _memory_mb(self, file: str, field: str) -> float:
        found = [Path(f"/proc/{pid}/{file}").read_text("ascii") for pid in self.family()]
        return sum(int(text.partition(f"\n{field}:")[2].split()[0]) for text in found) / 1024

    def memory_mb(self) -> float:
        """Memory held now; what several processes share, a parent and what it has forked, is counted once."""
        return self._memory_mb("smaps_rollup", "Pss")

    def peak_mb(self) -> float:
        """The most memory held since the start, or since ``forget_peak``, less what is counted more than once now."""
        shared_mb = self._memory_mb("status", "VmRSS") - self.memory_mb()
        return self._memory_mb("status", "VmHWM") - shared_mb

    def forget_peak(self) -> None:
        for pid in self.family():
            Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")


class Everybody:
    """Processor time of the whole machine from here on, a hypervisor's other guests included."""

    def __init__(self) -> None:
        self._before = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        ticks = processor_ticks()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        idle = ticks[3] + ticks[4]
        return sum(ticks) / _TICKS_PER_S, idle / _TICKS_PER_S, children.ru_utime + children.ru_stime

    def others_share(self, known_s: float) -> float:
        """How much of it went to neither ``known_s`` nor to children that have ended meanwhile, such as wrk."""
        total_s, idle_s, children_s = (now - before for now, before in zip(self._now(), self._before, strict=True))
        return max(0.0, (total_s - idle_s - children_s - known_s) / total_s)


class Server(NamedTuple):
    """A server that listens: where, its process, how long it took to its first 200, and what it held of memory then."""

    base: str
    process: Process
    start_s: float
    rest_mb: float


@contextlib.contextmanager
def running(command: Iterable[str], path: str = "/", headers: dict[str, str] | None = None) -> Iterator[Server]:
    """Run a server that prints its address, until the end of the block; ``path`` is what it is asked for first."""
    started_at = time.perf_counter()
    environment = ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            said = bytearray()
            while (address := re.search(rb'"address":"([^"]+)"', said)) is None:
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"{' '.join(command)} ended:\n{said.decode(errors='replace')}")
                said += line
            base = address[1].decode()
            httpx.get(f"{base}{path}", headers=headers).raise_for_status()
            start_s = time.perf_counter() - started_at
            # What it goes on saying must not fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield Server(base, Process(process.pid), start_s, Process(process.pid).memory_mb())
        finally:
            process.terminate()
            process.wait()


class Database(NamedTuple):
    """A PostgreSQL server."""

    cluster: Cluster

    @property
    def process(self) -> Process:
        pid = (self.cluster.data / "postmaster.pid").read_text("utf-8").split("\n", 1)[0]
        return Process(int(pid))

    def new(self) -> str:
        """The URL of a new database."""
        return self.cluster.create_database()

    def version(self) -> str:
        return str(self.cluster.sql("SHOW server_version")[0][0])

    def ask(self, url: str, statement: str) -> tuple[Any, ...]:
        """The first row that a statement finds in a database."""
        name = url.rpartition("/")[2]
        return self.cluster.sql(statement, database=name, timeout_s=120)[0]


@contextlib.contextmanager
def postgresql() -> Iterator[Database]:
    """A server that ends with the block."""
    programs = find()
    if programs is None:
        raise SystemExit("PostgreSQL 15 or newer is missing: apt-get install postgresql, or make test")
    with Home(programs) as home, home.cluster() as cluster:
        cluster.configure(**POSTGRES_SETTINGS)
        yield Database(cluster)


def settle(processes: Iterable[Process]) -> None:
    """Wait until nobody works on what is over any more (checkpoints, vacuums), and until it is on the disk."""
    every = list(processes)
    os.sync()
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        before = sum(process.cpu_s() for process in every)
        time.sleep(_LOOK_S)
        if sum(process.cpu_s() for process in every) - before <= _QUIET_SHARE * _LOOK_S:
            return
