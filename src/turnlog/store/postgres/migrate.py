"""What a database must be to hold a store, and its numbered forward migrations.

Each file in ``schema/`` is applied once, in one transaction with its number. Its first line may say
``-- oldest program: N``: the oldest schema whose programs still work with the database afterwards, so that nodes can be
replaced one by one; without it, the one before.
"""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import asyncpg

from turnlog.errors import FinalError, SettingError

if TYPE_CHECKING:
    from asyncpg import Connection

OLDEST_SERVER = 150000
_LOCK = 0x5475726E6C6F67
"""``Turnlog``: nodes that start at once take turns here."""
_PATIENCE = "300s"
_OLDEST_PROGRAM = re.compile(r"-- oldest program: ([0-9]+)\n")

_SERVER = """
    SELECT current_setting('fsync') AS fsync, current_setting('server_encoding') AS encoding,
        current_setting('server_version_num')::int AS server,
        concat(extract(epoch FROM pg_postmaster_start_time()), ' ',
            (SELECT oid FROM pg_database WHERE datname = current_database())) AS place,
        EXISTS (SELECT FROM pg_namespace WHERE nspname = 'turnlog') AS has_schema,
        to_regclass('turnlog.schema_version') IS NOT NULL AS has_version
"""
_VERSION = """
    SELECT v.version, v.oldest_program, c.source FROM turnlog.schema_version AS v LEFT JOIN turnlog.copying AS c ON true
"""


class State(NamedTuple):
    """What a database holds: the number of its schema (0: none yet), the oldest program's, an unfinished copy."""

    version: int
    oldest_program: int
    copied_from: str | None
    fsync: bool
    place: str
    """Another one for another server, for the same one started again, and for another database of the same name."""


def migrations() -> list[tuple[int, str]]:
    """Every migration that this program knows, as its number and its SQL, in order."""
    found = files("turnlog.store.postgres").joinpath("schema").iterdir()
    return sorted((int(file.name[:4]), file.read_text("utf-8")) for file in found if file.name.endswith(".sql"))


def newest() -> int:
    """The number of this program's schema."""
    return migrations()[-1][0]


async def look(connection: Connection, shown: str) -> State:
    """What the database holds. Raises SettingError where this program cannot work with it, ever."""
    try:
        server = await connection.fetchrow(_SERVER)
        row = await connection.fetchrow(_VERSION) if server["has_version"] else None
    except asyncpg.InsufficientPrivilegeError as error:
        raise SettingError(
            f"the store {shown}: its role may not read the tables ({error}): grant it USAGE on the schema turnlog, and "
            "SELECT, INSERT, UPDATE and DELETE on the tables in it"
        ) from error
    if server["server"] < OLDEST_SERVER:
        raise SettingError(f"the store {shown}: PostgreSQL {OLDEST_SERVER // 10000} or newer is needed")
    if server["encoding"] != "UTF8":
        raise SettingError(f"the store {shown}: the database has the encoding {server['encoding']}, and UTF8 is needed")
    fsync = server["fsync"] == "on"
    if row is None:
        if server["has_schema"]:
            raise SettingError(f"the store {shown}: the database has a schema named turnlog that is not a store")
        return State(0, 0, None, fsync, server["place"])
    state = State(row["version"], row["oldest_program"], row["source"], fsync, server["place"])
    if state.oldest_program > newest():
        raise FinalError(
            f"the store {shown} has schema {state.version}, and this program knows schemas up to {newest()}: "
            "run the newer program that wrote it"
        )
    return state


async def migrate(connection: Connection, shown: str) -> tuple[int, int]:
    """Bring the database to this program's schema, one node at a time; the schema's number before and after.

    Killed at any instant, it is at one whole version or the next. Raises SettingError as ``look`` does, and where the
    role may not.
    """
    first = (await look(connection, shown)).version
    try:
        for number, sql in migrations():
            if number > first and not await _apply(connection, number, sql):
                first = number
    except asyncpg.InsufficientPrivilegeError as error:
        raise SettingError(
            f"the store {shown}: its role may not make or change the tables ({error}): "
            "run `turnlog migrate` once with a role that may"
        ) from error
    return first, max(first, newest())


async def _apply(connection: Connection, number: int, sql: str) -> bool:
    """Whether it was this node that did."""
    match = _OLDEST_PROGRAM.match(sql)
    oldest = int(match[1]) if match else max(1, number - 1)
    async with connection.transaction():
        await connection.execute(f"SET LOCAL lock_timeout = '{_PATIENCE}'")
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        await connection.execute("CREATE SCHEMA IF NOT EXISTS turnlog")
        await connection.execute(_MAKE_VERSION)
        if await connection.fetchval("SELECT version FROM turnlog.schema_version") >= number:
            return False
        await connection.execute(sql)
        await connection.execute("UPDATE turnlog.schema_version SET version = $1, oldest_program = $2", number, oldest)
    return True


_MAKE_VERSION = """
    CREATE TABLE IF NOT EXISTS turnlog.schema_version (
        one            integer PRIMARY KEY CHECK (one = 1),
        version        integer NOT NULL,         -- the last migration applied
        oldest_program integer NOT NULL          -- programs that know fewer migrations than this do not work with it
    );
    INSERT INTO turnlog.schema_version VALUES (1, 0, 0) ON CONFLICT DO NOTHING;
"""


def refuse_half_copied(state: State, shown: str) -> None:
    """Raises SettingError where a copy into the store was begun and not finished."""
    if state.copied_from is not None:
        raise SettingError(
            f"the store {shown}: a copy into it was not finished: run "
            f"`turnlog copy --from {state.copied_from} --to …` again"
        )
