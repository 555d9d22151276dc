"""What is written of a database that is copied into, each call in one transaction."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import msgspec

from turnlog.store.columns import conversation_values
from turnlog.store.postgres import sql
from turnlog.store.transfer import MessageEntry, after_changes, conversations_of

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from asyncpg import Connection

    from turnlog.store.protocol import KeyRecord
    from turnlog.store.transfer import AuthenticationRow, BlockedRow, DeadRow, Entry, IdempotencyRow, WebhookRow

_COLUMNS = {
    "message": ("account", "position", "conversation", "id", "role", "sender", "client_at", "created_at", "text"),
    "conversation_change": ("account", "position", "conversation", "created", "changed_at", "state"),
    "conversation": (
        "account", "number", "id", "external_id", "customer", "customer_name", "agent", "agent_name", "metadata",
        "client_at", "created_at",
    ),
    "authentication": ("account", "number", "conversation", "customer", "parts", "stream_id", "created_at"),
    "api_key": (
        "account", "number", "id", "name", "permissions", "rate_per_s", "refuse_repeats", "created_at", "expires_at",
        "revoked_at",
    ),
    "webhook": ("account", "number", "id", "settings", "position", "retry_from_at", "revision"),
    "webhook_blocked": (
        "account", "webhook", "conversation", "position", "attempts", "first_failed_at", "next_at", "error",
    ),
    "webhook_dead": (
        "account", "webhook", "position", "type", "conversation", "attempts", "first_failed_at", "dead_at", "error",
        "replayed",
    ),
    "api_secret": ("account", "key", "digest", "created_at", "expires_at"),
}  # fmt: skip
_BEGIN = """
    INSERT INTO turnlog.copying (one, source, started_at) VALUES (1, $1, $2)
    ON CONFLICT (one) DO UPDATE SET source = excluded.source, started_at = excluded.started_at
"""
_ADD_ACCOUNT = """
    WITH new AS (
        INSERT INTO turnlog.account (account, name)
        SELECT (SELECT coalesce(max(account) + 1, 0) FROM turnlog.account), $1
        WHERE NOT EXISTS (SELECT FROM turnlog.account WHERE name = $1) RETURNING account
    )
    INSERT INTO turnlog.log (account, position) SELECT account, 0 FROM new
"""
_NUMBERS = "SELECT id, number FROM turnlog.conversation WHERE account = $1 AND id = ANY($2)"
_LAST_AUTHENTICATION = "SELECT coalesce(max(number), 0) FROM turnlog.authentication WHERE account = $1"
_DROP_KEYS = """
    DELETE FROM turnlog.idempotency AS stored WHERE account = $1 AND key > $2
        AND NOT EXISTS (SELECT FROM unnest($3::text[]) AS kept (key) WHERE kept.key = stored.key)
"""
_DROP_KEYS_UP_TO = f"{_DROP_KEYS} AND key <= $4"
_PUT_KEYS = (
    f"{sql.INSERT_KEYS} WHERE (stored.fingerprint, stored.ids, stored.created_at) "
    "IS DISTINCT FROM (excluded.fingerprint, excluded.ids, excluded.created_at)"
)


async def _copy(connection: Connection, table: str, rows: Collection[tuple[Any, ...]]) -> None:
    if rows:
        columns = _COLUMNS[table]
        await connection.copy_records_to_table(table, schema_name="turnlog", columns=columns, records=rows)


async def begin(connection: Connection, source: str, at: int) -> None:
    """See transfer.Target."""
    await connection.execute(_BEGIN, source, at)


async def finish(connection: Connection) -> None:
    """See transfer.Target."""
    await connection.execute("DELETE FROM turnlog.copying")


async def put_keys(connection: Connection, accounts: Sequence[str], records: Sequence[KeyRecord]) -> None:
    """See transfer.Target."""
    async with connection.transaction():
        await connection.execute("UPDATE turnlog.keys_version SET version = version + 1")
        await connection.executemany(_ADD_ACCOUNT, [(account,) for account in accounts])
        numbers = {row["name"]: row["account"] for row in await connection.fetch("SELECT * FROM turnlog.account")}
        await connection.execute("DELETE FROM turnlog.api_secret")
        await connection.execute("DELETE FROM turnlog.api_key")
        key_rows, secret_rows = [], []
        for number, record in enumerate(records, 1):
            key, account = record.key, numbers[record.key.account]
            rest = (key.rate_per_s, key.refuse_repeats, key.created_at, key.expires_at, key.revoked_at)
            key_rows.append((account, number, key.id, key.name, " ".join(key.permissions), *rest))
            secret_rows += [(account, key.id, one.digest, one.created_at, one.expires_at) for one in record.secrets]
        await _copy(connection, "api_key", key_rows)
        await _copy(connection, "api_secret", secret_rows)


async def add_entries(connection: Connection, account: int, entries: Sequence[Entry]) -> int | None:
    """See transfer.Target. Where they do not follow, nothing is added, and the last position is returned."""
    async with connection.transaction():
        last = int(await connection.fetchval(sql.LOCK, account))
        if last + 1 != entries[0].position:
            return last
        numbers = dict(await connection.fetch(_NUMBERS, account, list(conversations_of(entries))))
        await _change_conversations(connection, account, entries, numbers)
        messages, changes = [], []
        for e in entries:
            place = (account, e.position, numbers[e.conversation])
            if isinstance(e, MessageEntry):
                messages.append((*place, e.id, e.role, e.sender, e.client_at, e.created_at, e.text))
            else:
                changes.append((*place, e.created, e.changed_at, e.state))
        await _copy(connection, "conversation_change", changes)
        await _copy(connection, "message", messages)
        await connection.execute(sql.MOVE_HEAD, account, entries[-1].position)
    return None


async def _change_conversations(
    connection: Connection, account: int, entries: Sequence[Entry], numbers: dict[str, int]
) -> None:
    """Store what the entries make of their conversations, and put the numbers of new ones into ``numbers``."""
    new, changed = [], []
    for conversation_id, (conversation, creation) in after_changes(entries).items():
        values = conversation_values(conversation)
        if creation is None:
            changed.append((account, numbers[conversation_id], *values))
            continue
        number = numbers[conversation_id] = creation.position
        ids = (account, number, conversation_id, conversation.external_id)
        new.append((*ids, *values, creation.client_at, creation.changed_at))
    await _copy(connection, "conversation", new)
    await connection.executemany(sql.UPDATE_CONVERSATION, changed)


async def add_authentications(
    connection: Connection, accounts: Mapping[str, int], rows: Sequence[AuthenticationRow]
) -> None:
    """See transfer.Target."""
    of_account: defaultdict[str, list[AuthenticationRow]] = defaultdict(list)
    for row in rows:
        of_account[row.account].append(row)
    async with connection.transaction():
        for name, added in of_account.items():
            account = accounts[name]
            last = await connection.fetchval(_LAST_AUTHENTICATION, account)
            numbers = dict(await connection.fetch(_NUMBERS, account, list({row.conversation for row in added})))
            records = [
                (account, number, numbers[row.conversation], row.customer, row.parts, row.stream_id, row.created_at)
                for number, row in enumerate(added, last + 1)
            ]
            await _copy(connection, "authentication", records)


async def put_idempotency(
    connection: Connection, account: int, after: str, up_to: str | None, rows: Sequence[IdempotencyRow]
) -> None:
    """See transfer.Target."""
    keys = [row.key for row in rows]
    async with connection.transaction():
        if up_to is None:
            await connection.execute(_DROP_KEYS, account, after, keys)
        else:
            await connection.execute(_DROP_KEYS_UP_TO, account, after, keys, up_to)
        if rows:
            columns = ([row.fingerprint for row in rows], [row.ids for row in rows], [row.created_at for row in rows])
            await connection.execute(_PUT_KEYS, account, keys, *columns)


async def put_log_name(connection: Connection, name: str) -> None:
    """See transfer.Target."""
    await connection.execute("UPDATE turnlog.log_name SET name = $1", name)


async def put_webhooks(connection: Connection, accounts: Mapping[str, int], rows: Sequence[WebhookRow]) -> None:
    """See transfer.Target."""
    async with connection.transaction():
        await connection.execute("UPDATE turnlog.webhooks_version SET version = version + 1")
        await connection.execute("DELETE FROM turnlog.webhook_blocked")
        await connection.execute("DELETE FROM turnlog.webhook_dead")
        await connection.execute("DELETE FROM turnlog.webhook")
        records = [
            (accounts[row.account], number, row.id, row.settings, row.position, row.retry_from_at, row.revision)
            for number, row in enumerate(rows, 1)
        ]
        await _copy(connection, "webhook", records)


async def add_blocked(connection: Connection, account: int, webhook_id: str, rows: Sequence[BlockedRow]) -> None:
    """See transfer.Target."""
    records = [(account, webhook_id, *msgspec.structs.astuple(row)) for row in rows]
    await _copy(connection, "webhook_blocked", records)


async def add_dead(connection: Connection, account: int, webhook_id: str, rows: Sequence[DeadRow]) -> None:
    """See transfer.Target."""
    records = [(account, webhook_id, *msgspec.structs.astuple(row)) for row in rows]
    await _copy(connection, "webhook_dead", records)
