"""Where an import goes: a store of this machine, in process, or a running server, over HTTP.

The importer (importing.py) knows the interface; both keep the promise that what they return from is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol, TypeVar
from urllib.parse import quote

import msgspec
import urllib3

from turnlog import instants
from turnlog.errors import Error, OverloadedError, SettingError
from turnlog.model import DEFAULT_PERMISSIONS, MAX_PAGE_MESSAGES, ApiKey, NewMessage, Role
from turnlog.service import Service
from turnlog.store.connect import open_keys, open_store
from turnlog.store.protocol import StoreFailedError, StoreUnavailableError
from turnlog.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from turnlog.config import Config
    from turnlog.ids import Ulids
    from turnlog.model import NewConversation
    from turnlog.service import Part

T = TypeVar("T")

PATIENCE_S = 60.0
"""How long a target tries again without a single success of any of its threads."""
MAX_QUEUED = 1 << 30
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 30.0


class RefusedError(Exception):
    """The target will not have it; ``status`` is the contract's. Half of a refused batch may still be welcome."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Patience:
    """When to try again, and when to give up; shared by the threads of a target."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._succeeded_at = time.monotonic()

    def succeeded(self) -> None:
        """Somebody got through: the others may hope."""
        self._succeeded_at = time.monotonic()

    def end(self) -> None:
        """Nobody tries again: the caller is leaving."""
        self._stopped.set()

    def wait(self, attempt: int, since: float, retry_after_s: float, problem: str) -> None:
        """Wait before attempt number ``attempt`` + 1 of what began at ``since``. Raises SettingError instead."""
        waited_s = time.monotonic() - max(since, self._succeeded_at)
        pause_s = min(max(retry_after_s, _FIRST_PAUSE_S * 2 ** min(attempt, 6)), _LONGEST_PAUSE_S)
        if waited_s + pause_s > PATIENCE_S or self._stopped.wait(pause_s):
            raise SettingError(problem)


class Target(Protocol):
    """Where messages go. Up to ``workers`` threads call at once; what a call returns from is durable.

    Raises SettingError where nothing more can be done: after patience, where patience may help.
    """

    workers: int
    patience: Patience

    def find(self, external_id: str) -> str | None:
        """The id of the conversation with this external id."""

    def create(self, new: NewConversation) -> None:
        """Create the conversation under the id that ``new`` brings, again without harm.

        Raises RefusedError: with 409 where another conversation has the external id, which then stays as it is.
        """

    def recorded(self, conversation_id: str) -> Iterator[NewMessage]:
        """Every message of the conversation."""

    def record(self, conversation_id: str, messages: Sequence[NewMessage], idempotency_key: str) -> None:
        """Record all or none, and once for a key however often it is tried. Raises RefusedError."""


# A store of this machine.


@contextlib.contextmanager
def store_target(config: Config, account: str, ids: Ulids, now_us: Callable[[], int]) -> Iterator[Target]:
    """The account's conversations in the configured store, which is this process's alone meanwhile.

    Raises SettingError where there is no such store or account, or where a server runs on the store.
    """
    hint = f"an account comes into being with its first key: `turnlog keys create NAME --account {account}`"
    try:
        with open_keys(config.store) as kept:
            accounts = {record.key.account for record in kept.keys()}  # noqa: SIM118 - a store's keys
    except SettingError as error:
        raise SettingError(f"{error} ({hint})") from None
    if account not in accounts:
        raise SettingError(f"the store {config.store} has no account {account!r}: {hint}")
    target = _StoreTarget(config, account, ids, now_us)
    try:
        yield target
    finally:
        target.close()


class _StoreTarget:
    """Runs the service on an event loop in a thread of its own, so that many batches share a commit."""

    workers = 64

    def __init__(self, config: Config, account: str, ids: Ulids, now_us: Callable[[], int]) -> None:
        try:
            self._store = open_store(config.store, idempotency_ttl_us=3600 * instants.US_PER_S)
        except SettingError as error:
            raise SettingError(
                f"{error}; where a server runs on it, import through the server: --url http://HOST:PORT"
            ) from None
        self._key = ApiKey("import", "import", account, DEFAULT_PERMISSIONS, now_us())
        self.patience = Patience()
        self._failures: list[BaseException] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="turnlog-import-store", daemon=True)
        self._thread.start()
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
        parts = self._service.list_messages(self._key, conversation_id)

        async def following() -> Part | None:
            return await anext(parts, None)

        while (part := self._do(following)) is not None:
            for found in part.items:
                yield NewMessage(found.text, found.role, found.sender, found.client_at)

    def record(self, conversation_id: str, messages: Sequence[NewMessage], idempotency_key: str) -> None:
        """See Target. The key is not kept: no answer is lost within a process, and no other records meanwhile."""
        del idempotency_key
        self._do(lambda: self._service.create_messages(self._key, conversation_id, messages, None))

    def close(self) -> None:
        """Let go of the store, once no thread is in a call any more."""
        self._result(self._store.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


# A running server.

_CREDENTIAL = re.compile(r"[\x21-\x7e]{1,255}")
_UNSURE = frozenset({429, 500, 502, 503, 504})
_REFUSED = frozenset({400, 409, 413, 422})
_BASE = "/conversation/v1"


class _Made(msgspec.Struct):
    id: str


class _Found(msgspec.Struct):
    items: list[_Made]


class _Sender(msgspec.Struct, rename="camel"):
    role: Role
    external_id: str


class _Message(msgspec.Struct, rename="camel"):
    text: str
    sender: _Sender
    client_timestamp: str


class _New(msgspec.Struct):
    text: str
    sender: _Sender
    timestamp: str


class _Page(msgspec.Struct, rename="camel"):
    items: list[_Message]
    next_cursor: str | None = None


class _Problem(msgspec.Struct):
    message: str


class _Envelope(msgspec.Struct):
    error: _Problem


@contextlib.contextmanager
def http_target(url: str, api_id: str, api_secret: str) -> Iterator[Target]:
    """The conversations that the key opens on the server at ``url``.

    Raises SettingError where the server cannot be reached or refuses the key.
    """
    try:
        parts = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        parts = urllib3.util.Url()
    if parts.scheme not in ("http", "https") or not parts.host or parts.auth or parts.query or parts.fragment:
        raise SettingError("--url: expected the address of a server, as in http://127.0.0.1:8080")
    if not _CREDENTIAL.fullmatch(api_id) or not _CREDENTIAL.fullmatch(api_secret):
        raise SettingError("TURNLOG_API_ID and TURNLOG_API_SECRET must hold a key of the server and its secret")
    with urllib3.PoolManager(
        num_pools=1,
        maxsize=_HttpTarget.workers,
        block=True,
        timeout=urllib3.Timeout(connect=5, read=30),
        headers={"asapp-api-id": api_id, "asapp-api-secret": api_secret, "content-type": "application/json"},
    ) as pool:
        target = _HttpTarget(url.rstrip("/"), pool)
        # At once: there is nothing yet to be patient for.
        target.call("GET", "/v1/health", Any, patient=False)
        yield target


class _HttpTarget:
    """Speaks the published operations, each request with its own patience."""

    workers = 8

    def __init__(self, url: str, pool: urllib3.PoolManager) -> None:
        self._url = url
        self._pool = pool
        self.patience = Patience()

    def call(
        self, method: str, path: str, answer: Any, body: object = None, *, key: str | None = None, patient: bool = True
    ) -> Any:
        """The answer, of type ``answer``. Raises RefusedError, SettingError; ``patient`` outlasts a lost connection."""
        content = None if body is None else msgspec.json.encode(body)
        headers = self._pool.headers if key is None else {**self._pool.headers, "idempotency-key": key}
        since, attempt = time.monotonic(), 0
        while True:
            retry_after_s = 0.0
            try:
                # A redirect is not followed: it could lead the secret elsewhere.
                response = self._pool.request(
                    method, self._url + path, body=content, headers=headers, retries=False, redirect=False
                )
            except urllib3.exceptions.HTTPError as error:
                problem = f"cannot reach {self._url}: {_reason(error)}"
                if not patient:
                    raise SettingError(problem) from None
            else:
                if response.status not in _UNSURE:
                    self.patience.succeeded()
                    return self._answer(response, answer)
                problem = f"{self._url} answers {response.status}: {_message(response)}"
                retry_after_s = _seconds(response.headers.get("retry-after"))
            self.patience.wait(attempt, since, retry_after_s, problem)
            attempt += 1

    def _answer(self, response: urllib3.BaseHTTPResponse, answer: Any) -> Any:
        status = response.status
        if status == 200:
            try:
                return msgspec.json.decode(response.data, type=answer)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise SettingError(f"{self._url} does not answer as a Conversations API") from None
        if status in _REFUSED:
            raise RefusedError(_message(response), status)
        if status == 401:
            raise SettingError(
                f"{self._url} refuses the key: TURNLOG_API_ID and TURNLOG_API_SECRET must hold a live one"
            )
        if status == 403:
            needed = ", ".join(DEFAULT_PERMISSIONS)
            raise SettingError(f"the key lacks a permission of these: {needed} ({_message(response)})")
        if 300 <= status < 400:
            raise SettingError(f"{self._url} redirects to {response.headers.get('location')!r}: give that address")
        raise SettingError(f"no Conversations API at {self._url}: it answers {status} ({_message(response)})")

    def find(self, external_id: str) -> str | None:
        """See Target."""
        found = self.call("GET", f"{_BASE}/conversations?externalId={quote(external_id, safe='')}", _Found)
        return found.items[0].id if found.items else None

    def create(self, new: NewConversation) -> None:
        """See Target."""
        body: dict[str, object] = {
            "id": new.id,
            "externalId": new.external_id,
            "customer": {"externalId": new.customer.external_id},
            "timestamp": instants.render(new.client_at),
        }
        if new.agent is not None:
            body["agent"] = {"externalId": new.agent.external_id}
        self.call("POST", f"{_BASE}/conversations", _Made, body)

    def recorded(self, conversation_id: str) -> Iterator[NewMessage]:
        """See Target."""
        path = f"{_BASE}/conversations/{quote(conversation_id, safe='')}/messages?limit={MAX_PAGE_MESSAGES}"
        after = ""
        while True:
            page = self.call("GET", path + after, _Page)
            for found in page.items:
                sender = found.sender
                yield NewMessage(found.text, sender.role, sender.external_id, instants.parse(found.client_timestamp))
            if page.next_cursor is None:
                return
            after = f"&after={quote(page.next_cursor, safe='')}"

    def record(self, conversation_id: str, messages: Sequence[NewMessage], idempotency_key: str) -> None:
        """See Target."""
        items = [_New(m.text, _Sender(m.role, m.sender), instants.render(m.client_at)) for m in messages]
        path = f"{_BASE}/conversations/{quote(conversation_id, safe='')}/messages/batch"
        self.call("POST", path, Any, {"messages": items}, key=idempotency_key)


def _reason(error: BaseException) -> str:
    """The system's own words, where it had any."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error)


def _message(response: urllib3.BaseHTTPResponse) -> str:
    try:
        return msgspec.json.decode(response.data, type=_Envelope).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "without saying why"


def _seconds(text: str | None) -> float:
    return float(text) if text is not None and text.isascii() and text.isdecimal() else 0.0
