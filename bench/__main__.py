"""``python -m bench``: Turnlog under load, beside an empty ASGI callable on the same server, in the same run.

Real processes, real syncs, wrk outside both. The scenarios take turns, round after round, so that whatever else the
machine does meets all of them; the figures are medians, with the lowest and the highest beside them.
"""

from __future__ import annotations

import argparse
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
    """``requests`` names an entry of ``prepare``; ``empty`` goes to the empty callable, all else to Turnlog."""

    title: str
    requests: str
    connections: int


SCENARIOS = (
    Scenario("empty ASGI callable, same server", "empty", 64),
    Scenario("record one message, durably", "message", 64),
    Scenario("record one message, durably", "message", 1),
    Scenario(f"record a batch of {BATCH}", "batch", 64),
    Scenario("read one message", "read", 64),
    Scenario(f"list {LISTED} messages", "list", 64),
)


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
    versions = [f"{name} {version(name)}" for name in ("turnlog", "uvicorn", "httptools", "uvloop", "msgspec")]
    print(
        f"{os.cpu_count()} x {model or platform.machine()}, {platform.system()} {platform.release()}, store on {kind}"
    )
    wrk = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout.partition(" [")[0]
    print(f"Python {platform.python_version()}, {', '.join(versions)}, SQLite {apsw.sqlite_lib_version()}, {wrk}")


def report(results: dict[Scenario, list[dict[str, float]]]) -> None:
    """The table; the ratio is that of the medians, to the first row."""
    ceiling = median(round_["per_s"] for round_ in results[SCENARIOS[0]])
    print(f"\n{'':<36}{'conn.':>6}{'requests/s':>12}{'lowest-highest':>20}{'ratio':>8}{'p50 ms':>9}{'p99 ms':>9}")
    for scenario, rounds in results.items():
        rates, p50, p99 = ([round_[name] for round_ in rounds] for name in ("per_s", "p50_ms", "p99_ms"))
        row = f"{scenario.title:<36}{scenario.connections:>6}{median(rates):>12,.0f}"
        row += f"{f'{min(rates):,.0f}-{max(rates):,.0f}':>20}{median(rates) / ceiling:>8.2f}"
        print(f"{row}{median(p50):>9.2f}{median(p99):>9.2f}")


def run(folder: Path, rounds: int, seconds: int) -> None:
    """The whole benchmark, on a store of its own in ``folder``."""
    path = folder / "turnlog.db"
    store = f"sqlite:///{path}"
    serve = (servers.TURNLOG, "serve", "--port", "0", "--store", store)
    with servers.running(*serve) as first:
        print(f"start to first 200, new store: {first.start_s:.2f} s, {first.peak_mb():.0f} MB")
    command = [servers.TURNLOG, "keys", "create", "bench", "--json", "--store", store]
    key = json.loads(subprocess.run(command, env=servers.ENVIRONMENT, capture_output=True, check=True).stdout)
    headers = {"asapp-api-id": key["id"], "asapp-api-secret": key["secret"]}
    results: dict[Scenario, list[dict[str, float]]] = {scenario: [] for scenario in SCENARIOS}
    with servers.running(*serve) as server, servers.running(sys.executable, "-m", "bench.empty") as empty:
        with httpx.Client(base_url=server.base, headers=headers) as client:
            for name, requests in prepare(client, headers).items():
                (folder / name).write_bytes(requests)
        for number in range(rounds + 1):
            for scenario in SCENARIOS:
                base = empty.base if scenario.requests == "empty" else server.base
                figures = measure(base, scenario.connections, seconds if number else 1, folder / scenario.requests)
                if number:  # the first round warms up
                    results[scenario].append(figures)
        report(results)
        print(f"\npeak memory: {server.peak_mb():.0f} MB; of the empty callable: {empty.peak_mb():.0f} MB")
    counted = apsw.Connection(str(path)).execute("SELECT count(*) FROM message").fetchone() or (0,)
    print(f"stored: {counted[0]:,} messages, {path.stat().st_size / counted[0]:.0f} bytes each on disk")
    with servers.running(*serve) as again:
        print(f"start to first 200, with them: {again.start_s:.2f} s, {again.peak_mb():.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each scenario in each round")
    parser.add_argument("--folder", help="where the store is made")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("the load generator wrk is missing: apt-get install wrk, or https://github.com/wg/wrk")
    with tempfile.TemporaryDirectory(prefix="turnlog-bench-", dir=arguments.folder) as folder:
        machine(Path(folder))
        run(Path(folder), arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
