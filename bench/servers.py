"""The processes under load: started, timed, asked for their memory, stopped."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import httpx
from tests.harness import wait_for
from tests.postgres import Home
from tests.postgres_programs import find

if TYPE_CHECKING:
    from collections.abc import Iterator

TURNLOG = str(Path(sys.executable).with_name("turnlog"))
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("TURNLOG_")}


class Process(NamedTuple):
    """A server that listens: where, what it is, and how long it took from its start to its first 200."""

    base: str
    pid: int
    start_s: float

    def peak_mb(self) -> float:
        """The most memory that it has held."""
        status = Path(f"/proc/{self.pid}/status").read_text("ascii")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@contextlib.contextmanager
def running(*command: str) -> Iterator[Process]:
    """Run a server that prints its address."""
    started_at = time.perf_counter()
    environment = ENVIRONMENT | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            address = next(filter(None, (re.search(rb'"address":"([^"]+)"', line) for line in process.stdout or ())))
            base = address[1].decode()
            httpx.get(f"{base}/livez").raise_for_status()
            yield Process(base, process.pid, time.perf_counter() - started_at)
        finally:
            process.terminate()


@contextlib.contextmanager
def database() -> Iterator[str]:
    """The URL of a database on a PostgreSQL server as its defaults make it, which ends with the block."""
    programs = find()
    if programs is None:
        raise SystemExit("PostgreSQL 15 or newer is missing: apt-get install postgresql, or make test")
    with Home(programs) as home, home.cluster() as cluster:
        yield cluster.create_database()


def ask(url: str, statement: str) -> tuple[int, int]:
    """The two numbers that a statement finds in a database."""

    async def fetch() -> tuple[int, int]:
        connection = await asyncpg.connect(url)
        try:
            first, second = await connection.fetchrow(statement)
        finally:
            await connection.close()
        return int(first), int(second)

    return asyncio.run(fetch())


def wait_until_known(client: httpx.Client) -> None:
    """A key that was just made is good within a second."""
    wait_for(lambda: client.get("/v1/health").status_code == 200)
