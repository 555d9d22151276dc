"""Accounts and keys in the database: short transactions, one at a time among all nodes."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from turnlog.errors import SettingError
from turnlog.model import ApiKey, SecretHash
from turnlog.store.protocol import KeyRecord

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from asyncpg import Connection

_SELECT = """
    SELECT k.account, k.id, k.name, a.name AS account_name, k.permissions, k.created_at, k.rate_per_s, k.refuse_repeats,
        k.expires_at, k.revoked_at
    FROM turnlog.api_key AS k JOIN turnlog.account AS a ON a.account = k.account ORDER BY k.number
"""
_SECRETS = "SELECT account, key, digest, created_at, expires_at FROM turnlog.api_secret ORDER BY created_at"
_INSERT = """
    INSERT INTO turnlog.api_key (account, number, id, name, permissions, rate_per_s, refuse_repeats, created_at,
        expires_at, revoked_at)
    SELECT $1, coalesce(max(number), 0) + 1, $2, $3, $4, $5, $6, $7, $8, $9 FROM turnlog.api_key
"""
_ADD_DIGEST = """
    INSERT INTO turnlog.api_secret (account, key, digest, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)
"""
_REVOKE = "UPDATE turnlog.api_key SET revoked_at = $3 WHERE account = $1 AND id = $2 AND revoked_at IS NULL"
_END_SECRETS = """
    UPDATE turnlog.api_secret SET expires_at = least(expires_at, $3) WHERE account = $1 AND key = $2
"""
_VERSION = """
    SELECT version, current_setting('fsync') = 'on' AS fsync,
        current_setting('transaction_read_only') = 'off' AND has_table_privilege('turnlog.message', 'INSERT') AS records
    FROM turnlog.keys_version
"""


class Version(NamedTuple):
    """Of the keys; whether the server still syncs what it writes, and lets us write."""

    version: int
    fsync: bool
    records: bool


async def version(connection: Connection) -> Version:
    """Asked for four times a second by every process."""
    return Version(*await connection.fetchrow(_VERSION))


async def keys(connection: Connection) -> list[KeyRecord]:
    """See protocol.KeyStore."""
    secrets: dict[tuple[int, str], list[SecretHash]] = {}
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        for account, key, digest, created_at, expires_at in await connection.fetch(_SECRETS):
            secrets.setdefault((account, key), []).append(SecretHash(digest, created_at, expires_at))
        found = await connection.fetch(_SELECT)
    return [
        KeyRecord(
            ApiKey(
                key["id"],
                key["name"],
                key["account_name"],
                tuple(key["permissions"].split()),
                key["created_at"],
                key["rate_per_s"],
                key["refuse_repeats"],
                key["expires_at"],
                key["revoked_at"],
            ),
            tuple(secrets.get((key["account"], key["id"]), ())),
        )
        for key in found
    ]


async def add_key(connection: Connection, record: KeyRecord) -> None:
    """See protocol.KeyStore."""
    key = record.key
    async with _changing(connection):
        account = await _account(connection, key.account)
        await connection.execute(
            _INSERT,
            account,
            key.id,
            key.name,
            " ".join(key.permissions),
            key.rate_per_s,
            key.refuse_repeats,
            key.created_at,
            key.expires_at,
            key.revoked_at,
        )
        for secret in record.secrets:
            await connection.execute(_ADD_DIGEST, account, key.id, secret.digest, secret.created_at, secret.expires_at)


async def revoke_key(connection: Connection, key_id: str, at: int) -> None:
    """See protocol.KeyStore."""
    async with _changing(connection):
        await connection.execute(_REVOKE, await _account_of(connection, key_id), key_id, at)


async def rotate_key(connection: Connection, key_id: str, secret: SecretHash, old_expire_at: int) -> None:
    """See protocol.KeyStore."""
    async with _changing(connection):
        account = await _account_of(connection, key_id)
        await connection.execute(_END_SECRETS, account, key_id, old_expire_at)
        await connection.execute(_ADD_DIGEST, account, key_id, secret.digest, secret.created_at, secret.expires_at)


async def _account(connection: Connection, name: str) -> int:
    """The account's number; the account and its empty log come into being where there is none."""
    account = await connection.fetchval("SELECT account FROM turnlog.account WHERE name = $1", name)
    if account is None:
        account = await connection.fetchval("SELECT coalesce(max(account) + 1, 0) FROM turnlog.account")
        await connection.execute("INSERT INTO turnlog.account (account, name) VALUES ($1, $2)", account, name)
        await connection.execute("INSERT INTO turnlog.log (account, position) VALUES ($1, 0)", account)
    return int(account)


async def _account_of(connection: Connection, key_id: str) -> int:
    account = await connection.fetchval("SELECT account FROM turnlog.api_key WHERE id = $1", key_id)
    if account is None:
        raise SettingError(f"no key has the id {key_id}")
    return int(account)


@asynccontextmanager
async def _changing(connection: Connection) -> AsyncIterator[None]:
    """One transaction, alone among those that change keys; and every running server learns of it."""
    async with connection.transaction():
        await connection.execute("UPDATE turnlog.keys_version SET version = version + 1")
        yield
