"""``python -m bench``: Turnlog under load on both stores, beside an empty ASGI callable on the same server, in one run.

Real processes, real syncs, wrk outside both. The scenarios take turns, round after round, so that whatever else the
machine does meets all of them; the figures are medians, with the lowest and the highest beside them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import NamedTuple

import apsw
import httpx

from bench import servers
from bench.requests import BATCH, LISTED, prepare


class Scenario(NamedTuple):
    """``requests`` names an entry of ``prepare``."""

    title: str
    requests: str
    connections: int


CEILING = Scenario("empty ASGI callable, same server", "empty", 64)
SCENARIOS = (
    Scenario("record one message, durably", "message", 64),
    Scenario("record one message, durably", "message", 1),
    Scenario(f"record a batch of {BATCH}", "batch", 64),
    Scenario("read one message", "read", 64),
    Scenario(f"list {LISTED} messages", "list", 64),
)
KINDS = ("sqlite", "postgresql")


def measure(base: str, connections: int, seconds: int, file: Path) -> dict[str, float]:
    """One round. A request that fails ends the benchmark: figures of refusals are worth nothing."""
    script = str(Path(__file__).with_name("load.lua"))
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script, base, "--", str(file)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    told: dict[str, float] = json.loads(output.splitlines()[-1])
    if told["failed"] or not told["requests"]:
        raise SystemExit(f"{file.name}: {told['failed']} of {told['requests']} requests failed\n{output}")
    return told | {"per_s": told["requests"] / told["seconds"]}


def machine(folder: Path) -> None:
    """Say what the figures are seen on. On tmpfs a sync costs nothing, so the kind of file system is said too."""
    model = Path("/proc/cpuinfo").read_text("utf-8").partition("model name")[2].partition("\n")[0].strip("\t :")
    command = ["stat", "--file-system", "--format=%T", str(folder)]
    kind = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    versions = [
        f"{name} {version(name)}" for name in ("turnlog", "uvicorn", "httptools", "uvloop", "msgspec", "asyncpg")
    ]
    print(
        f"{os.cpu_count()} x {model or platform.machine()}, {platform.system()} {platform.release()}, store on {kind}"
    )
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.partition(" [")[0]
    print(f"Python {platform.python_version()}, {', '.join(versions)}, SQLite {apsw.sqlite_lib_version()}, {wrk}")


def report(results: dict[tuple[str, Scenario], list[dict[str, float]]]) -> None:
    """The table; the ratio is that of the medians, to the first row."""
    ceiling = median(round_["per_s"] for round_ in results["", CEILING])
    print(f"\n{'':<46}{'conn.':>6}{'requests/s':>12}{'lowest-highest':>20}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}")
    for (kind, scenario), rounds in results.items():
        rates, p50, p99 = ([round_[name] for round_ in rounds] for name in ("per_s", "p50_ms", "p99_ms"))
        row = f"{f'{kind:<11}' if kind else ''}{scenario.title}".ljust(46) + f"{scenario.connections:>6}"
        row += f"{median(rates):>12,.0f}{f'{min(rates):,.0f}-{max(rates):,.0f}':>20}{median(rates) / ceiling:>8.2f}"
        print(f"{row}{median(p50):>9.2f}{median(p99):>9.2f}")


class Contestant(NamedTuple):
    """A server on a store of one kind, and the files with its requests."""

    kind: str
    url: str
    server: servers.Process
    folder: Path


def contestant(kind: str, url: str, folder: Path, running: contextlib.ExitStack) -> Contestant:
    """Start one, and make what its requests are about."""
    folder.mkdir()
    server = running.enter_context(servers.running(servers.TURNLOG, "serve", "--port", "0", "--store", url))
    print(f"{kind}: start to first 200, new store: {server.start_s:.2f} s, {server.peak_mb():.0f} MB")
    command = [servers.TURNLOG, "keys", "create", "bench", "--json", "--store", url]
    key = json.loads(subprocess.run(command, env=servers.ENVIRONMENT, capture_output=True, check=True).stdout)
    headers = {"asapp-api-id": key["id"], "asapp-api-secret": key["secret"]}
    with httpx.Client(base_url=server.base, headers=headers) as client:
        servers.wait_until_known(client)
        for name, requests in prepare(client, headers).items():
            (folder / name).write_bytes(requests)
    return Contestant(kind, url, server, folder)


def run(folder: Path, rounds: int, seconds: int, kinds: tuple[str, ...]) -> None:
    """The whole benchmark, on stores of its own; those of SQLite in ``folder``."""
    results: dict[tuple[str, Scenario], list[dict[str, float]]] = {("", CEILING): []}
    with contextlib.ExitStack() as running:
        urls = {"sqlite": f"sqlite:///{folder / 'turnlog.db'}"}
        if "postgresql" in kinds:
            urls["postgresql"] = running.enter_context(servers.database())
        contestants = [contestant(kind, urls[kind], folder / kind, running) for kind in kinds]
        empty = running.enter_context(servers.running(sys.executable, "-m", "bench.empty"))
        for number in range(rounds + 1):
            length = seconds if number else 1  # the first round warms up
            turns = [("", CEILING, empty.base, contestants[0].folder)]
            turns += [(one.kind, s, one.server.base, one.folder) for s in SCENARIOS for one in contestants]
            for kind, scenario, base, requests in turns:
                figures = measure(base, scenario.connections, length, requests / scenario.requests)
                if number:
                    results.setdefault((kind, scenario), []).append(figures)
        report(results)
        print(f"\npeak memory of the empty callable: {empty.peak_mb():.0f} MB")
        for one in contestants:
            count, size = stored(one.url)
            peak = f"peak memory {one.server.peak_mb():.0f} MB"
            print(f"{one.kind}: {peak}; {count:,} messages, {size / count:.0f} bytes each")


def stored(url: str) -> tuple[int, int]:
    """How many messages there are, and how many bytes the store takes, indexes included."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        (count,) = apsw.Connection(str(path)).execute("SELECT count(*) FROM message").fetchone() or (0,)
        return int(count), path.stat().st_size
    return servers.ask(url, "SELECT count(*), pg_total_relation_size('turnlog.message') FROM turnlog.message")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each scenario in each round")
    parser.add_argument("--folder", help="where the SQLite store is made")
    parser.add_argument("--store", choices=(*KINDS, "both"), default="both")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("the load generator wrk is missing: apt-get install wrk, or https://github.com/wg/wrk")
    kinds = KINDS if arguments.store == "both" else (arguments.store,)
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-", dir=arguments.folder) as folder:
        machine(Path(folder))
        run(Path(folder), arguments.rounds, arguments.seconds, kinds)


if __name__ == "__main__":
    main()
