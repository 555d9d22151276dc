"""The statements that read a log in its order, from any position on, each along one index of one account.

Messages and changes are taken together and cut to what was asked for by the database. What is wanted of one
conversation comes along the index of its changes, and of its messages along the log or, where they are few, by their
places.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from turnlog.store.log import LISTED_MESSAGES, SCAN_ENTRIES, Kinds, kinds, part_of
from turnlog.store.postgres.for_each import one_each
from turnlog.store.protocol import LogPart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection

    from turnlog.model import LogFilter
    from turnlog.store.postgres.accounts import Accounts

_MESSAGE = "position, conversation, id, role, sender, client_at, created_at AS at, text"
_CHANGE = """
    position, conversation, NULL::text, created::integer::smallint, NULL::text, NULL::bigint, changed_at, state
"""
_BEHIND = "account = $1 AND position > $2 AND position <= $3"
MESSAGES = f"SELECT {_MESSAGE} FROM turnlog.message WHERE {_BEHIND} ORDER BY position LIMIT $4"  # noqa: S608
CHANGES = f"SELECT {_CHANGE} FROM turnlog.conversation_change WHERE {_BEHIND} ORDER BY position LIMIT $4"  # noqa: S608
# What is in the inner parentheses stays there: the database does not look for another way to the conversation.
NEAR_MESSAGES = f"""
    SELECT * FROM (
        SELECT {_MESSAGE} FROM turnlog.message WHERE {_BEHIND} ORDER BY position LIMIT {SCAN_ENTRIES}
    ) AS near WHERE conversation = $6 ORDER BY position LIMIT $4
"""  # noqa: S608
LISTED_PLACES = f"""
    SELECT m.* FROM unnest($7::bigint[]) AS listed (place) CROSS JOIN LATERAL (
        SELECT {_MESSAGE} FROM turnlog.message WHERE account = $1 AND position BETWEEN listed.place AND listed.place
        ORDER BY position LIMIT 1
    ) AS m WHERE m.conversation = $6 AND m.position > $2 AND m.position <= $3
"""  # noqa: S608
# BETWEEN and ORDER BY leave one index only that will do (see for_each.py).
CHANGES_OF = f"""
    SELECT {_CHANGE} FROM turnlog.conversation_change
    WHERE {_BEHIND} AND conversation BETWEEN $6 AND $6 ORDER BY conversation, position LIMIT $4
"""  # noqa: S608
# How many messages there are, as far as they are counted, and the first of those that are wanted.
PLACES = f"""
    SELECT count(*), (array_agg(position ORDER BY position) FILTER (WHERE position > $3 AND position <= $4))[1:$5]
    FROM (
        SELECT position FROM turnlog.message WHERE account = $1 AND conversation = $2
        ORDER BY client_at, position LIMIT {LISTED_MESSAGES + 1}
    ) AS listed
"""  # noqa: S608
NUMBER_BY_ID = one_each("conversation", "number, external_id", "id")
NUMBER_BY_EXTERNAL_ID = one_each("conversation", "number, id", "external_id")
START = """
    SELECT least(
        (SELECT position FROM turnlog.message WHERE account = $1 ORDER BY position LIMIT 1),
        (SELECT position FROM turnlog.conversation_change WHERE account = $1 ORDER BY position LIMIT 1))
"""
NAME = "SELECT name FROM turnlog.log_name"


def _statement(wanted: Kinds, messages: str, changes: str) -> str:
    """The first $4 of both together; none behind the one whose text takes the sum over $5."""
    parts = [f"({sql})" for sql, is_wanted in ((messages, wanted.messages), (changes, wanted.changes)) if is_wanted]
    return f"""
        SELECT part.position, c.id, c.external_id, part.id, part.role, part.sender, part.client_at, part.at, part.text
        FROM (
            SELECT first.*, sum(length(text)) OVER (
                ORDER BY position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
            ) AS before
            FROM (
                SELECT * FROM ({" UNION ALL ".join(parts)})
                    AS log (position, conversation, id, role, sender, client_at, at, text)
                ORDER BY position LIMIT $4
            ) AS first
        ) AS part CROSS JOIN LATERAL (
            SELECT id, external_id FROM turnlog.conversation AS c
            WHERE c.account = $1 AND c.number BETWEEN part.conversation AND part.conversation
            ORDER BY c.number LIMIT 1
        ) AS c
        WHERE part.before IS NULL OR part.before <= $5 ORDER BY part.position
    """  # noqa: S608


_SOME = [Kinds(messages=True, changes=True), Kinds(messages=True, changes=False), Kinds(messages=False, changes=True)]
OF_ALL = {one: _statement(one, MESSAGES, CHANGES) for one in _SOME}
OF_MANY = {one: _statement(one, NEAR_MESSAGES, CHANGES_OF) for one in _SOME}
OF_FEW = {one: _statement(one, LISTED_PLACES, CHANGES_OF) for one in _SOME if one.messages}


class WantedPart(NamedTuple):
    """See protocol.LogReader.log."""

    account: str
    wanted: LogFilter
    after: int
    up_to: int
    limit: int
    max_chars: int


async def parts(connection: Connection, accounts: Accounts, wanted: Sequence[WantedPart]) -> list[LogPart]:
    """See protocol.LogReader.log; one after the other."""
    return [await _part(connection, accounts, one) for one in wanted]


async def _part(connection: Connection, accounts: Accounts, asked: WantedPart) -> LogPart:
    account = await accounts.number(connection, asked.account)
    wanted, after, end = asked.wanted, asked.after, asked.up_to
    tables = kinds(wanted.types)
    if account is None or end <= after or not any(tables):
        return LogPart([], max(after, end))
    query = OF_ALL[tables]
    more: tuple[Any, ...] = ()
    if wanted.conversation_id is not None or wanted.external_id is not None:
        conversation = await _conversation(connection, account, wanted)
        if conversation is None:
            return LogPart([], end)
        query, more = OF_MANY[tables], (conversation,)
        if tables.messages and end - after > SCAN_ENTRIES:
            count, places = await connection.fetchrow(PLACES, account, conversation, after, end, asked.limit)
            if count > LISTED_MESSAGES:
                end = after + SCAN_ENTRIES
            else:
                query, more = OF_FEW[tables], (conversation, places or [])
    rows = await connection.fetch(query, account, after, end, asked.limit, asked.max_chars, *more)
    return part_of(rows, wanted.types, before=0, limit=asked.limit, max_chars=asked.max_chars, end=end)


async def _conversation(connection: Connection, account: int, wanted: LogFilter) -> int | None:
    """The number of the one conversation that is wanted, where there is such a one."""
    if wanted.conversation_id is None:
        rows = await NUMBER_BY_EXTERNAL_ID.fetch(connection, [(account, wanted.external_id)])
    else:
        rows = await NUMBER_BY_ID.fetch(connection, [(account, wanted.conversation_id)])
        if rows and wanted.external_id not in (None, rows[0]["external_id"]):
            return None
    return int(rows[0]["number"]) if rows else None


async def starts(connection: Connection, accounts: Accounts, wanted: Sequence[str]) -> list[int]:
    """See protocol.LogReader.log_start."""
    found = []
    for name in wanted:
        account = await accounts.number(connection, name)
        first = None if account is None else await connection.fetchval(START, account)
        found.append(0 if first is None else first - 1)
    return found


async def names(connection: Connection, accounts: Accounts, wanted: Sequence[None]) -> list[str]:
    """See protocol.LogReader.log_name."""
    del accounts
    name = await connection.fetchval(NAME)
    return [name] * len(wanted)
