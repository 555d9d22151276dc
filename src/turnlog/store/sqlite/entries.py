"""Row ids of the log: ``entry = account << 40 | position``.

One integer key keeps the log an append-only B-tree without a second index, a fifth less disk than a composite key
(docs/decisions/0004-one-log.md). It has room for 2**40 positions in each of 2**22 accounts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import apsw

_POSITION_BITS = 40
MAX_POSITION = (1 << _POSITION_BITS) - 1


def entry(account: int, position: int) -> int:
    """The row id of an account's position."""
    return account << _POSITION_BITS | position


def position(row: int) -> int:
    """The position that a row id stands for."""
    return row & MAX_POSITION


NO_ACCOUNT = -1
"""Stands for an account that has never had a key: no row has it, so nothing is ever found in it."""


class Accounts:
    """The numbers of accounts, by name, asked for once each: an account that is there stays."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._numbers: dict[str, int] = {}

    def number(self, name: str) -> int:
        """The account's number, or NO_ACCOUNT."""
        number = self._numbers.get(name)
        if number is None:
            row = self._connection.execute("SELECT number FROM account WHERE name = ?", (name,)).fetchone()
            if row is None:
                return NO_ACCOUNT
            number = self._numbers[name] = int(row[0])
        return number


_LAST = """
    SELECT max(
        coalesce((SELECT max(entry) FROM message WHERE entry BETWEEN ?1 AND ?2), ?1),
        coalesce((SELECT max(entry) FROM conversation_change WHERE entry BETWEEN ?1 AND ?2), ?1))
"""


def last_position(connection: apsw.Connection, account: int) -> int:
    """The newest position of the account's log, 0 where it is empty: the ends of two key ranges."""
    row = connection.execute(_LAST, (entry(account, 0), entry(account, MAX_POSITION))).fetchone()
    assert row is not None  # noqa: S101 - an aggregate without GROUP BY always has a row
    return position(row[0])


_FIRST = """
    SELECT min(
        coalesce((SELECT min(entry) FROM message WHERE entry BETWEEN ?1 AND ?2), ?2),
        coalesce((SELECT min(entry) FROM conversation_change WHERE entry BETWEEN ?1 AND ?2), ?2))
"""


def start(connection: apsw.Connection, account: int) -> int:
    """The position before the oldest that the account's log has, 0 where it is empty."""
    last = entry(account, MAX_POSITION)
    row = connection.execute(_FIRST, (entry(account, 0), last)).fetchone()
    assert row is not None  # noqa: S101 - a statement without FROM always has a row
    return 0 if row[0] == last else position(row[0]) - 1
