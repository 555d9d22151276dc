"""``python -m bench.patroni``: primaries of a Patroni cluster die under Turnlog's load, again and again.

The cluster is that of docs/patroni.md, all on this machine. Two servers record in it, reached in both ways that the
page shows; what they have acknowledged is held against what they list at the end, and nobody restarts them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
from tests.failover import Figures, run
from tests.harness import Server, run_cli
from tests.history import log_problems

from bench.patroni_cluster import PatroniCluster
from bench.patroni_machine import programs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.harness import Key

    from bench.patroni_machine import Machine

PAUSE_S = 0.01
"""Between two requests of a connection: three machines, two servers and their callers share these processors."""
TIMEOUT_S = 120
POLL_S = 0.05
ACCOUNTS = 4
"""As many as a server records in side by side."""
SYMPTOMS = ("kill", "freeze")
WAYS = ("direct", "haproxy")


class Primary:
    """What dies, in one of two ways, after everything that died before has come back."""

    def __init__(self, cluster: PatroniCluster, symptom: str) -> None:
        self._cluster = cluster
        self._symptom = symptom
        self._dead: Machine | None = None
        self._watching: list[threading.Thread] = []
        self.database_s: list[float] = []
        """By failure: until the database itself committed again, on a primary and on a standby."""

    def fail(self) -> float:
        """Let the primary fail; the clock's reading when nothing of its machine ran any more."""
        self.restore()
        machine = self._cluster.require_primary()
        if self._symptom == "kill":
            machine.kill()
        else:
            machine.freeze()
        dead_at = time.perf_counter()
        self._dead = machine
        self._watching.append(threading.Thread(target=self._watch, args=(machine, dead_at)))
        self._watching[-1].start()
        return dead_at

    def _watch(self, dead: Machine, dead_at: float) -> None:
        ports = [machine.ports["5432"] for machine in self._cluster.machines if machine is not dead]
        asyncio.run(_commit_somewhere(ports, self._cluster.page.passwords["superuser"]))
        self.database_s.append(time.perf_counter() - dead_at)

    def restore(self) -> None:
        """Bring back what died; wait until the cluster can lose another primary."""
        while self._watching:
            self._watching.pop().join()
        if self._dead is not None:
            if self._symptom == "kill":
                self._cluster.start(self._dead)
            else:
                self._dead.thaw()
            self._dead = None
        self._cluster.wait_whole()


class Result(NamedTuple):
    """What a run has shown, of Turnlog and of the database behind it."""

    figures: Figures
    database_s: list[float]


async def _commit_somewhere(ports: Sequence[int], password: str) -> None:
    """Commit a transaction durably, so on a standby too, on whichever server does it first."""

    async def commit(port: int) -> None:
        while True:
            with contextlib.suppress(OSError, EOFError, asyncpg.PostgresError, asyncpg.InterfaceError):
                connection = await asyncpg.connect(
                    host="127.0.0.1", port=port, user="postgres", password=password, database="postgres", timeout=5
                )
                try:
                    if not await connection.fetchval("SELECT pg_is_in_recovery()"):
                        await connection.execute("SELECT pg_logical_emit_message(true, 'bench', '')")
                        return
                finally:
                    connection.terminate()
            await asyncio.sleep(POLL_S)

    tasks = [asyncio.create_task(commit(port)) for port in ports]
    _, pending = await asyncio.wait(tasks, timeout=TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _new_account(server: Server) -> Key:
    """A key of an account of its own, in which nothing is recorded."""
    name = f"account-{time.time_ns()}"
    return server.create_key(name, "--account", name)


def fail_over(cluster: PatroniCluster, url: str, symptom: str, rounds: int) -> Result:
    """Two servers at ``url``, ``rounds`` primaries; what the run has shown, a look at the log's positions included."""
    primary = Primary(cluster, symptom)
    primary.restore()
    with Server(url) as first, Server(url) as second:
        keys = [_new_account(first) for _ in range(ACCOUNTS)]
        for server in (first, second):
            with server.client(keys[-1]):
                pass  # waits until the keys are known
        figures = asyncio.run(
            run(
                (first, second),
                keys[0],
                primary.fail,
                others=keys[1:],
                rounds=rounds,
                timeout_s=TIMEOUT_S,
                pause_s=PAUSE_S,
                told=lambda text: print(f"  {text}", flush=True),
            )
        )
        statuses = [server.stop() for server in (first, second)]
    if statuses != [0, 0]:
        figures.problems.append(f"the servers ended with {statuses}")
    primary.restore()
    figures.problems += log_problems(url)
    return Result(figures, primary.database_s)


def show_machine(folder: Path) -> None:
    """Say what the figures are seen on."""
    model = Path("/proc/cpuinfo").read_text("utf-8").partition("model name")[2].partition("\n")[0].strip("\t :")
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    kind = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    print(f"{os.cpu_count()} x {model or platform.machine()}, {platform.system()} {platform.release()}, data on {kind}")
    paths = programs()
    for program, flag in (
        (f"{paths['postgresql']}/postgres", "-V"),
        (paths["patroni"], "--version"),
        (paths["etcd"], "--version"),
        (paths["haproxy"], "-v"),
    ):
        said = subprocess.run([program, flag], capture_output=True, text=True, check=True).stdout
        print(said.partition("\n")[0])


ROWS: tuple[tuple[str, Callable[[Result], str]], ...] = (
    ("fail-overs", lambda r: str(len(r.figures.all_s))),
    ("s to the first acknowledged write: median, worst", lambda r: _times(r.figures.first_s)),
    ("s to one by each server in each account", lambda r: _times(r.figures.all_s)),
    ("s until the database itself committed again", lambda r: _times(r.database_s)),
    ("s that a caller waited for an answer at most", lambda r: f"{max(r.figures.slowest_s):.1f}"),
    ("messages acknowledged", lambda r: f"{r.figures.acknowledged:,}"),
    ("lost", lambda r: str(r.figures.lost)),
    ("duplicated", lambda r: str(r.figures.duplicated)),
    ("other problems", lambda r: str(len(r.figures.problems) - r.figures.lost - r.figures.duplicated)),
    ("requests with a key, sent again and acknowledged", lambda r: f"{r.figures.retried:,}"),
    ("requests without one, of unknown outcome", lambda r: f"{r.figures.history.count('unknown'):,}"),
    ("answers 503-01, 503-02", lambda r: f"{r.figures.codes['503-01']:,}, {r.figures.codes['503-02']:,}"),
    ("other answers 5xx", lambda r: str({c: n for c, n in r.figures.codes.items() if c[0] == "5" and c[:3] != "503"})),
)


def _times(seconds: list[float]) -> str:
    return f"{median(seconds):.1f}, {max(seconds):.1f}"


def report(results: dict[str, Result]) -> None:
    """The table, as docs/patroni.md has it, and every problem."""
    print(f"\n| | {' | '.join(results)} |\n|---|{'---|' * len(results)}")
    for title, figure in ROWS:
        print(f"| {title} | {' | '.join(figure(result) for result in results.values())} |")
    for way, result in results.items():
        for problem in result.figures.problems[:20]:
            print(f"{way}: {problem}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.patroni", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="fail-overs each way")
    parser.add_argument("--symptom", choices=SYMPTOMS, default="kill", help="kill -9 of all, or nothing answers")
    parser.add_argument("--way", choices=WAYS, action="append", help="default: both")
    parser.add_argument("--keep", type=Path, help="a folder for the logs of all servers, where the run fails")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results: dict[str, Result] = {}
    keep = arguments.keep and arguments.keep.resolve()
    # In the cluster's folder, so that what is started here ends with it, too, if this process is killed.
    with PatroniCluster(keep) as cluster, contextlib.chdir(cluster.folder):
        show_machine(cluster.folder)
        owner, *urls = cluster.page.urls()
        migrated = run_cli("migrate", "--store", owner)
        if migrated.returncode:
            raise SystemExit(migrated.stderr)
        for way in arguments.way or WAYS:
            print(f"{way}, {arguments.symptom}:", flush=True)
            results[way] = fail_over(cluster, urls[WAYS.index(way)], arguments.symptom, arguments.rounds)
    report(results)
    if any(result.figures.problems for result in results.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
