"""Numbered forward migrations: each file in ``schema/`` is applied once, in one transaction with its number."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from turnlog.errors import FinalError, SettingError
from turnlog.store.sqlite.connection import ServerLock, check_file, connect, transaction, translated

if TYPE_CHECKING:
    from pathlib import Path

    import apsw


def migrations() -> list[tuple[int, str]]:
    """Every migration that this program knows, as its number and its SQL, in order."""
    found = files("turnlog.store.sqlite").joinpath("schema").iterdir()
    return sorted((int(file.name[:4]), file.read_text("utf-8")) for file in found if file.name.endswith(".sql"))


def schema_version(connection: apsw.Connection) -> int:
    """The number of the last migration applied to the file; 0 for an empty one."""
    return int(connection.pragma("user_version"))


def is_current(connection: apsw.Connection, path: Path) -> bool:
    """Whether the file needs no migration. Raises SettingError where it is newer than this program."""
    version, newest = schema_version(connection), migrations()[-1][0]
    if version > newest:
        raise FinalError(
            f"the store {path} has schema {version}, and this program knows schemas up to {newest}: "
            "run the newer program that wrote it"
        )
    return version == newest


def migrate(connection: apsw.Connection) -> None:
    """Bring the file to this program's schema; killed at any instant, it is at one whole version or the next."""
    for number, sql in migrations():
        with transaction(connection):  # two programs that start at once take turns here
            if schema_version(connection) < number:
                connection.execute(sql)
                connection.execute(f"PRAGMA user_version = {number}")


def is_store(path: Path) -> bool:
    """Whether there is anything at ``path``: an empty file is what a start that was killed at once leaves."""
    return path.is_file() and path.stat().st_size > 0


def no_store(path: Path) -> str:
    """What to say where there ``is_store`` not."""
    return f"there is no store in {path}: the file is empty" if path.is_file() else f"there is no store at {path}"


def migrate_store(path: Path) -> tuple[int, int]:
    """Bring the file to this program's schema; its number before and after. A store that is not there is not made.

    Only for a process without a connection to the file, as ``check_file``. Raises SettingError, also where the file
    needs a migration and a server runs on it.
    """
    if not is_store(path):
        raise SettingError(f"{no_store(path)}: nothing to migrate, `turnlog serve` makes a new one")
    check_file(path)
    connection = connect(path)
    try:
        with translated():
            before = schema_version(connection)
            if not is_current(connection, path):
                lock = ServerLock(path)
                try:
                    migrate(connection)
                finally:
                    lock.release()
            return before, schema_version(connection)
    finally:
        connection.close()


def unfinished_copy(connection: apsw.Connection) -> str | None:
    """Where a copy into the store came from that was begun and not finished. For a file that ``is_current``."""
    row = connection.execute("SELECT source FROM copying").fetchone()
    return None if row is None else str(row[0])


def refuse_half_copied(connection: apsw.Connection, path: Path) -> None:
    """Raises SettingError where a copy into the store was begun and not finished. For a file that ``is_current``."""
    source = unfinished_copy(connection)
    if source is not None:
        raise SettingError(
            f"the store {path}: a copy into it was not finished: run `turnlog copy --from {source} --to …` again"
        )
