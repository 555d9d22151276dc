"""The kinds of store that the suite runs on: where a new one comes from, and a look into one behind the server's back.

Statements are the same for both kinds where both name a table alike; what differs has a row for each.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import apsw
import asyncpg

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.postgres import Cluster

KINDS = ("sqlite", "postgresql")
_SQLITE = "sqlite:///"


class Stores(Protocol):
    """Makes the stores of one kind."""

    def new(self) -> str:
        """The URL of a store that is not there yet, or has nothing in it."""

    def drop(self, url: str) -> None:
        """Give back what it takes, where that is much."""


class SqliteStores:
    """Each store is a file in a folder of its own, which pytest clears away."""

    def __init__(self, make_folder: Callable[[], Path]) -> None:
        self._make_folder = make_folder

    def new(self) -> str:
        return f"{_SQLITE}{self._make_folder() / 'turnlog.db'}"

    def drop(self, url: str) -> None:
        pass


class PostgresqlStores:
    """Each store is a database of one server."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def new(self) -> str:
        return self._cluster.create_database()

    def drop(self, url: str) -> None:
        self._cluster.drop_database(url)


def path_of(url: str) -> Path:
    """The file of an SQLite store."""
    assert url.startswith(_SQLITE), url
    return Path(url.removeprefix(_SQLITE))


def rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    """What a statement finds, also while a server runs. Within a coroutine, call it in a thread."""
    if not url.startswith(_SQLITE):
        return asyncio.run(_ask(url, statement))
    connection = apsw.Connection(str(path_of(url)), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(10_000)
    try:
        return list(connection.execute(statement))
    finally:
        connection.close()


async def _ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url, server_settings={"search_path": "turnlog"})
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()


def contents(url: str) -> dict[str, object]:
    """Everything that is there, to be compared: the files' bytes, or the rows of every table; empty for nothing."""
    if url.startswith(_SQLITE):
        # What is in a lock says who has the store.
        return {path.name: b"" if path.suffix == ".lock" else path.read_bytes() for path in files(url)}
    tables = "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace('turnlog') AND relkind = 'r'"
    read = "SELECT {0}::text FROM {0}"
    return {name: sorted(rows(url, read.format(name))) for (name,) in rows(url, tables)}


def place(url: str) -> str:
    """What every message about a store names: the file, or the database and where it is."""
    return str(path_of(url)) if url.startswith(_SQLITE) else url.rpartition("@")[2]


def log_entries(url: str) -> list[tuple[int, int]]:
    """Account and position of every entry of the log."""
    if url.startswith(_SQLITE):
        packed = rows(url, "SELECT entry FROM message UNION ALL SELECT entry FROM conversation_change")
        return [(entry >> 40, entry & (2**40 - 1)) for (entry,) in packed]
    entries = "SELECT account, position FROM message UNION ALL SELECT account, position FROM conversation_change"
    return [(account, position) for account, position in rows(url, entries)]


def files(url: str) -> list[Path]:
    """Every file that may hold what is in the store, its log and the notes of its server among them."""
    if url.startswith(_SQLITE):
        return [path for path in path_of(url).parent.iterdir() if path.is_file()]
    rows(url, "CHECKPOINT")
    found = "SELECT current_setting('data_directory'), oid::text FROM pg_database WHERE datname = current_database()"
    ((data, oid),) = rows(url, found)
    folders = (Path(data) / "base" / oid, Path(data) / "pg_wal", Path(data).parent)
    return [path for folder in folders for path in folder.iterdir() if path.is_file()]
