"""The embedded store put together: who writes and who reads.

Recording runs on a thread of its own, so that a slow disk delays the writes that wait for it and nothing else. Reading
runs on the caller's thread, on a second connection: in WAL mode a reader waits for nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import apsw

from turnlog.errors import SettingError
from turnlog.store.protocol import Health, KeyRecord, StoreDamagedError, StoreFailedError, StoreUnavailableError
from turnlog.store.sqlite.append import Appender
from turnlog.store.sqlite.beside import LogBeside
from turnlog.store.sqlite.checkpoints import Checkpoints
from turnlog.store.sqlite.connection import (
    ServerLock,
    Translation,
    check_file,
    connect,
    create_file,
    opening,
    translated,
    was_refused,
)
from turnlog.store.sqlite.damage import mark, refuse_damaged, refuse_marked
from turnlog.store.sqlite.keys import Keys
from turnlog.store.sqlite.log import Log
from turnlog.store.sqlite.migrate import is_current, is_store, migrate, no_store, refuse_half_copied, schema_version
from turnlog.store.sqlite.pages import Pages
from turnlog.store.sqlite.reads import Reads
from turnlog.store.sqlite.scrubbing import Scrubber
from turnlog.store.sqlite.webhooks import Webhooks
from turnlog.store.sqlite.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator, Sequence
    from pathlib import Path

    from turnlog.ids import Place
    from turnlog.model import Conversation, LogFilter, Message, SecretHash
    from turnlog.store.protocol import LogPart, Write

G = TypeVar("G")
T = TypeVar("T")


class SqliteStore:
    """One file, this process its only recorder (protocol.Store)."""

    def __init__(self, path: Path, lock: ServerLock, pages: Pages, writer: apsw.Connection, ttl_us: int) -> None:
        self._path = path
        self._lock = lock
        self._pages = pages
        self._translated = Translation(self._failed)
        reader = connect(path, readonly=True)
        self._writer = writer
        self._reader = reader
        self._appender = Appender(writer, idempotency_ttl_us=ttl_us)
        self._reads = Reads(reader)
        self._log = Log(reader)
        self._followers: list[Callable[[str], None]] = []
        self._keys = Keys(reader)
        self._worker = Worker("turnlog-writer")
        self._failure: BaseException | None = None
        self._checkpoints = Checkpoints(path, writer, self._worker, self._failed)
        self._scrubber = Scrubber(path, pages, self._failed)
        self._take_in(Webhooks(reader, self._change))

    def _take_in(self, webhooks: Webhooks) -> None:
        """What webhooks.WebhookStore promises is carried out by a part of its own."""
        self.webhooks_version = webhooks.webhooks_version
        self.webhooks = webhooks.webhooks
        self.add_webhook = webhooks.add_webhook
        self.change_webhook = webhooks.change_webhook
        self.delete_webhook = webhooks.delete_webhook
        self.delivery = webhooks.delivery
        self.dead_letters = webhooks.dead_letters
        self.replay_from = webhooks.replay_from
        self.replay_dead = webhooks.replay_dead
        self.claim_webhooks = webhooks.claim_webhooks
        self.release_webhooks = webhooks.release_webhooks
        self.save_progress = webhooks.save_progress

    # Recording.

    @property
    def failure(self) -> BaseException | None:
        """See protocol.Recorder."""
        return self._failure

    @property
    def parallel(self) -> int:
        """See protocol.Recorder: a file has one writer."""
        return 1

    def lane(self, write: Write) -> Hashable:
        """See protocol.Recorder: all share each commit."""
        del write
        return None

    def _failed(self, failure: BaseException) -> None:
        self._failure = self._failure or failure
        self._checkpoints.stop()
        if isinstance(failure, StoreDamagedError):
            mark(self._path, str(failure))

    @property
    def scrubbed(self) -> int:
        """See protocol.Recorder."""
        return self._scrubber.rounds

    async def scrub(self, interval_s: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """See protocol.Recorder."""
        await self._scrubber.run(interval_s, sleep)

    async def append(self, writes: Sequence[Write]) -> list[object]:
        """See protocol.Recorder."""
        outcomes = await self._worker.run(partial(self._carry_out, self._appender.append, writes))
        self._checkpoints.after_batch()
        if self._followers:
            for account in {getattr(write, "account", "") for write in writes}:
                for moved in self._followers:
                    moved(account)
        return outcomes

    async def _change(self, work: Callable[[apsw.Connection], T]) -> T:
        """What ``work`` comes to between two batches."""
        outcome = await self._worker.run(partial(self._carry_out, work, self._writer))
        self._checkpoints.after_batch()
        return outcome

    def _carry_out(self, work: Callable[[G], T], given: G) -> T:
        if self._failure is not None:
            raise StoreFailedError(f"the store failed earlier: {self._failure}")
        self._check_place()
        try:
            with translated():
                return work(given)
        except StoreFailedError as failure:
            if was_refused(failure.__cause__, self._writer):
                raise StoreUnavailableError(f"{self._path} cannot be written") from failure
            self._failed(failure)
            raise

    def _check_place(self) -> None:
        if not self._pages.is_at(self._path):
            raise StoreUnavailableError(f"the file is not at {self._path} any more")

    # Reading.

    async def conversation(self, account: str, conversation_id: str) -> Conversation | None:
        """See protocol.Reader."""
        with self._translated:
            return self._reads.conversation(account, conversation_id)

    async def conversation_by_external_id(self, account: str, external_id: str) -> Conversation | None:
        """See protocol.Reader."""
        with self._translated:
            return self._reads.conversation_by_external_id(account, external_id)

    async def message(self, account: str, conversation_id: str, message_id: str) -> Message | None:
        """See protocol.Reader."""
        with self._translated:
            return self._reads.message(account, conversation_id, message_id)

    @property
    def generation(self) -> int:
        """See protocol.LogReader: nobody changes the file under its server."""
        return 0

    async def last_position(self, account: str) -> int:
        """See protocol.Reader."""
        with self._translated:
            return self._log.last_position(account)

    async def messages(
        self,
        account: str,
        conversation_id: str,
        *,
        after: Place | None,
        limit: int,
        up_to: int | None = None,
        max_chars: int | None = None,
    ) -> list[Message] | None:
        """See protocol.Reader."""
        with self._translated:
            return self._reads.messages(
                account, conversation_id, after=after, limit=limit, up_to=up_to, max_chars=max_chars
            )

    async def log(
        self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int
    ) -> LogPart:
        """See protocol.LogReader."""
        with self._translated:
            return self._log.part(account, wanted, after=after, up_to=up_to, limit=limit, max_chars=max_chars)

    async def log_start(self, account: str) -> int:
        """See protocol.LogReader."""
        with self._translated:
            return self._log.start(account)

    async def log_name(self) -> str:
        """See protocol.LogReader."""
        with self._translated:
            return self._log.name()

    async def follow(self, moved: Callable[[str], None]) -> None:
        """See protocol.LogReader: nobody else records."""
        self._followers.append(moved)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._followers.remove(moved)

    async def check(self) -> None:
        """See protocol.Reader."""
        if self._failure is not None:
            raise StoreFailedError(f"the store failed earlier: {self._failure}")
        self._check_place()
        with self._translated:
            await self._keys.keys_version()

    async def health(self) -> Health:
        """See protocol.Reader."""
        await self.check()
        with self._translated:
            schema = schema_version(self._reader)
        wal = self._path.with_name(self._path.name + "-wal")
        return Health(schema, self._path.stat().st_size, wal.stat().st_size if wal.exists() else 0)

    # Keys.

    async def keys_version(self) -> int:
        """See protocol.KeyStore."""
        with self._translated:
            return await self._keys.keys_version()

    async def keys(self) -> list[KeyRecord]:
        """See protocol.KeyStore."""
        with self._translated:
            return await self._keys.keys()

    async def add_key(self, record: KeyRecord) -> None:
        """See protocol.KeyStore."""
        with self._changing_keys() as keys:
            await keys.add_key(record)

    async def revoke_key(self, key_id: str, at: int) -> None:
        """See protocol.KeyStore."""
        with self._changing_keys() as keys:
            await keys.revoke_key(key_id, at)

    async def rotate_key(self, key_id: str, secret: SecretHash, old_expire_at: int) -> None:
        """See protocol.KeyStore."""
        with self._changing_keys() as keys:
            await keys.rotate_key(key_id, secret, old_expire_at)

    @contextlib.contextmanager
    def _changing_keys(self) -> Iterator[Keys]:
        """A connection of its own: the writer's belongs to the writer's thread, the reader's cannot write."""
        connection = connect(self._path)
        try:
            yield Keys(connection)
        finally:
            connection.close()

    async def close(self) -> None:
        """Finish the batch under way, fold the WAL into the database and let go of the file.

        After a failure the WAL is left as it is: it has everything that was acknowledged, and a sync that succeeds
        after one that failed proves nothing.
        """
        await self._checkpoints.finish()  # which may give the recording thread its last call
        await self._worker.close()
        connections = (self._reader, self._checkpoints.connection, self._writer)
        if self._failure is not None:
            for connection in connections:
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        for connection in connections:
            connection.close()
        self._checkpoints.close()
        self._pages.close()
        self._lock.release()


async def open_store(path: Path, *, idempotency_ttl_us: int, create: bool = True) -> SqliteStore:
    """Open the file for recording, making or migrating it where needed; without ``create`` there has to be one.

    Raises SettingError where another process records in it, where it is newer than this program, where it is not a
    store, where it is half a copy, where it is damaged, and where it cannot be opened; the message names the path.
    """
    _find_file(path, create=create)
    lock = ServerLock(path)
    try:
        pages = Pages(path)
        pages.take()
        writer = connect(path)
        if not is_current(writer, path):
            with opening(path):
                migrate(writer)
        refuse_half_copied(writer, path)
        refuse_damaged(writer, pages, path)
        return SqliteStore(path, lock, pages, writer, idempotency_ttl_us)
    except BaseException:
        lock.release()
        raise


def _find_file(path: Path, *, create: bool) -> None:
    if create:
        create_file(path)
    elif not is_store(path):
        raise SettingError(no_store(path))
    check_file(path)


class KeysAndWebhooks(Keys, Webhooks, LogBeside):
    """What may be read and changed beside the process that records (connect.KeysAndWebhooks)."""

    def __init__(self, connection: apsw.Connection) -> None:
        Keys.__init__(self, connection)
        Webhooks.__init__(self, connection, self._at_once)
        LogBeside.__init__(self, connection)

    async def _at_once(self, work: Callable[[apsw.Connection], T]) -> T:
        with translated():
            return work(self._connection)


@contextlib.asynccontextmanager
async def open_keys(path: Path, *, create: bool = False) -> AsyncIterator[KeysAndWebhooks]:
    """Open the file for its keys and webhooks, beside whoever records in it.

    But in another process (see ``check_file``). Raises SettingError as ``open_store`` does.
    """
    _find_file(path, create=create)
    refuse_marked(path)
    connection = connect(path)
    try:
        if not is_current(connection, path):
            lock = ServerLock(path)
            try:
                with opening(path):
                    migrate(connection)
            finally:
                lock.release()
        refuse_half_copied(connection, path)
        with translated():
            yield KeysAndWebhooks(connection)
    finally:
        connection.close()
