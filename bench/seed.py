"""Fills an SQLite store that the program has made, by SQL: millions of messages in the time that SQLite takes for them.

A tenth of the messages is one long conversation; the others have 100 each, and a hundred of them are under way at a
time, so that the messages of one lie as far apart in the file as they do in life.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import apsw
import msgspec

from bench.requests import PAGE, ROLES, SENDERS, TEXTS
from turnlog import model
from turnlog.store.sqlite.entries import entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

UNDER_WAY = 100
STEP = 10 * UNDER_WAY * PAGE
"""What the number of messages has to be a multiple of."""
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_START_MS = 1_735_689_600_000  # 2025-01-01
_APART_MS = 2
_COLUMNS = {
    "conversation": (
        "number", "account", "id", "external_id", "customer", "customer_name", "agent", "agent_name", "metadata",
        "client_at", "created_at",
    ),
    "conversation_change": ("entry", "conversation", "created", "changed_at", "state"),
    "message": ("entry", "conversation", "id", "role", "sender", "client_at", "created_at", "text"),
}  # fmt: skip


class Seeded(NamedTuple):
    """What is in the store."""

    messages: int
    conversations: int
    long: int
    """How many messages the long conversation has."""

    @property
    def long_id(self) -> str:
        return conversation_id(0)


def plan(messages: int) -> Seeded:
    """How so many messages are divided."""
    if messages % STEP or not messages:
        raise SystemExit(f"the number of stored messages has to be a multiple of {STEP:,}")
    return Seeded(messages, messages * 9 // 10 // PAGE, messages // 10)


def _ulid(ms: int, number: int) -> str:
    """An id of that millisecond, unlike any other with another number."""
    return "".join(_DIGITS[ms >> shift & 31] for shift in range(45, -1, -5)) + f"{number:016}"


def conversation_id(number: int) -> str:
    """The id of a conversation: the long one is 0, the others 1, 2, 3, …"""
    return _ulid(_START_MS, number)


def seed(path: Path, messages: int) -> Seeded:
    """Fill the store at ``path``, which has an account and is not served. Ends the program where it is another one."""
    there = plan(messages)
    connection = apsw.Connection(str(path))
    try:
        _check(connection)
        account = _account(connection)
        for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-262144", "locking_mode=EXCLUSIVE"):
            connection.execute(f"PRAGMA {pragma}")
        indexes = _take_indexes(connection)
        connection.execute("BEGIN")
        _insert(connection, "conversation", _conversations(account, there))
        _insert(connection, "conversation_change", _changes(account, there))
        _insert(connection, "message", _messages(account, there))
        connection.execute("COMMIT")
        for statement in indexes:
            connection.execute(statement)
        connection.execute("PRAGMA locking_mode=NORMAL")
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    return there


def _check(connection: apsw.Connection) -> None:
    """A schema that has changed is not guessed at: this module has to learn it."""
    for table, columns in _COLUMNS.items():
        found = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
        if found != set(columns):
            raise SystemExit(f"bench/seed.py does not know the columns of {table}: {sorted(found ^ set(columns))}")
    for table in _COLUMNS:
        (filled,) = connection.execute(f"SELECT EXISTS (SELECT 1 FROM {table})").fetchone() or (1,)  # noqa: S608
        if filled:
            raise SystemExit(f"the store to fill has rows in {table} already")
    (triggers,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone() or (0,)
    if triggers:
        raise SystemExit("bench/seed.py does not know the schema's triggers")


def _account(connection: apsw.Connection) -> int:
    accounts = connection.execute("SELECT number FROM account").fetchall()
    if len(accounts) != 1:
        raise SystemExit(f"the store to fill has {len(accounts)} accounts: make one key in it")
    number = accounts[0][0]
    assert isinstance(number, int)  # noqa: S101 - it is the table's key
    return number


def _take_indexes(connection: apsw.Connection) -> list[str]:
    """Drop the indexes that can be dropped; the statements that make them again, sorted instead of row by row."""
    names = ", ".join(f"'{table}'" for table in _COLUMNS)
    query = f"SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL AND tbl_name IN ({names})"  # noqa: S608
    found = connection.execute(query).fetchall()
    for name, _ in found:
        connection.execute(f'DROP INDEX "{name}"')
    return [str(statement) for _, statement in found]


def _insert(connection: apsw.Connection, table: str, rows: Iterable[tuple[object, ...]]) -> None:
    columns = _COLUMNS[table]
    marks = ", ".join("?" * len(columns))
    connection.executemany(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})", rows)  # noqa: S608


def _conversations(account: int, there: Seeded) -> Iterator[tuple[object, ...]]:
    at = _START_MS * 1000
    for n in range(there.conversations + 1):
        yield n + 1, account, conversation_id(n), f"stored-{n}", f"jane-{n}", "Jane", None, None, None, at, at


def _changes(account: int, there: Seeded) -> Iterator[tuple[object, ...]]:
    for n in range(there.conversations + 1):
        jane = model.Participant(f"jane-{n}", "Jane")
        state = msgspec.json.encode(model.Conversation(conversation_id(n), f"stored-{n}", jane)).decode()
        yield entry(account, n + 1), n + 1, 1, _START_MS * 1000, state


def _messages(account: int, there: Seeded) -> Iterator[tuple[object, ...]]:
    """In order of arrival. Callers' clocks are up to a second behind, so a listing's order is a little another one."""
    roles = [model.ROLES.index(role) for role in ROLES]
    position = entry(account, there.conversations + 1)
    for n in range(there.messages):
        if n % 10 == 0:
            conversation = 0
        else:
            other = n - n // 10 - 1
            conversation = other // (UNDER_WAY * PAGE) * UNDER_WAY + other % UNDER_WAY + 1
        turn = n // 10 % 10
        ms = _START_MS + n * _APART_MS
        client_at = (ms - n * 7919 % 1000) * 1000
        yield (
            position + n + 1, conversation + 1, _ulid(ms, n), roles[turn % 2], SENDERS[turn % 2], client_at,
            ms * 1000 + n % 1000, TEXTS[turn % len(TEXTS)],
        )  # fmt: skip
