"""How a process learns that logs have moved, and tells the others: by a notification, and for certain by looking.

A notification may be lost, late or for nothing. The table ``log`` is asked several times a second whatever happens.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from turnlog.store.postgres.accounts import Accounts
from turnlog.store.postgres.connections import Connections

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from contextlib import AbstractAsyncContextManager

    from asyncpg import Connection

    from turnlog.store.postgres.address import Address

CHANNEL = "turnlog_log"
_LOOK_S = 0.15
"""What is left of the 200 ms is for the look itself."""
_TELL_S = 0.02
"""Between two notifications: who follows hears of a busy account often enough."""
_AGAIN_S = 1.0
_ALIVE_S = 10.0
"""How often a connection on which nothing was heard is asked whether it is there."""
_LIMIT_S = 1.0
_MAX_TOLD = 500
"""Accounts in one notification, which has room for 8000 bytes."""

_POSITIONS = "SELECT account, position FROM turnlog.log"
_NAMES = "SELECT account, name FROM turnlog.account WHERE account = ANY($1::integer[])"
# A notification has a commit of its own, and that one need not be on any disk.
_TELL = "SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2)"


class Moves:
    """The moves of all logs. ``use`` lends a connection for a statement that may take ``_LIMIT_S``."""

    def __init__(self, address: Address, use: Callable[[float], AbstractAsyncContextManager[Connection]]) -> None:
        self._use = use
        # Whoever listens holds a connection for ever, so it is none of those that are lent.
        self._listening = Connections(address, reading=True)
        self._followers: list[Callable[[str], None]] = []
        self._listeners: set[asyncio.Task[None]] = set()
        self._heard_on: set[Connection] = set()
        self._sender: asyncio.Task[None] | None = None
        self._sender_pid = 0
        self._closed = False
        self._unsent: set[str] = set()
        self.begin_anew()

    def begin_anew(self) -> None:
        """It is another database now: nothing of what was learned is true of it, and those who listen do so there."""
        self._accounts = Accounts()
        self._positions: dict[int, int] = {}
        self._names: dict[int, str] = {}
        for connection in list(self._heard_on):
            connection.terminate()

    # Telling.

    def recorded(self, names: Iterable[str]) -> None:
        """Let the own followers hear at once of what this process has recorded in the accounts, others soon after."""
        for name in names:
            for moved in self._followers:
                moved(name)
            self._unsent.add(name)
        if self._sender is None and not self._closed:
            self._sender = asyncio.create_task(self._send())

    async def _send(self) -> None:
        """Tell the other processes, until there is nothing to tell. What is not told is found by looking."""
        try:
            while self._unsent:
                names, self._unsent = list(self._unsent)[:_MAX_TOLD], set()
                with suppress(Exception):
                    async with self._use(_LIMIT_S) as connection:
                        numbers = (await self._accounts.numbers(connection, names)).values()
                        self._sender_pid = connection.get_server_pid()
                        await connection.execute(_TELL, CHANNEL, " ".join(map(str, numbers)))
                await asyncio.sleep(_TELL_S)
        finally:
            self._sender = None

    # Following.

    async def follow(self, moved: Callable[[str], None]) -> None:
        """See protocol.LogReader."""
        self._followers.append(moved)
        listener = asyncio.create_task(self._listen())
        self._listeners.add(listener)
        listener.add_done_callback(self._listeners.discard)
        try:
            while True:
                with suppress(Exception):  # whatever it was, the next look makes up for it
                    await self._look()
                await asyncio.sleep(_LOOK_S)
        finally:
            self._followers.remove(moved)
            listener.cancel()

    async def _look(self) -> None:
        """Ask how far every log is, and tell of those that are elsewhere than before."""
        async with self._use(_LIMIT_S) as connection:
            positions, names = self._positions, self._names
            found = [row for row in await connection.fetch(_POSITIONS) if positions.get(row[0]) != row[1]]
            await self._learn(connection, names, [account for account, _ in found])
        positions.update(found)
        self._tell(names, [account for account, _ in found])

    async def _learn(self, connection: Connection, names: dict[int, str], accounts: Sequence[int]) -> None:
        unknown = [account for account in accounts if account not in names]
        if unknown:
            names.update(await connection.fetch(_NAMES, unknown))

    def _tell(self, names: dict[int, str], accounts: Iterable[int]) -> None:
        for account in accounts:
            name = names.get(account)
            if name is not None:  # else the next look finds who it is
                for moved in self._followers:
                    moved(name)

    async def _listen(self) -> None:
        """Hear notifications, whatever becomes of the connection that they come on."""
        while True:
            with suppress(Exception):  # whatever it was, what was missed is found by looking
                await self._hear()
            await asyncio.sleep(_AGAIN_S)

    async def _hear(self) -> None:
        """Hear notifications for as long as the connection is there."""
        connection = await self._listening.connect()
        self._heard_on.add(connection)
        ended = asyncio.Event()
        connection.add_termination_listener(lambda _: ended.set())
        try:
            async with asyncio.timeout(_LIMIT_S):
                await connection.add_listener(CHANNEL, self._heard)
            while not ended.is_set():
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), _ALIVE_S)
                if not ended.is_set():
                    await connection.execute("SELECT 1", timeout=_LIMIT_S)
        finally:
            self._heard_on.discard(connection)
            connection.terminate()

    def _heard(self, _connection: object, pid: int, _channel: str, payload: object) -> None:
        if pid != self._sender_pid and isinstance(payload, str):
            self._tell(self._names, [int(number) for number in payload.split() if number.isdecimal()])

    async def close(self) -> None:
        """Let go of the connections; who follows hears nothing any more."""
        self._closed = True
        tasks = {*self._listeners, *([] if self._sender is None else [self._sender])}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
