"""The load: wrk, one thread of it, outside every server. It waits for each answer before it asks again."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import msgspec

SCRIPT = Path(__file__).with_name("load.lua")


class Load(msgspec.Struct):
    """What wrk says of one round."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    failed: int = 0

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


def need_wrk() -> None:
    """End the program where there is no wrk."""
    if shutil.which("wrk") is None:
        raise SystemExit("the load generator wrk is missing: apt-get install wrk, or https://github.com/wg/wrk")


def wrk_version() -> str:
    told = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False).stdout
    return told.partition(" [")[0].removeprefix("wrk ")


def command(base: str, connections: int, seconds: int, requests: Path, pause_ms: float = 0) -> list[str]:
    """wrk's command line, with a mean pause of each connection before each request."""
    options = ["-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "--latency", "-s", str(SCRIPT)]
    return ["wrk", *options, base, "--", str(requests), str(pause_ms)]


def told(output: str, name: str) -> Load:
    """What wrk has printed. A request that failed ends the benchmark: figures of refusals are worth nothing."""
    load = msgspec.json.decode(output.splitlines()[-1], type=Load)
    if load.failed or not load.requests:
        raise SystemExit(f"{name}: {load.failed} of {load.requests} requests failed\n{output}")
    return load


def measure(base: str, connections: int, seconds: int, requests: Path, pause_ms: float = 0) -> Load:
    """One round against a server."""
    line = command(base, connections, seconds, requests, pause_ms)
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{requests.name}: wrk ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return told(done.stdout, requests.name)
