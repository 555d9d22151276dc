"""Importing through a running server, over HTTP."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
import urllib3

from turnlog import instants
from turnlog.errors import SettingError
from turnlog.model import DEFAULT_PERMISSIONS, MAX_PAGE_MESSAGES, NewMessage, Role
from turnlog.targets.protocol import Patience, RefusedError
from turnlog.targets.remote import credentials, key_refused, reason, redirected, said, seconds

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnlog.model import NewConversation
    from turnlog.targets.protocol import Target

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


@contextlib.contextmanager
def http_target(url: str, api_id: str, api_secret: str) -> Iterator[Target]:
    """The conversations that the key opens on the server at ``url``.

    Raises SettingError where the server cannot be reached or refuses the key.
    """
    with urllib3.PoolManager(
        num_pools=1,
        maxsize=_HttpTarget.workers,
        block=True,
        timeout=urllib3.Timeout(connect=5, read=30),
        headers=credentials(url, api_id, api_secret) | {"content-type": "application/json"},
    ) as pool:
        target = _HttpTarget(url.rstrip("/"), pool)
        # At once: there is nothing yet to be patient for.
        try:
            target.call("GET", "/v1/health", Any, patient=False)
        except RefusedError as error:
            raise SettingError(f"no Conversations API at {url}: {error}") from None
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
                response = self._pool.request(
                    method, self._url + path, body=content, headers=headers, retries=False, redirect=False
                )
            except urllib3.exceptions.HTTPError as error:
                problem = f"cannot reach {self._url}: {reason(error)}"
                if not patient:
                    raise SettingError(problem) from None
            else:
                if response.status not in _UNSURE:
                    self.patience.succeeded()
                    return self._answer(response, answer)
                problem = f"{self._url} answers {response.status}: {said(response.data)}"
                retry_after_s = seconds(response.headers.get("retry-after"))
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
            raise RefusedError(said(response.data), status)
        if status == 401:
            raise key_refused(self._url)
        if status == 403:
            needed = ", ".join(DEFAULT_PERMISSIONS)
            raise SettingError(f"the key lacks a permission of these: {needed} ({said(response.data)})")
        if 300 <= status < 400:
            raise redirected(self._url, response.headers)
        raise SettingError(f"no Conversations API at {self._url}: it answers {status} ({said(response.data)})")

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
