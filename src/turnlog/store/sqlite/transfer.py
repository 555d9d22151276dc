"""Copying a file whole (store/transfer.py): read beside a running server, written in its place.

Calls run on a thread of their own, so that one store is read while the other is written.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from turnlog.errors import SettingError
from turnlog.store.sqlite.beside import close_reading, open_reading
from turnlog.store.sqlite.connection import ServerLock, check_file, connect, create_file, translated
from turnlog.store.sqlite.log import Log
from turnlog.store.sqlite.migrate import is_current, migrate, unfinished_copy
from turnlog.store.sqlite.transfer_reads import Pages
from turnlog.store.sqlite.transfer_writes import Additions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Hashable, Sequence
    from pathlib import Path

    import apsw

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

P = ParamSpec("P")
T = TypeVar("T")


class SqliteSource:
    """A file that is read (transfer.Source)."""

    def __init__(self, path: Path, connection: apsw.Connection) -> None:
        status = path.stat()
        self.shown = f"sqlite:///{path}"
        self.identity: Hashable = (status.st_dev, status.st_ino)
        self._path = path
        self._connection = connection
        self._pages = Pages(connection)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="turnlog-transfer")

    async def _run(self, work: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        def translating() -> T:
            with translated():
                return work(*arguments, **named)

        return await asyncio.get_running_loop().run_in_executor(self._thread, translating)

    async def accounts(self) -> list[str]:
        """See transfer.Source."""
        return await self._run(self._pages.accounts)

    async def keys(self) -> list[KeyRecord]:
        """See transfer.Source."""
        return await self._run(self._pages.keys)

    async def last_position(self, account: str) -> int:
        """See transfer.Source."""
        return await self._run(self._pages.last_position, account)

    async def entries(self, account: str, *, after: int, up_to: int) -> list[Entry]:
        """See transfer.Source."""
        return await self._run(self._pages.entries, account, after, up_to)

    async def conversations(self, account: str, *, after: int) -> tuple[int, list[ConversationRow]]:
        """See transfer.Source."""
        return await self._run(self._pages.conversations, account, after)

    async def idempotency(self, account: str, *, after: str, up_to: str | None = None) -> list[IdempotencyRow]:
        """See transfer.Source."""
        return await self._run(self._pages.idempotency, account, after, up_to)

    async def authentications(self) -> AsyncIterator[list[AuthenticationRow]]:
        """See transfer.Source."""
        after, page = await self._run(self._pages.authentications, 0)
        while page:
            yield page
            after, page = await self._run(self._pages.authentications, after)

    async def log_name(self) -> str:
        """See transfer.Source."""
        return await self._run(Log(self._connection).name)

    async def webhooks(self) -> list[WebhookRow]:
        """See transfer.Source."""
        return await self._run(self._pages.webhooks)

    async def blocked(self, webhook: WebhookRow, *, after: str) -> list[BlockedRow]:
        """See transfer.Source."""
        return await self._run(self._pages.blocked, webhook, after)

    async def dead(self, webhook: WebhookRow, *, after: int) -> list[DeadRow]:
        """See transfer.Source."""
        return await self._run(self._pages.dead, webhook, after)

    async def close(self) -> None:
        """See transfer.Source."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        close_reading(self._connection, self._path)


class SqliteTarget(SqliteSource):
    """A file that is written, this process its only recorder (transfer.Target)."""

    def __init__(self, path: Path, connection: apsw.Connection, lock: ServerLock) -> None:
        super().__init__(path, connection)
        self._lock = lock
        self._additions = Additions(connection)

    async def unfinished(self) -> str | None:
        """See transfer.Target."""
        return await self._run(unfinished_copy, self._connection)

    async def begin(self, source: str, at: int) -> None:
        """See transfer.Target."""
        await self._run(self._additions.begin, source, at)

    async def put_keys(self, accounts: Sequence[str], records: Sequence[KeyRecord]) -> None:
        """See transfer.Target."""
        await self._run(self._additions.put_keys, accounts, records)

    async def add_entries(self, account: str, entries: Sequence[Entry]) -> None:
        """See transfer.Target."""
        await self._run(self._additions.add_entries, account, entries)

    async def add_authentications(self, rows: Sequence[AuthenticationRow]) -> None:
        """See transfer.Target."""
        await self._run(self._additions.add_authentications, rows)

    async def put_idempotency(
        self, account: str, *, after: str, up_to: str | None, rows: Sequence[IdempotencyRow]
    ) -> None:
        """See transfer.Target."""
        await self._run(self._additions.put_idempotency, account, after, up_to, rows)

    async def put_log_name(self, name: str) -> None:
        """See transfer.Target."""
        await self._run(self._additions.put_log_name, name)

    async def put_webhooks(self, rows: Sequence[WebhookRow]) -> None:
        """See transfer.Target."""
        await self._run(self._additions.put_webhooks, rows)

    async def add_blocked(self, webhook: WebhookRow, rows: Sequence[BlockedRow]) -> None:
        """See transfer.Target."""
        await self._run(self._additions.add_blocked, webhook, rows)

    async def add_dead(self, webhook: WebhookRow, rows: Sequence[DeadRow]) -> None:
        """See transfer.Target."""
        await self._run(self._additions.add_dead, webhook, rows)

    async def finish(self) -> None:
        """See transfer.Target."""
        await self._run(self._additions.finish)

    async def close(self) -> None:
        """See transfer.Source. The WAL is folded into the database."""
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)
        self._connection.close()
        self._lock.release()


def open_source(path: Path) -> SqliteSource:
    """Open the file to be read, beside whoever records in it. Nothing of it is changed. Raises as ``open_reading``."""
    return SqliteSource(path, open_reading(path))


def open_target(path: Path, source: Source) -> SqliteTarget:
    """Open the file to be written, making or migrating it where needed; from then on it is this process's alone.

    Raises SettingError where it is the source, and as ``open_store`` does; half a copy is welcome.
    """
    if path.exists():
        status = path.stat()
        if source.identity == (status.st_dev, status.st_ino):
            raise SettingError(f"--from and --to are one store: {source.shown}")
    create_file(path)
    check_file(path)
    lock = ServerLock(path)
    try:
        connection = connect(path)
        try:
            if not is_current(connection, path):
                migrate(connection)
            return SqliteTarget(path, connection, lock)
        except BaseException:
            connection.close()
            raise
    except BaseException:
        lock.release()
        raise
