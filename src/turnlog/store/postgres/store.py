"""The store on PostgreSQL put together: who records, who reads, what happens when the way to the database is cut."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from turnlog.errors import SettingError
from turnlog.store.postgres import keys, log, migrate, reads
from turnlog.store.postgres.accounts import Accounts
from turnlog.store.postgres.append import Appender
from turnlog.store.postgres.connections import FREE_WITHIN_S, ConflictError, Connections, LostError
from turnlog.store.postgres.following import Moves
from turnlog.store.postgres.gather import MOST_ROWS, Gatherer, Kind, in_a_task
from turnlog.store.postgres.webhooks import Webhooks
from turnlog.store.protocol import ForgetIdempotency, Health, StoreUnavailableError, StoreUncertainError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence

    from asyncpg import Connection

    from turnlog.ids import Place
    from turnlog.model import Conversation, LogFilter, Message, SecretHash
    from turnlog.store.postgres.address import Address
    from turnlog.store.protocol import KeyRecord, LogPart, Write

T = TypeVar("T")

RECORDING = 4
READING = 3
"""Connections of each kind to the database, at most; one more is for keys and health, so that no reader delays them."""
DELIVERING = 2
"""And these are for webhooks."""
_CHECK_S = 1.0
_READ_S = 5.0
_MIGRATION_S = 3600.0
_RESOLVE_S = 1.0
"""How long a batch whose connection was lost is tried again before its callers hear that the outcome is unknown."""
_RESOLVE_PAUSE_S = 0.05
CONFLICTS = 3
"""How often a batch that lost to another transaction is tried again."""
_SIZES = """
    SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE n.nspname = 'turnlog' AND c.relkind = 'r'
"""
_log = structlog.get_logger()


class PostgresStore:
    """One database, shared with any number of other processes (protocol.Store).

    It is opened also while there is no server to be reached: until there is, every call is refused.
    """

    def __init__(self, address: Address, *, idempotency_ttl_us: int, deadline_s: float) -> None:
        self._address = address
        self._deadline_s = deadline_s
        self._now_s = asyncio.get_running_loop().time
        # Every attempt at a batch has ended before its deadline, however long others hold the lock.
        lock_s = deadline_s / (CONFLICTS + 2)
        check = self._check_connection
        self._recording = Connections(address, size=RECORDING, lock_timeout_s=lock_s, check=check)
        self._reading = Connections(address, size=READING, check=check, reading=True)
        self._watching = Connections(address, check=check, reading=True)
        self._delivering = Connections(address, size=DELIVERING, check=check, reading=True)
        self._every = (self._recording, self._reading, self._watching, self._delivering)
        self._gatherer = Gatherer(self._read_together, size=READING, patience_s=FREE_WITHIN_S)
        self._logs = Moves(address, lambda limit_s: self._watching.use(limit_s, commits=False))
        self._ttl_us = idempotency_ttl_us
        self._begin_anew()
        self._failure: BaseException | None = None
        self._unsafe = ""
        self._records = True
        self._place = ""
        self._moves = 0
        self._migration: asyncio.Task[None] | None = None
        self._take_in(Webhooks(self._delivering, lambda: self._accounts))

    def _take_in(self, webhooks: Webhooks) -> None:
        """What webhooks.WebhookStore promises is carried out by a part of its own."""
        self._webhooks = webhooks
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

    async def webhooks_version(self) -> int:
        """See webhooks.WebhookStore."""
        return await self._webhooks.version() + (self._moves << 48)  # as for the keys

    async def start(self) -> None:
        """Make or migrate the tables where needed; where no server answers, that is done once one does.

        Raises SettingError where the database cannot be used.
        """
        for connections in self._every:
            await connections.open()
        try:
            await self._migrate()
        except StoreUnavailableError as error:
            _log.warning("store_not_reachable_yet", store=self._address.shown, error=str(error))

    def _begin_anew(self) -> None:
        """With nothing remembered; what is under way goes on with what it has."""
        self._accounts = Accounts()
        self._appender = Appender(self._accounts, idempotency_ttl_us=self._ttl_us)
        self._logs.begin_anew()

    async def _migrate(self) -> None:
        async with self._recording.alone(_READ_S) as connection:
            behind = (await migrate.look(connection, self._address.shown)).version < migrate.newest()
            if not behind:
                await self._check_connection(connection)
        if behind:
            async with self._recording.alone(_MIGRATION_S) as connection:
                before, after = await migrate.migrate(connection, self._address.shown)
                if before != after:
                    _log.info("migrated", store=self._address.shown, before=before, after=after)
                await self._check_connection(connection)

    async def _check_connection(self, connection: Connection) -> None:
        """Each new connection may lead to another server than the last one did."""
        try:
            state = await migrate.look(connection, self._address.shown)
            migrate.refuse_half_copied(state, self._address.shown)
        except SettingError as error:
            self._failure = error
            raise
        self._note_fsync(fsync=state.fsync)
        await self._note_place(state.place)
        if state.version < migrate.newest():
            if self._migration is None or self._migration.done():
                self._migration = asyncio.create_task(self._migrate_later())
            raise StoreUnavailableError("the tables are being made")

    async def _migrate_later(self) -> None:
        try:
            await self._migrate()
        except SettingError as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 - the next connection tries again
            _log.warning("not_migrated", error=str(error))

    async def _note_place(self, place: str) -> None:
        """Where the database is another one than before, connections to the old one and what was learned there go.

        A server that is no longer the primary may answer on, with what it had.
        """
        if place == self._place:
            return
        if self._place:
            self._moves += 1
            self._begin_anew()
            for connections in self._every:
                await connections.expire()
        self._place = place

    def _note_fsync(self, *, fsync: bool) -> None:
        unsafe = "" if fsync else "the database runs with fsync=off, and a 200 would not mean on disk"
        if unsafe and not self._unsafe:
            _log.error("store_unsafe", error=unsafe)
        self._unsafe = unsafe

    def _refuse_where_unsafe(self) -> None:
        if self._unsafe:
            raise StoreUnavailableError(self._unsafe)

    # Recording.

    @property
    def failure(self) -> BaseException | None:
        """See protocol.Recorder."""
        return self._failure

    scrubbed = 0

    async def scrub(self, interval_s: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """See protocol.Recorder: PostgreSQL keeps checksums of its own (``data_checksums``)."""

    @property
    def parallel(self) -> int:
        """See protocol.Recorder."""
        return RECORDING

    def lane(self, write: Write) -> Hashable:
        """See protocol.Recorder: an account is recorded in by one transaction at a time."""
        return getattr(write, "account", None)

    async def append(self, writes: Sequence[Write]) -> list[object]:
        """See protocol.Recorder.

        Where the connection is lost the batch is tried again, and recorded once: what it recorded before is found.
        """
        deadline = self._now_s() + self._deadline_s
        lost: BaseException | None = None
        conflicts = 0
        while True:
            try:
                self._refuse_where_unsafe()
                async with self._recording.use(deadline - self._now_s()) as connection:
                    outcomes = await self._appender.append(connection, writes, again=lost is not None)
            except LostError as error:
                if lost is None:
                    deadline = min(deadline, self._now_s() + _RESOLVE_S)
                lost = error
            except ConflictError as error:
                conflicts += 1
                if conflicts > CONFLICTS:
                    raise (StoreUnavailableError if lost is None else StoreUncertainError)(str(error)) from error
                continue
            except StoreUnavailableError:
                if lost is None:
                    raise
            else:
                if lost is not None:
                    _log.warning("outcome_resolved", error=str(lost), writes=len(writes))
                self._logs.recorded({write.account for write in writes if not isinstance(write, ForgetIdempotency)})
                return outcomes
            if self._now_s() + _RESOLVE_PAUSE_S >= deadline:
                raise StoreUncertainError(str(lost)) from lost
            await asyncio.sleep(_RESOLVE_PAUSE_S)

    # Reading.

    async def _read(
        self,
        work: Callable[[Connection], Awaitable[T]],
        limit_s: float = _READ_S,
        connections: Connections | None = None,
    ) -> T:
        """What ``work`` finds; a second time where the connection was lost, as after a restart of the server."""
        for last in (False, True):
            try:
                async with (connections or self._reading).use(limit_s, commits=False) as connection:
                    return await work(connection)
            except (LostError, ConflictError) as error:
                if last:
                    raise StoreUnavailableError(str(error)) from error
        raise AssertionError

    async def _read_together(self, kind: Kind[Any, Any], wanted: Sequence[Any]) -> Sequence[Any]:
        return await self._read(lambda on: kind(on, self._accounts, wanted))

    async def conversation(self, account: str, conversation_id: str) -> Conversation | None:
        """See protocol.Reader."""
        return await self._gatherer.ask(reads.conversations, (account, conversation_id))

    async def conversation_by_external_id(self, account: str, external_id: str) -> Conversation | None:
        """See protocol.Reader."""
        return await self._gatherer.ask(reads.conversations_by_external_id, (account, external_id))

    async def message(self, account: str, conversation_id: str, message_id: str) -> Message | None:
        """See protocol.Reader."""
        return await self._gatherer.ask(reads.messages, (account, conversation_id, message_id))

    @property
    def generation(self) -> int:
        """See protocol.LogReader."""
        return self._moves

    async def last_position(self, account: str) -> int:
        """See protocol.Reader."""
        return await self._gatherer.ask(reads.last_positions, account)

    async def log(
        self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int
    ) -> LogPart:
        """See protocol.LogReader; never together with others, which would wait for it."""
        part = log.WantedPart(account, wanted, after, up_to, limit, max_chars)
        return await self._gatherer.ask(log.parts, part, MOST_ROWS)

    async def log_start(self, account: str) -> int:
        """See protocol.LogReader."""
        return await self._gatherer.ask(log.starts, account)

    async def log_name(self) -> str:
        """See protocol.LogReader."""
        return await self._gatherer.ask(log.names, None)

    async def follow(self, moved: Callable[[str], None]) -> None:
        """See protocol.LogReader."""
        await self._logs.follow(moved)

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
        wanted = reads.wanted_page(account, conversation_id, after, limit, up_to, max_chars)
        return await self._gatherer.ask(reads.pages, wanted, limit)

    async def check(self) -> None:
        """See protocol.Reader."""
        await in_a_task(self.keys_version())
        self._refuse_where_unsafe()
        if not self._records:
            raise StoreUnavailableError("the database may not be written to, or not by this role")

    async def health(self) -> Health:
        """See protocol.Reader."""
        size = await in_a_task(self._read(lambda on: on.fetchval(_SIZES)))
        return Health(migrate.newest(), int(size), None)

    # Keys.

    async def keys_version(self) -> int:
        """See protocol.KeyStore."""
        found = await self._read(keys.version, _CHECK_S, self._watching)
        self._note_fsync(fsync=found.fsync)
        self._records = found.records
        if not found.records:
            await self._watching.expire()  # another server may be the primary by now
        return found.version + (self._moves << 48)  # another database may have come to the same number on its own

    async def keys(self) -> list[KeyRecord]:
        """See protocol.KeyStore."""
        return await self._read(keys.keys, connections=self._watching)

    async def add_key(self, record: KeyRecord) -> None:
        """See protocol.KeyStore."""
        await self._change(lambda on: keys.add_key(on, record))

    async def revoke_key(self, key_id: str, at: int) -> None:
        """See protocol.KeyStore."""
        await self._change(lambda on: keys.revoke_key(on, key_id, at))

    async def rotate_key(self, key_id: str, secret: SecretHash, old_expire_at: int) -> None:
        """See protocol.KeyStore."""
        await self._change(lambda on: keys.rotate_key(on, key_id, secret, old_expire_at))

    async def _change(self, work: Callable[[Connection], Awaitable[Any]]) -> None:
        try:
            async with self._watching.use(_READ_S) as connection:
                await work(connection)
        except (LostError, ConflictError) as error:
            raise StoreUncertainError(f"whether the key was changed is unknown: {error}") from error

    async def close(self) -> None:
        """See protocol.Store."""
        if self._migration is not None:
            self._migration.cancel()
        await self._logs.close()
        for connections in self._every:
            await connections.close()
        await self._gatherer.close()


async def open_store(address: Address, *, idempotency_ttl_us: int, deadline_s: float) -> PostgresStore:
    """Open the database for recording. Raises SettingError as PostgresStore.start does."""
    store = PostgresStore(address, idempotency_ttl_us=idempotency_ttl_us, deadline_s=deadline_s)
    try:
        await store.start()
    except BaseException:
        await store.close()
        raise
    return store


@asynccontextmanager
async def open_keys(address: Address, *, create: bool = False) -> AsyncIterator[PostgresStore]:
    """Open the database for its keys. Raises SettingError; StoreUnavailableError where no server answers."""
    async with Connections(address).alone(_READ_S) as connection:
        state = await migrate.look(connection, address.shown)
    if not create and state.version == 0:
        raise SettingError(f"there is no store at {address.shown}")
    store = await open_store(address, idempotency_ttl_us=0, deadline_s=_READ_S)
    try:
        yield store
    finally:
        await store.close()


async def migrate_store(address: Address) -> tuple[int, int]:
    """Bring the database to this program's schema: its number before and after. Raises as ``open_keys``."""
    async with Connections(address).alone(_MIGRATION_S) as connection:
        return await migrate.migrate(connection, address.shown)
