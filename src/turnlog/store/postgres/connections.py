"""Connections to the one server that may be written to: made when needed, kept, and given up when doubtful.

The driver's errors end here; the rest of the store sees LostError, ConflictError and the protocol's own.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING, Any

import asyncpg
import structlog

from turnlog.errors import SettingError
from turnlog.store.protocol import StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from asyncpg import Connection

    from turnlog.store.postgres.address import Address

_log = structlog.get_logger()

_IDLE_IN_TRANSACTION_MS = 2000
"""A node that stops between two statements of a transaction must not hold an account up for longer."""
_CLOSED_FOR_S = 0.2
"""After a failed attempt to connect nobody tries again for so long: refusals are quick while there is no server."""
FREE_WITHIN_S = 2.0
"""How long anybody waits for a connection."""
_IDLE_S = 300.0

_SESSION = {
    "application_name": "turnlog",
    # Whatever the role or the database say: a 200 means on disk, on the synchronous standby's too where there is one.
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "search_path": "pg_catalog",
    "statement_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": str(_IDLE_IN_TRANSACTION_MS),
    # Every statement goes through an index, whatever the statistics of a young table say; then one plan fits all.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}


class LostError(Exception):
    """The way to the server was cut: whatever was under way has happened or not."""


class ConflictError(Exception):
    """Another transaction stood in the way; this one did not happen and may be tried again."""


_CONFLICTS = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
)
_LOST = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.DatabaseDroppedError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
)
# With an error of this severity the server ends the session, whatever the error is.
_LAST_WORDS = ("FATAL", "PANIC")
_WAIT_FOR_STANDBY = "SyncRepWaitForLSN"
"""Where in PostgreSQL a warning comes from that a commit was not waited for: the standby may not have it. What is then
read back and committed again waits anew."""
# The server answered that it did not do it, for a reason that may pass.
_REFUSED = (
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.CannotConnectNowError,
    asyncpg.QueryCanceledError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.PostgresSystemError,
    asyncpg.ObjectNotInPrerequisiteStateError,
)
_CANNOT_CONNECT = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)
# An attempt to connect that ends so will end so every time.
_MISCONFIGURED = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.ClientConfigurationError,
    asyncpg.UndefinedObjectError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.ProtocolViolationError,
)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except _LOST as error:
        raise LostError(_said(error)) from error
    except asyncpg.PostgresError as error:
        if error.severity_en in _LAST_WORDS:
            raise LostError(_said(error)) from error
        if isinstance(error, _CONFLICTS):
            raise ConflictError(_said(error)) from error
        if isinstance(error, _REFUSED):
            raise StoreUnavailableError(_said(error)) from error
        raise


@contextmanager
def _believed(connection: Connection) -> Iterator[None]:
    """Raises LostError where the server says that it did not wait for the standby."""
    doubts: list[str] = []

    def listen(_: object, notice: asyncpg.PostgresLogMessage) -> None:
        if notice.server_source_function == _WAIT_FOR_STANDBY:
            doubts.append(_said(notice))

    connection.add_log_listener(listen)
    try:
        yield
    finally:
        with suppress(asyncpg.InterfaceError):
            connection.remove_log_listener(listen)
    if doubts:
        raise LostError(doubts[0])


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


class Connections:
    """At most ``size`` connections to one database. ``check`` sees each new one before it is used.

    A statement waits up to ``lock_timeout_s`` for another node's transaction, and raises ConflictError then. For
    ``reading``, a primary that may not be written to will do where no server may.
    """

    def __init__(
        self,
        address: Address,
        *,
        size: int = 1,
        lock_timeout_s: float = 5.0,
        check: Callable[[Connection], Awaitable[None]] | None = None,
        reading: bool = False,
    ) -> None:
        self._address = address
        self._reading = reading
        self._session = _SESSION | {"lock_timeout": str(max(1, round(lock_timeout_s * 1000)))}
        self._check = check
        self._loop = asyncio.get_running_loop()
        self._closed_until = 0.0
        self._why = ""
        # Whoever asks first goes first, which the pool does not see to: it gives what has become free to who asks then.
        self._turns = asyncio.Semaphore(size)
        self._pool: asyncpg.Pool = asyncpg.create_pool(
            min_size=0,
            max_size=size,
            max_queries=2**62,
            max_inactive_connection_lifetime=_IDLE_S,
            connect=self._connect,
            reset=_nothing_to_reset,
        )

    async def open(self) -> None:
        """Before the first use; connects to nothing yet."""
        await self._pool

    async def expire(self) -> None:
        """Make every connection anew before it is used again."""
        await self._pool.expire_connections()

    @asynccontextmanager
    async def use(self, limit_s: float, *, commits: bool = True) -> AsyncIterator[Connection]:
        """A connection for one operation, which is cut off after ``limit_s``; it ``commits`` something, or only reads.

        Raises StoreUnavailableError where there is none, ConflictError and LostError for what happens inside.
        """
        connection = await self._take()
        timer = self._loop.call_later(limit_s, _cut_off, connection)
        try:
            with _translated(), _believed(connection) if commits else nullcontext():
                yield connection
        except asyncpg.InterfaceError as error:
            if _is_open(connection):
                raise
            raise LostError(_said(error)) from error
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, asyncpg.ReadOnlySQLTransactionError):
                await self.expire()  # it was the primary once: look for the new one
            raise
        finally:
            timer.cancel()
            await self._release(connection)

    async def _take(self) -> Connection:
        """A connection of the pool's, to who has waited longest. Raises StoreUnavailableError."""
        self._refuse_while_closed()
        try:
            async with asyncio.timeout(FREE_WITHIN_S):
                await self._turns.acquire()
                try:
                    self._refuse_while_closed()
                    return await self._pool.acquire()
                except BaseException:
                    self._turns.release()
                    raise
        except TimeoutError:
            raise StoreUnavailableError("every connection to the database is in use") from None
        except (asyncpg.InterfaceError, asyncpg.PostgresConnectionError) as error:  # closed by us, or as it was made
            raise StoreUnavailableError(_said(error)) from error

    def _refuse_while_closed(self) -> None:
        if self._loop.time() < self._closed_until and not self._pool.get_idle_size():
            raise StoreUnavailableError(self._why)

    async def _release(self, connection: Connection) -> None:
        try:
            await self._pool.release(connection, timeout=FREE_WITHIN_S)
        except (*_LOST, TimeoutError):
            pass  # it is closed, and the pool knows
        except BaseException:
            _cut_off(connection)  # whatever it was, the pool gets its place back
            raise
        finally:
            self._turns.release()

    async def _connect(self, *_: object, **options: Any) -> Connection:
        """For the pool: a connection to the writable server, checked."""
        try:
            connection = await self.connect(**options)
        except SettingError as error:  # it was good at the start: a password being changed, a server being set up
            raise self._failed(str(error)) from error
        try:
            if self._check is not None:
                with _translated():
                    await self._check(connection)
        except (LostError, ConflictError, SettingError) as error:
            connection.terminate()
            raise self._failed(str(error)) from error
        except BaseException:
            connection.terminate()
            raise
        return connection

    @asynccontextmanager
    async def alone(self, limit_s: float) -> AsyncIterator[Connection]:
        """A connection of its own, not checked, and cut off after ``limit_s``. Raises as ``connect`` does."""
        connection = await self.connect()
        timer = self._loop.call_later(limit_s, connection.terminate)
        try:
            with _translated():
                yield connection
        except (LostError, ConflictError) as error:
            raise self._failed(str(error)) from error
        finally:
            timer.cancel()
            connection.terminate()

    async def connect(self, **options: Any) -> Connection:
        """A connection of its own to the writable server. Raises StoreUnavailableError, SettingError."""
        try:
            async with asyncio.timeout(self._address.connect_s):
                connection = await self._to_writable(options)
        except TimeoutError:
            raise self._failed("it does not answer") from None
        except _MISCONFIGURED as error:
            raise SettingError(f"the store {self._address.shown}: {_said(error)}") from error
        except _CANNOT_CONNECT as error:
            raise self._failed(_said(error)) from error
        if self._why:
            _log.info("store_reachable", store=self._address.shown)
            self._why = ""
        return connection

    def _failed(self, why: str) -> StoreUnavailableError:
        if not self._why:
            _log.warning("store_unreachable", store=self._address.shown, error=why)
        self._why = f"no connection to {self._address.shown}: {why}"
        self._closed_until = self._loop.time() + _CLOSED_FOR_S
        return StoreUnavailableError(self._why)

    async def _to_writable(self, options: dict[str, Any]) -> Connection:
        try:
            return await self._first(options)
        except asyncpg.TargetServerAttributeNotMatched:
            if not self._reading:
                raise
        return await self._first({**options, "target_session_attrs": "primary"})

    async def _first(self, options: dict[str, Any]) -> Connection:
        """Asks all hosts at once, so that a dead one costs nothing, and keeps the first that is as wanted."""
        attempts = [
            asyncio.ensure_future(asyncpg.connect(url, server_settings=self._session, **options))
            for url in self._address.urls
        ]
        pending = set(attempts)
        errors: list[BaseException] = []
        try:
            while pending:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for attempt in done:
                    error = attempt.exception()
                    if error is None:
                        attempts.remove(attempt)
                        return attempt.result()
                    errors.append(error)
        finally:
            for attempt in attempts:
                attempt.cancel()
                attempt.add_done_callback(_discard)
        told = (*_MISCONFIGURED, asyncpg.TargetServerAttributeNotMatched)
        raise next((error for kind in told for error in errors if isinstance(error, kind)), errors[-1])

    async def close(self) -> None:
        """Close every connection, politely where they listen."""
        try:
            async with asyncio.timeout(self._address.connect_s):
                await self._pool.close()
        except (TimeoutError, *_LOST):
            self._pool.terminate()


def _is_open(connection: Connection) -> bool:
    """Whether the pool still lends it: it takes back one that is closed, which then answers nothing any more."""
    try:
        return not connection.is_closed()
    except asyncpg.InterfaceError:
        return False


def _cut_off(connection: Connection) -> None:
    with suppress(asyncpg.InterfaceError):  # where the pool has taken it back already
        connection.terminate()


def _discard(attempt: asyncio.Future[Connection]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().terminate()


async def _nothing_to_reset(_connection: object) -> None:
    """A connection is given back as it was taken: no session state is changed, no listener added."""
