"""Copying a database whole (store/transfer.py): read beside running servers, written in their place."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import asyncpg

from turnlog.errors import SettingError
from turnlog.store.postgres import keys, log, migrate, transfer_reads, transfer_writes
from turnlog.store.postgres.accounts import Accounts
from turnlog.store.postgres.beside import refuse_other_schema
from turnlog.store.postgres.connections import ConflictError, Connections, LostError
from turnlog.store.postgres.reads import last_positions
from turnlog.store.protocol import StoreUnavailableError, StoreUncertainError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Sequence

    from asyncpg import Connection

    from turnlog.store.postgres.address import Address
    from turnlog.store.protocol import KeyRecord
    from turnlog.store.transfer import (
        AuthenticationRow,
        BlockedRow,
        ConversationRow,
        DeadRow,
        Entry,
        IdempotencyRow,
        Source,
        WebhookRow,
    )

_LIMIT_S = 60.0
"""How long one page may take."""
COPY_LOCK = 0x5475726E436F7079
"""``TurnCopy``: held by whoever copies into the database."""
_LOCK_TIMEOUT_S = 5.0
"""For a copy that was killed: its session ends with the statement under way."""
_IDENTITY = """
    SELECT pg_postmaster_start_time()::text, oid::bigint FROM pg_database WHERE datname = current_database()
"""
_SERVERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'turnlog' AND pid <> pg_backend_pid()
"""
_SERVERS_ASKED_FOR = 20
_SERVERS_PAUSE_S = 0.1


class PostgresSource:
    """A database that is read (transfer.Source)."""

    def __init__(self, address: Address, connections: Connections, identity: Hashable) -> None:
        self.shown = address.shown
        self.identity = identity
        self._connections = connections
        self._accounts = Accounts()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            async with self._connections.use(_LIMIT_S) as connection:
                yield connection
        except ConflictError as error:
            raise StoreUnavailableError(str(error)) from error
        except LostError as error:
            raise StoreUncertainError(str(error)) from error

    async def accounts(self) -> list[str]:
        """See transfer.Source."""
        async with self._connection() as connection:
            return await transfer_reads.accounts(connection)

    async def keys(self) -> list[KeyRecord]:
        """See transfer.Source."""
        async with self._connection() as connection:
            return await keys.keys(connection)

    async def last_position(self, account: str) -> int:
        """See transfer.Source."""
        async with self._connection() as connection:
            return (await last_positions(connection, self._accounts, [account]))[0]

    async def entries(self, account: str, *, after: int, up_to: int) -> list[Entry]:
        """See transfer.Source."""
        async with self._connection() as connection:
            number = await self._accounts.number(connection, account)
            return [] if number is None else await transfer_reads.entries(connection, number, after, up_to)

    async def conversations(self, account: str, *, after: int) -> tuple[int, list[ConversationRow]]:
        """See transfer.Source."""
        async with self._connection() as connection:
            number = await self._accounts.number(connection, account)
            return (0, []) if number is None else await transfer_reads.conversations(connection, number, after)

    async def idempotency(self, account: str, *, after: str, up_to: str | None = None) -> list[IdempotencyRow]:
        """See transfer.Source."""
        async with self._connection() as connection:
            number = await self._accounts.number(connection, account)
            return [] if number is None else await transfer_reads.idempotency(connection, number, after, up_to)

    async def authentications(self) -> AsyncIterator[list[AuthenticationRow]]:
        """See transfer.Source."""
        for account in await self.accounts():
            after, page = await self._authentications(account, 0)
            while page:
                yield page
                after, page = await self._authentications(account, after)

    async def _authentications(self, account: str, after: int) -> tuple[int, list[AuthenticationRow]]:
        async with self._connection() as connection:
            number = await self._accounts.number(connection, account)
            if number is None:
                return after, []
            return await transfer_reads.authentications(connection, number, account, after)

    async def log_name(self) -> str:
        """See transfer.Source."""
        async with self._connection() as connection:
            return (await log.names(connection, self._accounts, [None]))[0]

    async def webhooks(self) -> list[WebhookRow]:
        """See transfer.Source."""
        async with self._connection() as connection:
            return await transfer_reads.webhooks(connection)

    async def blocked(self, webhook: WebhookRow, *, after: str) -> list[BlockedRow]:
        """See transfer.Source."""
        async with self._connection() as connection:
            number = await self._accounts.number(connection, webhook.account)
            return [] if number is None else await transfer_reads.blocked(connection, number, webhook.id, after)

    async def dead(self, webhook: WebhookRow, *, after: int) -> list[DeadRow]:
        """See transfer.Source."""
        async with self._connection() as connection:
            number = await self._accounts.number(connection, webhook.account)
            return [] if number is None else await transfer_reads.dead(connection, number, webhook.id, after)

    async def close(self) -> None:
        """See transfer.Source."""
        await self._connections.close()


class PostgresTarget(PostgresSource):
    """A database that is written, by this process alone (transfer.Target)."""

    async def unfinished(self) -> str | None:
        """See transfer.Target."""
        async with self._connection() as connection:
            return (await migrate.look(connection, self.shown)).copied_from

    async def begin(self, source: str, at: int) -> None:
        """See transfer.Target. Raises SettingError where a server was faster to open the store."""
        begun_before = await self.unfinished() is not None
        async with self._connection() as connection:
            await transfer_writes.begin(connection, source, at)
            try:
                await _refuse_served(connection, self.shown)
            except SettingError:
                if not begun_before:
                    await transfer_writes.finish(connection)
                raise

    async def put_keys(self, accounts: Sequence[str], records: Sequence[KeyRecord]) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            await transfer_writes.put_keys(connection, accounts, records)

    async def add_entries(self, account: str, entries: Sequence[Entry]) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            number = await self._number(connection, account)
            last = await transfer_writes.add_entries(connection, number, entries)
        if last is not None:
            raise SettingError(
                f"account {account!r} has {last} entries and not {entries[0].position - 1}: "
                f"somebody else records in {self.shown}"
            )

    async def add_authentications(self, rows: Sequence[AuthenticationRow]) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            accounts = {row.account for row in rows}
            numbers = {account: await self._number(connection, account) for account in accounts}
            await transfer_writes.add_authentications(connection, numbers, rows)

    async def put_idempotency(
        self, account: str, *, after: str, up_to: str | None, rows: Sequence[IdempotencyRow]
    ) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            number = await self._number(connection, account)
            await transfer_writes.put_idempotency(connection, number, after, up_to, rows)

    async def put_log_name(self, name: str) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            await transfer_writes.put_log_name(connection, name)

    async def put_webhooks(self, rows: Sequence[WebhookRow]) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            numbers = {row.account: await self._number(connection, row.account) for row in rows}
            await transfer_writes.put_webhooks(connection, numbers, rows)

    async def add_blocked(self, webhook: WebhookRow, rows: Sequence[BlockedRow]) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            number = await self._number(connection, webhook.account)
            await transfer_writes.add_blocked(connection, number, webhook.id, rows)

    async def add_dead(self, webhook: WebhookRow, rows: Sequence[DeadRow]) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            number = await self._number(connection, webhook.account)
            await transfer_writes.add_dead(connection, number, webhook.id, rows)

    async def finish(self) -> None:
        """See transfer.Target."""
        async with self._connection() as connection:
            await transfer_writes.finish(connection)

    async def _number(self, connection: Connection, account: str) -> int:
        number = await self._accounts.number(connection, account)
        if number is None:
            raise SettingError(f"account {account!r} is gone from {self.shown}: somebody else changes it")
        return number


async def open_source(address: Address) -> PostgresSource:
    """Open the database to be read, beside whoever records in it.

    Raises SettingError where there is no store, where its schema is older than this program's or too new, where it is
    half a copy itself; StoreUnavailableError where no server answers.
    """
    connections = Connections(address, check=_prepare)
    async with _opening(connections, address) as connection:
        state = await migrate.look(connection, address.shown)
        identity = await _identity(connection)
    refuse_other_schema(state, address.shown)
    await connections.open()
    return PostgresSource(address, connections, identity)


async def open_target(address: Address, source: Source) -> PostgresTarget:
    """Open the database to be written, making or migrating its tables where needed.

    Raises SettingError where it is the source, where a server or another copy has it open, and as
    PostgresStore.start does; half a copy is welcome. StoreUnavailableError where no server answers.
    """
    connections = Connections(address, lock_timeout_s=_LOCK_TIMEOUT_S, check=_lock)
    async with _opening(connections, address) as connection:
        identity = await _identity(connection)
        if identity == source.identity:
            raise SettingError(f"--from and --to are one store: {source.shown}")
        try:
            await _lock(connection)
        except asyncpg.LockNotAvailableError:
            raise SettingError(f"another copy into the store {address.shown} is under way") from None
        await _refuse_served(connection, address.shown)
        await migrate.migrate(connection, address.shown)
    await connections.open()
    return PostgresTarget(address, connections, identity)


@asynccontextmanager
async def _opening(connections: Connections, address: Address) -> AsyncIterator[Connection]:
    """A connection of its own for looking the database over. Raises StoreUnavailableError where that fails."""
    connection = await connections.connect()
    try:
        yield connection
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError) as error:
        raise StoreUnavailableError(f"the store {address.shown}: {error}") from error
    finally:
        connection.terminate()


async def _identity(connection: Connection) -> Hashable:
    """The server as it was started, and the database in it."""
    return tuple(await connection.fetchrow(_IDENTITY))


async def _prepare(connection: Connection) -> None:
    """Pages are read in the order of an index, whatever the statistics say: sorted, each would cost all behind it."""
    await connection.execute("SET enable_sort = off; SET enable_bitmapscan = off")


async def _lock(connection: Connection) -> None:
    await _prepare(connection)
    await connection.execute("SELECT pg_advisory_lock($1)", COPY_LOCK)


async def _refuse_served(connection: Connection, shown: str) -> None:
    """A server that had the store open before the copy began would go on recording in it."""
    for _ in range(_SERVERS_ASKED_FOR):
        if not await connection.fetchval(_SERVERS):
            return
        await asyncio.sleep(_SERVERS_PAUSE_S)  # one that was killed is gone in a moment
    raise SettingError(f"the store {shown} is in use by a server: stop it before copying into it")
