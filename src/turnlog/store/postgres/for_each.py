"""Statements that look something up for each of several wanted things, along one index and in one round trip."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection, Record


class ForEach:
    """``query`` reads ``FROM wanted``, whose ``columns`` come from arrays; its ``n`` says whom a row is for, from 1 on.

    What it finds for each is a LATERAL look-up: the rows for one wanted thing come together and in that one's order.
    For one thing alone there is a statement without arrays, which costs a fifth less.
    """

    def __init__(self, columns: str, query: str) -> None:
        names = ", ".join(column.split()[0] for column in columns.split(", "))
        values = [f"${n}::{column.split()[1]}" for n, column in enumerate(columns.split(", "), 1)]
        one = f"(VALUES ({', '.join(values)}, 1::bigint)) AS wanted ({names}, n)"
        many = f"unnest({'[], '.join(values)}[]) WITH ORDINALITY AS wanted ({names}, n)"
        self.one = query.replace("FROM wanted", f"FROM {one}")
        self.many = query.replace("FROM wanted", f"FROM {many}")

    async def fetch(self, connection: Connection, wanted: Sequence[Sequence[Any]]) -> list[Record]:
        """The rows found for all of ``wanted``."""
        if len(wanted) == 1:
            return await connection.fetch(self.one, *wanted[0])  # type: ignore[no-any-return]
        return await connection.fetch(self.many, *zip(*wanted, strict=True))  # type: ignore[no-any-return]


def one_each(table: str, columns: str, key: str) -> ForEach:
    """Looks up the row with each wanted account and text in ``key``.

    BETWEEN and ORDER BY leave one index only that will do. With ``=`` a planner that has no statistics of a young
    table takes any index that begins with the account, and reads all that the account has.
    """
    return ForEach(
        f"account integer, {key} text",
        f"""
        SELECT wanted.n, found.* FROM wanted CROSS JOIN LATERAL (
            SELECT {columns} FROM turnlog.{table} AS t
            WHERE t.account = wanted.account AND t.{key} BETWEEN wanted.{key} AND wanted.{key}
            ORDER BY t.{key} LIMIT 1
        ) AS found
        """,  # noqa: S608
    )
