"""Importing into a store, in process."""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
import time
from typing import TYPE_CHECKING, Any, TypeVar

from turnlog import instants
from turnlog.errors import Error, OverloadedError, SettingError
from turnlog.model import DEFAULT_PERMISSIONS, ApiKey, NewMessage
from turnlog.service import Service
from turnlog.store.connect import open_keys, open_store, shown
from turnlog.store.protocol import StoreFailedError, StoreUnavailableError
from turnlog.targets.protocol import Patience, RefusedError
from turnlog.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from turnlog.config import Config
    from turnlog.ids import Ulids
    from turnlog.model import NewConversation
    from turnlog.targets.protocol import Target

T = TypeVar("T")

MAX_QUEUED = 1 << 30


@contextlib.contextmanager
def store_target(config: Config, account: str, ids: Ulids, now_us: Callable[[], int]) -> Iterator[Target]:
    """The account's conversations in the configured store, which is this process's alone meanwhile.

    Raises SettingError where there is no such store or account, or where a server runs on the store.
    """
    hint = f"an account comes into being with its first key: `turnlog keys create NAME --account {account}`"
    try:
        accounts = asyncio.run(_accounts(config.store))
    except SettingError as error:
        raise SettingError(f"{error} ({hint})") from None
    if account not in accounts:
        raise SettingError(f"the store {shown(config.store)} has no account {account!r}: {hint}")
    target = _StoreTarget(config, account, ids, now_us)
    try:
        yield target
    finally:
        target.close()


async def _accounts(url: str) -> set[str]:
    async with open_keys(url) as kept:
        return {record.key.account for record in await kept.keys()}


class _StoreTarget:
    """Runs the service on an event loop in a thread of its own, so that many batches share a commit."""

    workers = 64

    def __init__(self, config: Config, account: str, ids: Ulids, now_us: Callable[[], int]) -> None:
        self._key = ApiKey("import", "import", account, DEFAULT_PERMISSIONS, now_us())
        self.patience = Patience()
        self._failures: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="turnlog-import-store", daemon=True)
        self._thread.start()
        try:
            self._store = self._result(open_store(config.store, idempotency_ttl_us=3600 * instants.US_PER_S))
        except SettingError as error:
            self._end_loop()
            raise SettingError(
                f"{error}; where a server runs on it, import through the server: --url http://HOST:PORT"
            ) from None
        self._service = self._result(self._start(ids, now_us, refuse_repeats=config.refuse_repeats))

    async def _start(self, ids: Ulids, now_us: Callable[[], int], *, refuse_repeats: bool) -> Service:
        # Nobody else waits here: the queue takes what the importer allows itself, for as long as the disk takes.
        writer = Writer(
            self._store,
            max_rows=MAX_QUEUED,
            max_chars=MAX_QUEUED,
            deadline_s=math.inf,
            monotonic_s=time.monotonic,
            on_batch=lambda _rows, _seconds: None,
            on_failure=self._failures.append,
        )
        return Service(self._store, writer, ids, now_us, refuse_repeats=refuse_repeats)

    def _result(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _do(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        since, attempt = time.monotonic(), 0
        while True:
            try:
                done = self._result(work())
            except OverloadedError as error:
                self.patience.wait(attempt, since, error.retry_after_s or 0, f"{error}: is the disk full?")
            except Error as error:
                if error.status < 500:
                    raise RefusedError(error.message, error.status) from None
                cause = self._failures[0] if self._failures else error.__cause__ or error
                raise SettingError(f"the store failed: {cause}") from error
            except (StoreFailedError, StoreUnavailableError) as error:
                raise SettingError(f"the store failed: {error}") from error
            else:
                self.patience.succeeded()
                return done
            attempt += 1

    def find(self, external_id: str) -> str | None:
        """See Target."""
        found = self._do(lambda: self._service.find_conversations(self._key, external_id))
        return found[0].id if found else None

    def create(self, new: NewConversation) -> None:
        """See Target."""
        self._do(lambda: self._service.create_conversation(self._key, new))

    def recorded(self, conversation_id: str) -> Iterator[NewMessage]:
        """See Target."""
        listing = self._do(lambda: self._service.list_messages(self._key, conversation_id))
        last = False
        while not last:
            part = self._do(listing.part)
            last = part.last
            for found in part.items:
                yield NewMessage(found.text, found.role, found.sender, found.client_at)

    def record(self, conversation_id: str, messages: Sequence[NewMessage], idempotency_key: str) -> None:
        """See Target. The key is not kept: no answer is lost within a process, and no other records meanwhile."""
        del idempotency_key
        self._do(lambda: self._service.create_messages(self._key, conversation_id, messages, None))

    def close(self) -> None:
        """Let go of the store, once no thread is in a call any more."""
        self._result(self._store.close())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
