"""What is read of a database that is copied: pages of rows of one account, along its keys.

A page is looked up first and the conversations that it names then: one plan for each, whatever the statistics say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnlog.store.transfer import (
    PAGE_CHARS,
    PAGE_ROWS,
    AuthenticationRow,
    BlockedRow,
    ChangeEntry,
    ConversationRow,
    DeadRow,
    IdempotencyRow,
    MessageEntry,
    WebhookRow,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from asyncpg import Connection

    from turnlog.store.transfer import Entry

_LAST_POSITION = "SELECT position FROM turnlog.log WHERE account = $1"


def _page(rows: str, order: str, measured: str) -> str:
    """The statement for those of ``rows`` that fit a page; ``measured`` is the text that fills it.

    It is measured in bytes, which are no fewer than the characters and known without reading a long text.
    """
    return f"""
        SELECT * FROM (
            SELECT page.*, sum(octet_length({measured})) OVER (ORDER BY {order}) - octet_length({measured}) AS before
            FROM ({rows} ORDER BY {order} LIMIT {PAGE_ROWS}) AS page
        ) AS measured WHERE before <= {PAGE_CHARS} ORDER BY {order}
    """  # noqa: S608


_LOG = f"WHERE account = $1 AND position > $2 AND position <= $3 ORDER BY position LIMIT {PAGE_ROWS}"
ENTRIES = _page(
    f"""
    SELECT * FROM (
        (SELECT position, conversation, id, role, sender, client_at, created_at, text, false AS created
        FROM turnlog.message {_LOG})
        UNION ALL
        (SELECT position, conversation, NULL, NULL, NULL, NULL, changed_at, state, created
        FROM turnlog.conversation_change {_LOG})
    ) AS log
    """,  # noqa: S608
    "position",
    "text",
)
CONVERSATIONS = _page(
    """
    SELECT number, id, external_id, customer, customer_name, agent, agent_name, metadata, client_at, created_at
    FROM turnlog.conversation WHERE account = $1 AND number > $2
    """,
    "number",
    "coalesce(metadata, '')",
)
_IDEMPOTENCY = "SELECT key, fingerprint, ids, created_at FROM turnlog.idempotency WHERE account = $1 AND key > $2"
IDEMPOTENCY = _page(_IDEMPOTENCY, "key", "ids")
IDEMPOTENCY_UP_TO = _page(f"{_IDEMPOTENCY} AND key <= $3", "key", "ids")
AUTHENTICATIONS = f"""
    SELECT number, conversation, customer, parts, stream_id, created_at FROM turnlog.authentication
    WHERE account = $1 AND number > $2 ORDER BY number LIMIT {PAGE_ROWS}
"""  # noqa: S608
WEBHOOKS = """
    SELECT a.name, w.id, w.settings, w.position, w.retry_from_at, w.revision
    FROM turnlog.webhook AS w JOIN turnlog.account AS a ON a.account = w.account ORDER BY w.account, w.number
"""
BLOCKED = f"""
    SELECT conversation, position, attempts, first_failed_at, next_at, error FROM turnlog.webhook_blocked
    WHERE account = $1 AND webhook = $2 AND conversation > $3 ORDER BY conversation LIMIT {PAGE_ROWS}
"""  # noqa: S608
DEAD = f"""
    SELECT position, type, conversation, attempts, first_failed_at, dead_at, error, replayed FROM turnlog.webhook_dead
    WHERE account = $1 AND webhook = $2 AND position > $3 ORDER BY position LIMIT {PAGE_ROWS}
"""  # noqa: S608
NAMES = "SELECT number, id, client_at FROM turnlog.conversation WHERE account = $1 AND number = ANY($2)"
_NOBODY = ("", 0)
"""Stands for a conversation that is missing: whoever compares finds the difference."""


async def _names(connection: Connection, account: int, numbers: Collection[int]) -> dict[int, tuple[str, int]]:
    """Id and ``client_at`` of conversations, by number."""
    rows = await connection.fetch(NAMES, account, list(numbers))
    return {number: (conversation_id, client_at) for number, conversation_id, client_at in rows}


async def accounts(connection: Connection) -> list[str]:
    """See transfer.Source."""
    return [row[0] for row in await connection.fetch("SELECT name FROM turnlog.account ORDER BY account")]


async def entries(connection: Connection, account: int, after: int, up_to: int) -> list[Entry]:
    """See transfer.Source."""
    rows = await connection.fetch(ENTRIES, account, after, up_to)
    names = await _names(connection, account, {row["conversation"] for row in rows})
    page: list[Entry] = []
    for position, number, message_id, role, sender, client_at, at, text, created, _ in rows:
        conversation, conversation_at = names.get(number, _NOBODY)
        if message_id is None:
            page.append(ChangeEntry(position, conversation, created, at, text, conversation_at))
        else:
            page.append(MessageEntry(position, conversation, message_id, role, sender, client_at, at, text))
    return page


async def conversations(connection: Connection, account: int, after: int) -> tuple[int, list[ConversationRow]]:
    """See transfer.Source."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        last = await connection.fetchval(_LAST_POSITION, account)
        rows = await connection.fetch(CONVERSATIONS, account, after)
    return last, [ConversationRow(*tuple(row)[:-1]) for row in rows]


async def idempotency(connection: Connection, account: int, after: str, up_to: str | None) -> list[IdempotencyRow]:
    """See transfer.Source."""
    if up_to is None:
        rows = await connection.fetch(IDEMPOTENCY, account, after)
    else:
        rows = await connection.fetch(IDEMPOTENCY_UP_TO, account, after, up_to)
    return [IdempotencyRow(*tuple(row)[:-1]) for row in rows]


async def authentications(
    connection: Connection, account: int, name: str, after: int
) -> tuple[int, list[AuthenticationRow]]:
    """One page behind the account's number ``after``, and the number that it ends with."""
    rows = await connection.fetch(AUTHENTICATIONS, account, after)
    names = await _names(connection, account, {row["conversation"] for row in rows})
    page = [
        AuthenticationRow(name, names.get(conversation, _NOBODY)[0], customer, parts, stream_id, created_at)
        for _, conversation, customer, parts, stream_id, created_at in rows
    ]
    return (rows[-1]["number"] if rows else after), page


async def webhooks(connection: Connection) -> list[WebhookRow]:
    """See transfer.Source."""
    return [WebhookRow(*row) for row in await connection.fetch(WEBHOOKS)]


async def blocked(connection: Connection, account: int, webhook_id: str, after: str) -> list[BlockedRow]:
    """See transfer.Source."""
    return [BlockedRow(*row) for row in await connection.fetch(BLOCKED, account, webhook_id, after)]


async def dead(connection: Connection, account: int, webhook_id: str, after: int) -> list[DeadRow]:
    """See transfer.Source."""
    return [DeadRow(*row) for row in await connection.fetch(DEAD, account, webhook_id, after)]
