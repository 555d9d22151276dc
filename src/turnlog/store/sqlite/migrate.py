"""Numbered forward migrations: each file in ``schema/`` is applied once, in one transaction with its number."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from turnlog.errors import SettingError

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
        raise SettingError(
            f"the store {path} has schema {version}, and this program knows schemas up to {newest}: "
            "run the newer program that wrote it"
        )
    return version == newest


def migrate(connection: apsw.Connection) -> None:
    """Bring the file to this program's schema; killed at any instant, it is at one whole version or the next."""
    for number, sql in migrations():
        connection.execute("BEGIN IMMEDIATE")  # two programs that start at once take turns here
        try:
            if schema_version(connection) < number:
                connection.execute(sql)
                connection.execute(f"PRAGMA user_version = {number}")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
