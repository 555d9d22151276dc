"""A database read by another program than the servers on it: nothing of it is changed."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from turnlog.errors import SettingError
from turnlog.store.postgres import log, migrate, reads
from turnlog.store.postgres.accounts import Accounts
from turnlog.store.postgres.connections import ConflictError, Connections, LostError
from turnlog.store.postgres.following import Moves
from turnlog.store.protocol import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from asyncpg import Connection

    from turnlog.model import LogFilter
    from turnlog.store.postgres.address import Address
    from turnlog.store.postgres.gather import Kind
    from turnlog.store.protocol import LogPart

A = TypeVar("A")

_READ_S = 5.0


def refuse_other_schema(state: migrate.State, shown: str) -> None:
    """Raises SettingError where there is no store, where its schema is an older program's, where it is half a copy."""
    if state.version == 0:
        raise SettingError(f"there is no store at {shown}")
    if state.version < migrate.newest():
        raise SettingError(
            f"the store {shown} has schema {state.version}, an older program's: run `turnlog migrate` first"
        )
    migrate.refuse_half_copied(state, shown)


class LogBeside:
    """The logs in a database (protocol.LogReader)."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._connections = Connections(address, check=self._check, reading=True)
        self._place = ""
        self._accounts = Accounts()
        self._logs = Moves(address, lambda limit_s: self._connections.use(limit_s, commits=False))

    async def _check(self, connection: Connection) -> None:
        """Each new connection may lead to another server than the last one did."""
        state = await migrate.look(connection, self._address.shown)
        refuse_other_schema(state, self._address.shown)
        if state.place != self._place:
            self._place = state.place
            self._accounts = Accounts()
            self._logs.begin_anew()

    async def open(self) -> None:
        """Before the first use. Raises SettingError, StoreUnavailableError."""
        async with Connections(self._address, reading=True).alone(_READ_S) as connection:
            await self._check(connection)
        await self._connections.open()

    async def _read(self, kind: Kind[Any, A], wanted: object) -> A:
        for last in (False, True):
            try:
                async with self._connections.use(_READ_S, commits=False) as connection:
                    (answer,) = await kind(connection, self._accounts, [wanted])
                    return answer  # type: ignore[return-value] # none of these kinds asks to be asked alone
            except (LostError, ConflictError) as error:
                if last:
                    raise StoreUnavailableError(str(error)) from error
        raise AssertionError

    generation = 0  # who looks from beside opens it again

    async def last_position(self, account: str) -> int:
        """See protocol.LogReader."""
        return await self._read(reads.last_positions, account)

    async def log(
        self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int
    ) -> LogPart:
        """See protocol.LogReader."""
        return await self._read(log.parts, log.WantedPart(account, wanted, after, up_to, limit, max_chars))

    async def log_start(self, account: str) -> int:
        """See protocol.LogReader."""
        return await self._read(log.starts, account)

    async def log_name(self) -> str:
        """See protocol.LogReader."""
        return await self._read(log.names, None)

    async def follow(self, moved: Callable[[str], None]) -> None:
        """See protocol.LogReader."""
        await self._logs.follow(moved)

    async def close(self) -> None:
        """Let go of the connections."""
        await self._logs.close()
        await self._connections.close()


@asynccontextmanager
async def open_log(address: Address) -> AsyncIterator[LogBeside]:
    """The logs in the database, beside its servers. Raises SettingError, StoreUnavailableError."""
    beside = LogBeside(address)
    await beside.open()
    try:
        yield beside
    finally:
        await beside.close()
