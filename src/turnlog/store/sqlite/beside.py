"""A file read by another process than the one that records in it: nothing of it is changed."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import apsw

from turnlog.errors import SettingError
from turnlog.store.protocol import StoreUnavailableError
from turnlog.store.sqlite.connection import check_file, connect, translated
from turnlog.store.sqlite.log import Log
from turnlog.store.sqlite.migrate import is_current, is_store, no_store, refuse_half_copied, schema_version

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from turnlog.model import LogFilter
    from turnlog.store.protocol import LogPart

_LOOK_S = 0.1


def open_reading(path: Path) -> apsw.Connection:
    """A connection to the file, beside whoever records in it, but in another process (see ``check_file``).

    Raises SettingError where there is no store, where it is of another schema, where it is half a copy.
    """
    if not is_store(path):
        raise SettingError(no_store(path))
    check_file(path)
    connection = connect(path, readonly=True)
    try:
        refuse_old(connection, path)
        refuse_half_copied(connection, path)
    except BaseException:
        close_reading(connection, path)
        raise
    return connection


def refuse_old(connection: apsw.Connection, path: Path) -> None:
    """Raises SettingError where the file is of another schema than this program's."""
    if not is_current(connection, path):
        raise SettingError(
            f"the store {path} has schema {schema_version(connection)}, an older program's: "
            f"run `turnlog migrate --store sqlite:///{path}` first, while no server runs on it"
        )


def close_reading(connection: apsw.Connection, path: Path) -> None:
    """Close the connection, and leave a WAL to the server, also to one that has crashed: it knows what it may trust."""
    wal = path.with_name(path.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    connection.close()


class LogBeside:
    """The logs in a file (protocol.LogReader)."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._log = Log(connection)

    generation = 0  # who looks from beside opens it again

    async def last_position(self, account: str) -> int:
        """See protocol.LogReader."""
        with translated():
            return self._log.last_position(account)

    async def log(
        self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int
    ) -> LogPart:
        """See protocol.LogReader."""
        with translated():
            return self._log.part(account, wanted, after=after, up_to=up_to, limit=limit, max_chars=max_chars)

    async def log_start(self, account: str) -> int:
        """See protocol.LogReader."""
        with translated():
            return self._log.start(account)

    async def log_name(self) -> str:
        """See protocol.LogReader."""
        with translated():
            return self._log.name()

    async def follow(self, moved: Callable[[str], None]) -> None:
        """See protocol.LogReader. Whoever has committed anything, every account may have moved."""
        seen: object = None
        while True:
            try:
                with translated():
                    version = self._connection.pragma("data_version")
                    if version != seen:
                        accounts = [str(name) for (name,) in self._connection.execute("SELECT name FROM account")]
            except StoreUnavailableError:
                version = seen
            if version != seen:
                seen = version
                for account in accounts:
                    moved(account)
            await asyncio.sleep(_LOOK_S)


@asynccontextmanager
async def open_log(path: Path) -> AsyncIterator[LogBeside]:
    """The logs in the file, beside whoever records in it. Raises SettingError as ``open_reading`` does."""
    connection = open_reading(path)
    try:
        yield LogBeside(connection)
    finally:
        close_reading(connection, path)
