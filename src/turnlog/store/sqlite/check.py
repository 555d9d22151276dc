"""The whole check of a file, beside whoever records in it: pages, SQLite's structures, the log, what refers to what.

All but the pages is read in one reading transaction, and while that lasts a server's WAL cannot begin anew: it is given
up where the WAL grows beyond a bound.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import apsw

from turnlog.errors import SettingError
from turnlog.store.audit import Findings, log_problem
from turnlog.store.protocol import StoreFailedError
from turnlog.store.sqlite import entries
from turnlog.store.sqlite.beside import close_reading, refuse_old
from turnlog.store.sqlite.connection import check_file, connect, transaction, translated
from turnlog.store.sqlite.damage import tell_pages, unmark
from turnlog.store.sqlite.migrate import is_store, no_store
from turnlog.store.sqlite.pages import Pages
from turnlog.store.sqlite.scrubbing import scrub

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_MAX_WAL_BYTES = 1 << 30
_STEPS_BETWEEN_LOOKS = 1_000_000
_SHOWN = 20
_COUNTED = ("account", "conversation", "conversation_change", "message", "api_key", "webhook")
_IN_ACCOUNT = "SELECT count(*), coalesce(max(entry), ?1) FROM {} WHERE entry > ?1 AND entry <= ?2"
_TWICE = (
    "SELECT count(*) FROM conversation_change AS c CROSS JOIN message AS m ON m.entry = c.entry "
    "WHERE c.entry > ?1 AND c.entry <= ?2"
)
# What REFERENCES do not say. A message's key begins with its account (entries.py).
_OF_OTHERS = """
    SELECT count(*) FROM {} AS e NOT INDEXED CROSS JOIN conversation AS c ON c.number = e.conversation
    WHERE c.account <> e.entry >> 40
"""
_CREATIONS = """
    SELECT count(*) FROM conversation AS c
    WHERE 1 <> (SELECT count(*) FROM conversation_change AS x WHERE x.conversation = c.number AND x.created)
"""
_RELATIONS = (
    ("messages are in a conversation of another account", _OF_OTHERS.format("message")),
    ("changes are of a conversation of another account", _OF_OTHERS.format("conversation_change")),
    ("conversations do not have one creation in the log", _CREATIONS),
)


async def check_store(path: Path) -> Findings:
    """Everything that can be checked in the file. Nothing of it is changed but a mark of damage that proves wrong.

    Only for a process without a connection to the file, as ``check_file``. Raises SettingError where there is no store,
    where it is of another schema, where it cannot be opened at all.
    """
    if not is_store(path):
        raise SettingError(no_store(path))
    check_file(path)
    pages = Pages(path)
    try:
        findings = Findings()
        async for damaged in scrub(path, pages, asyncio.sleep):
            if damaged and len(findings.problems) < _SHOWN:
                findings.problems.append(tell_pages(damaged))
        await asyncio.to_thread(_look_within, path, findings)
        if not findings.problems:
            unmark(path)
        return findings
    finally:
        pages.close()


def _look_within(path: Path, findings: Findings) -> None:
    try:
        connection = connect(path, readonly=True)
    except SettingError as error:
        if not findings.problems:  # else a page that it begins with has been found already
            findings.problems.append(str(error))
        return
    try:
        with _reported(findings), translated():
            refuse_old(connection, path)
        if findings.problems:
            return  # a table that cannot be read has been found already, and all its rows would be next
        with _reported(findings), translated(), _bounded(connection, path), transaction(connection, "DEFERRED"):
            for part in (_structure, _log, _relations):
                part(connection, findings)
    finally:
        close_reading(connection, path)


@contextlib.contextmanager
def _reported(findings: Findings) -> Iterator[None]:
    try:
        yield
    except StoreFailedError as error:
        findings.problems.append(f"what is stored cannot be read: {error}")


@contextlib.contextmanager
def _bounded(connection: apsw.Connection, path: Path) -> Iterator[None]:
    """Raises SettingError where the WAL of a busy server has grown too much meanwhile."""
    wal = path.with_name(path.name + "-wal")

    def is_too_long() -> bool:
        return wal.exists() and wal.stat().st_size > _MAX_WAL_BYTES

    connection.set_progress_handler(is_too_long, _STEPS_BETWEEN_LOOKS)
    try:
        yield
    except apsw.InterruptError:
        raise SettingError(
            f"the check of {path} was given up, because its server records too much meanwhile: {wal} has grown beyond "
            f"{_MAX_WAL_BYTES >> 30} GiB. Check a backup instead: `turnlog backup FILE` does"
        ) from None
    finally:
        connection.set_progress_handler(None)


def _structure(connection: apsw.Connection, findings: Findings) -> None:
    """SQLite's own: pages, keys in their order, every index against its table, types, NOT NULL, CHECK, UNIQUE."""
    found = connection.execute(f"PRAGMA integrity_check({_SHOWN})").fetchall()
    findings.problems += [str(text) for (text,) in found if text != "ok"]


def _log(connection: apsw.Connection, findings: Findings) -> None:
    for table in _COUNTED:
        (findings.counts[table],) = _row(connection, f"SELECT count(*) FROM {table}")  # noqa: S608
    total = 0
    accounts: list[tuple[Any, ...]] = connection.execute("SELECT number, name FROM account").fetchall()
    for number, name in accounts:
        span = entries.entry(number, 0), entries.entry(number, entries.MAX_POSITION)
        found = [_row(connection, _IN_ACCOUNT.format(table), *span) for table in ("message", "conversation_change")]
        count = sum(rows for rows, _ in found)
        total += count
        last = entries.position(max(entry for _, entry in found))
        problem = log_problem(name, count, last, _row(connection, _TWICE, *span)[0])
        findings.problems += [] if problem is None else [problem]
    strays = findings.counts["message"] + findings.counts["conversation_change"] - total
    if strays:
        findings.problems.append(f"{strays} entries of the log are of no account")


def _relations(connection: apsw.Connection, findings: Findings) -> None:
    broken: dict[tuple[str, str], int] = {}
    for table, _, parent, _ in connection.execute("PRAGMA foreign_key_check"):
        broken[str(table), str(parent)] = broken.get((str(table), str(parent)), 0) + 1
    findings.problems += [f"{n} rows of {table} have no row of {parent}" for (table, parent), n in broken.items()]
    for what, statement in _RELATIONS:
        (count,) = _row(connection, statement)
        if count:
            findings.problems.append(f"{count} {what}")


def _row(connection: apsw.Connection, statement: str, *values: int) -> tuple[Any, ...]:
    row = connection.execute(statement, values).fetchone()
    assert row is not None  # noqa: S101 - an aggregate without GROUP BY always has a row
    return tuple(row)
