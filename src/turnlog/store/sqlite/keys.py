"""Accounts and keys in the file. Short transactions, from any process, also while a server has the file open."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, cast

from turnlog.errors import SettingError
from turnlog.model import ApiKey, Permission, SecretHash
from turnlog.store.protocol import KeyRecord
from turnlog.store.sqlite.connection import transaction

if TYPE_CHECKING:
    from collections.abc import Iterator

    import apsw

_SELECT = """
    SELECT k.number, k.id, k.name, a.name, k.permissions, k.created_at, k.rate_per_s, k.refuse_repeats, k.expires_at,
        k.revoked_at
    FROM api_key AS k JOIN account AS a ON a.number = k.account ORDER BY k.number
"""


_ADD_ACCOUNT = """
    INSERT INTO account (number, name) SELECT (SELECT coalesce(max(number) + 1, 0) FROM account), ?1
    WHERE NOT EXISTS (SELECT 1 FROM account WHERE name = ?1)
"""
_ADD_KEY = """
    INSERT INTO api_key (id, account, name, permissions, rate_per_s, refuse_repeats, created_at, expires_at, revoked_at)
    VALUES (?, (SELECT number FROM account WHERE name = ?), ?, ?, ?, ?, ?, ?, ?)
"""
_ADD_DIGEST = "INSERT INTO api_secret (digest, api_key, created_at, expires_at) VALUES (?, ?, ?, ?)"


def all_keys(connection: apsw.Connection) -> list[KeyRecord]:
    """Every key with all its secrets, in the order of creation."""
    secrets: dict[int, list[SecretHash]] = {}
    for number, digest, created_at, expires_at in connection.execute(
        "SELECT api_key, digest, created_at, expires_at FROM api_secret ORDER BY created_at"
    ):
        secrets.setdefault(number, []).append(SecretHash(digest, created_at, expires_at))
    return [
        KeyRecord(
            ApiKey(
                key_id,
                name,
                account,
                cast("tuple[Permission, ...]", tuple(permissions.split())),
                created_at,
                rate_per_s,
                bool(refuse_repeats),
                expires_at,
                revoked_at,
            ),
            tuple(secrets.get(number, ())),
        )
        for (
            number,
            key_id,
            name,
            account,
            permissions,
            created_at,
            rate_per_s,
            refuse_repeats,
            expires_at,
            revoked_at,
        ) in connection.execute(_SELECT)
    ]


def add_account(connection: apsw.Connection, name: str) -> None:
    """Make the account, where there is none of the name; inside the caller's transaction."""
    connection.execute(_ADD_ACCOUNT, (name,))


def add_key(connection: apsw.Connection, record: KeyRecord) -> None:
    """Keep a new key of an account that is there; inside the caller's transaction."""
    key = record.key
    rest = (key.rate_per_s, int(key.refuse_repeats), key.created_at, key.expires_at, key.revoked_at)
    connection.execute(_ADD_KEY, (key.id, key.account, key.name, " ".join(key.permissions), *rest))
    number = connection.last_insert_rowid()
    for secret in record.secrets:
        _add_secret(connection, number, secret)


def _add_secret(connection: apsw.Connection, number: int, secret: SecretHash) -> None:
    connection.execute(_ADD_DIGEST, (secret.digest, number, secret.created_at, secret.expires_at))


class Keys:
    """The keys of one file (protocol.KeyStore)."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    async def keys_version(self) -> int:
        """See protocol.KeyStore."""
        row = self._connection.execute("SELECT version FROM keys_version").fetchone()
        assert row is not None  # noqa: S101 - the migration put it there
        return int(row[0])

    async def keys(self) -> list[KeyRecord]:
        """See protocol.KeyStore."""
        return all_keys(self._connection)

    async def add_key(self, record: KeyRecord) -> None:
        """See protocol.KeyStore."""
        with self._changing():
            add_account(self._connection, record.key.account)
            add_key(self._connection, record)

    async def revoke_key(self, key_id: str, at: int) -> None:
        """See protocol.KeyStore."""
        with self._changing():
            self._connection.execute(
                "UPDATE api_key SET revoked_at = ? WHERE number = ? AND revoked_at IS NULL",
                (at, self._number(key_id)),
            )

    async def rotate_key(self, key_id: str, secret: SecretHash, old_expire_at: int) -> None:
        """See protocol.KeyStore."""
        with self._changing():
            number = self._number(key_id)
            self._connection.execute(
                "UPDATE api_secret SET expires_at = min(coalesce(expires_at, ?1), ?1) WHERE api_key = ?2",
                (old_expire_at, number),
            )
            _add_secret(self._connection, number, secret)

    def _number(self, key_id: str) -> int:
        row = self._connection.execute("SELECT number FROM api_key WHERE id = ?", (key_id,)).fetchone()
        if row is None:
            raise SettingError(f"no key has the id {key_id}")
        return int(row[0])

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """One transaction, and every running server learns of it."""
        with transaction(self._connection):
            yield
            self._connection.execute("UPDATE keys_version SET version = version + 1")
