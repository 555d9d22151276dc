"""``python -m bench.raw URL SECONDS``: rows into a database without HTTP, one synced transaction each, one connection.

The other ceiling: what a message costs where nobody has to ask for it. The table has the columns of a recorded message
and the two indexes that its reading needs.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from statistics import quantiles
from typing import TYPE_CHECKING

import apsw
import asyncpg
import msgspec
import uvloop

from bench.load import Load
from bench.requests import CONVERSATIONS, ROLES, SENDERS, TEXTS

if TYPE_CHECKING:
    from collections.abc import Iterator

_TABLE = """
    CREATE TABLE IF NOT EXISTS raw_message (
        position bigint PRIMARY KEY, conversation bigint NOT NULL, id text NOT NULL UNIQUE, role text NOT NULL,
        sender text NOT NULL, client_at bigint NOT NULL, created_at bigint NOT NULL, text text NOT NULL)
"""
_INDEX = "CREATE INDEX IF NOT EXISTS raw_listing ON raw_message (conversation, client_at)"
_LAST = "SELECT coalesce(max(position), 0) FROM raw_message"
_COLUMNS = "position, conversation, id, role, sender, client_at, created_at, text"


def _rows(first: int) -> Iterator[tuple[object, ...]]:
    for n in itertools.count(first):
        now = time.time_ns() // 1000
        text, role, sender = TEXTS[n % len(TEXTS)], ROLES[n % 2], SENDERS[n % 2]
        yield n, n % CONVERSATIONS, f"01BX5ZZKBK{n:016}", role, sender, now, now, text


def sqlite(path: str, seconds: float) -> list[float]:
    """The time of each insert."""
    connection = apsw.Connection(path)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(_TABLE.replace("bigint PRIMARY KEY", "INTEGER PRIMARY KEY"))
    connection.execute(_INDEX)
    (last,) = connection.execute(_LAST).fetchone() or (0,)
    insert = f"INSERT INTO raw_message ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
    times = []
    end = time.perf_counter() + seconds
    for row in _rows(last + 1):
        started_at = time.perf_counter()
        connection.execute(insert, row)
        times.append(time.perf_counter() - started_at)
        if started_at > end:
            break
    connection.close()
    return times


async def postgresql(url: str, seconds: float) -> list[float]:
    """The time of each insert."""
    connection = await asyncpg.connect(url)
    await connection.execute(_TABLE)
    await connection.execute(_INDEX)
    last = await connection.fetchval(_LAST)
    marks = ", ".join(f"${n}" for n in range(1, 9))
    insert = await connection.prepare(f"INSERT INTO raw_message ({_COLUMNS}) VALUES ({marks})")  # noqa: S608
    times = []
    end = time.perf_counter() + seconds
    for row in _rows(last + 1):
        started_at = time.perf_counter()
        await insert.fetch(*row)
        times.append(time.perf_counter() - started_at)
        if started_at > end:
            break
    await connection.close()
    return times


def main(url: str, seconds: float) -> None:
    if url.startswith("sqlite"):
        times = sqlite(url.removeprefix("sqlite:///"), seconds)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            times = runner.run(postgresql(url, seconds))
    cuts = quantiles([1000 * one for one in times], n=1000)
    load = Load(len(times), sum(times), p50_ms=cuts[499], p99_ms=cuts[989], p999_ms=cuts[998])
    print(msgspec.json.encode(load).decode())


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
