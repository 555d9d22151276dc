"""One request on its way through: its headers, its credentials, its body within the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnlog.errors import BodyTooLargeError, OverloadedError, UnsupportedMediaTypeError
from turnlog.http.parameters import Query, idempotency_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from turnlog.keyring import Held
    from turnlog.model import ApiKey

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]


NO_OPERATION = "none"
"""The operation, in metrics and logs, of a request that met none."""


class ClientGoneError(Exception):
    """The client closed the connection before its request was complete: there is nobody to answer."""


class Budget:
    """What all bodies under way may take up together: many large ones at once must not take all the memory."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, count: int) -> None:
        """Raises OverloadedError where ``count`` bytes more are too many."""
        if count > self._left:
            raise OverloadedError("the server is overloaded: too many large bodies at once", retry_after_s=1)
        self._left -= count

    def give_back(self, count: int) -> None:
        """``count`` bytes are no longer taken."""
        self._left += count


class Request:
    """What an operation sees. ``key`` is set once the credentials are checked, before any handler runs."""

    __slots__ = (
        "_budget",
        "_receive",
        "complete",
        "headers",
        "held",
        "id",
        "max_body_bytes",
        "operation",
        "path",
        "scope",
    )

    def __init__(self, scope: Scope, receive: Receive, request_id: str, budget: Budget) -> None:
        self.scope = scope
        self.id = request_id
        self.operation = NO_OPERATION
        self.path: dict[str, str] = {}
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.held: Held | None = None
        self.max_body_bytes = 0
        self._receive = receive
        self._budget = budget
        self.complete = False

    @property
    def key(self) -> ApiKey:
        """The key that the request came with."""
        assert self.held is not None  # noqa: S101 - App.answer admits before it calls a handler that needs a key
        return self.held.key

    def count(self, name: bytes) -> int:
        """How often a header was sent."""
        return sum(1 for key, _ in self.scope["headers"] if key == name)

    def credentials(self) -> tuple[str, bytes] | None:
        """The id and the secret; ``None`` where one is missing or was sent more than once."""
        headers = self.headers
        key_id, secret = headers.get(b"asapp-api-id"), headers.get(b"asapp-api-secret")
        if key_id is None or secret is None:
            return None
        # A dict keeps the last of two equal names: only where something was dropped is it worth counting.
        if len(headers) != len(self.scope["headers"]) and (
            self.count(b"asapp-api-id") > 1 or self.count(b"asapp-api-secret") > 1
        ):
            return None
        return key_id.decode("latin-1"), secret

    def query(self) -> Query:
        """The query's parameters. Raises MalformedParameterError."""
        return Query(self.scope["query_string"])

    def idempotency_key(self) -> str | None:
        """The value of ``Idempotency-Key``. Raises MalformedParameterError."""
        if b"idempotency-key" not in self.headers:
            return None
        return idempotency_key([v.decode("latin-1") for k, v in self.scope["headers"] if k == b"idempotency-key"])

    def check_length(self) -> None:
        """Refuse a body that says it is too long before any of it is read. Raises BodyTooLargeError."""
        length = self.headers.get(b"content-length")
        if length is not None and int(length) > self.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body is over the limit of {self.max_body_bytes} bytes")

    async def body(self) -> bytes:
        """The whole body, as JSON is to be sent. Raises UnsupportedMediaTypeError, BodyTooLargeError."""
        event = await self._receive()
        if event["type"] == "http.disconnect":
            raise ClientGoneError
        body: bytes = event["body"]
        if event["more_body"]:
            body = await self._rest(body)
        if len(body) > self.max_body_bytes:
            raise self._too_large()
        self.complete = True
        if body or b"content-type" in self.headers:
            self._check_media_type()
        return body

    async def _rest(self, start: bytes) -> bytes:
        body, more, taken = bytearray(start), True, 0
        try:
            while more:
                if len(body) > self.max_body_bytes:
                    raise self._too_large()
                self._budget.take(len(body) - taken)
                taken = len(body)
                event = await self._receive()
                if event["type"] == "http.disconnect":
                    raise ClientGoneError
                body += event["body"]
                more = event["more_body"]
        finally:
            self._budget.give_back(taken)
        return bytes(body)

    async def gone(self) -> None:
        """Return when the client has closed the connection."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def _check_media_type(self) -> None:
        for name in (b"content-type", b"content-encoding"):
            if len(self.headers) != len(self.scope["headers"]) and self.count(name) > 1:
                raise UnsupportedMediaTypeError(f"[Header '{name.decode()}'] sent more than once")
        content_type = self.headers.get(b"content-type", b"")
        if content_type != b"application/json":
            media_type, _, parameters = content_type.lower().partition(b";")
            charset = parameters.replace(b" ", b"").replace(b'"', b"")
            if media_type.strip() != b"application/json" or charset not in (b"", b"charset=utf-8"):
                raise UnsupportedMediaTypeError("[Header 'Content-Type'] expected application/json")
        if self.headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMediaTypeError("[Header 'Content-Encoding'] expected a body that is not encoded")
