"""One request on its way through: its head, its credentials, its body as it arrives, within the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnlog.errors import BodyTooLargeError, OverloadedError, UnsupportedMediaTypeError
from turnlog.http.parameters import Query, idempotency_key, query

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from turnlog.http.responses import Header
    from turnlog.keyring import Held
    from turnlog.model import ApiKey


_SHORT = 128
"""Bytes of a query that is worth remembering: a page size, not a cursor."""
MAX_WAITING_BYTES = 64 * 1024
"""What has come of a body and is not taken yet, before the connection is not read any more."""
NO_OPERATION = "none"
"""The operation, in metrics and logs, of a request that met none."""


def _nothing() -> None:
    pass


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
    """What an operation sees; the connection that it came on feeds its body and says when the client is gone.

    ``on_body_wanted`` gives the future that the connection is to fulfil when more of the body has come. ``key`` is set
    once the credentials are checked, before any handler runs.
    """

    __slots__ = (
        "_arrived",
        "_arrived_bytes",
        "_budgeted_bytes",
        "_on_body_wanted",
        "_single",
        "_wanted",
        "abort",
        "answered",
        "answering",
        "arrived_at",
        "begun",
        "budget",
        "complete",
        "fields",
        "gone",
        "headers",
        "held",
        "id",
        "keep_alive",
        "max_body_bytes",
        "method",
        "on_end",
        "operation",
        "path",
        "query_string",
        "quiet",
        "raw_path",
        "source",
        "stopping",
        "version",
    )

    def __init__(
        self,
        method: bytes,
        target: bytes,
        version: str,
        headers: list[Header],
        *,
        keep_alive: bool,
        on_body_wanted: Callable[[], asyncio.Future[None]],
    ) -> None:
        self.method = method
        self.raw_path, _, self.query_string = target.partition(b"?")
        self.version = version
        self.headers = headers
        self.fields: dict[bytes, bytes] = dict(headers)
        self._single = len(self.fields) == len(headers)
        self.keep_alive = keep_alive and version != "1.0"
        self._on_body_wanted = on_body_wanted
        self._arrived: list[bytes] = []
        self._arrived_bytes = self._budgeted_bytes = 0
        self._wanted: asyncio.Future[None] | None = None
        self.complete = False
        self.gone = self.stopping = False
        self.abort: Callable[[], None] = _nothing
        """Cuts the connection, for an answer whose reader must not go on."""
        self.on_end: Callable[[], None] | None = None
        """Called, for an answer that waits for something to happen, when it should end."""
        self.answering = self.begun = self.answered = False
        self.source: Callable[[], str]
        """The address of its connection's peer."""
        self.quiet = False
        """Whether it is left out of the log: one of very many alike."""
        self.operation = NO_OPERATION
        self.held: Held | None = None
        self.max_body_bytes = 0
        # The application's, given when the answer is begun.
        self.id: str
        self.arrived_at: float
        self.budget: Budget
        self.path: dict[str, str]

    # What the connection says.

    def feed(self, part: bytes) -> None:
        """A part of the body came."""
        self._arrived.append(part)
        self._arrived_bytes += len(part)
        self._wake()

    @property
    def is_full(self) -> bool:
        """Whether more of the body has come than should wait for a request that does not take it yet."""
        return self._arrived_bytes > MAX_WAITING_BYTES

    def end(self) -> None:
        """The body is complete."""
        self.complete = True
        self._wake()

    def drop(self) -> None:
        """Keep nothing of the body any more."""
        self._arrived.clear()
        self._arrived_bytes = 0

    def free(self) -> None:
        """Its body is used up: others may have its room."""
        if self._budgeted_bytes:
            self.budget.give_back(self._budgeted_bytes)
            self._budgeted_bytes = 0

    def lose(self) -> None:
        """The client is gone, or is not to be answered any more."""
        self.gone = True
        self._wake()
        if self.on_end is not None:
            self.on_end()

    def stop(self) -> None:
        """The server stops: an answer that could go on for ever should end."""
        self.stopping = True
        if self.on_end is not None:
            self.on_end()

    def _wake(self) -> None:
        if self._wanted is not None and not self._wanted.done():
            self._wanted.set_result(None)

    # What an operation asks.

    @property
    def ends(self) -> bool:
        """Whether an answer that could go on for ever should end."""
        return self.gone or self.stopping

    @property
    def key(self) -> ApiKey:
        """The key that the request came with."""
        assert self.held is not None  # noqa: S101 - App.answer admits before it calls a handler that needs a key
        return self.held.key

    def sent_twice(self, name: bytes) -> bool:
        """Whether a header was sent more than once."""
        # A dict keeps the last of two equal names: only where something was dropped is it worth counting.
        return not self._single and sum(1 for one, _ in self.headers if one == name) > 1

    def credentials(self) -> tuple[str, bytes] | None:
        """The id and the secret; ``None`` where one is missing or was sent more than once."""
        key_id, secret = self.fields.get(b"asapp-api-id"), self.fields.get(b"asapp-api-secret")
        if key_id is None or secret is None or self.sent_twice(b"asapp-api-id") or self.sent_twice(b"asapp-api-secret"):
            return None
        return key_id.decode("latin-1"), secret

    def query(self) -> Query:
        """The query's parameters. Raises MalformedParameterError."""
        return query(self.query_string) if len(self.query_string) <= _SHORT else Query(self.query_string)

    def idempotency_key(self) -> str | None:
        """The value of ``Idempotency-Key``. Raises MalformedParameterError."""
        if b"idempotency-key" not in self.fields:
            return None
        return idempotency_key([v.decode("latin-1") for k, v in self.headers if k == b"idempotency-key"])

    def check_length(self) -> None:
        """Refuse a body that says it is too long before any of it is read. Raises BodyTooLargeError."""
        length = self.fields.get(b"content-length")
        if length is not None and int(length) > self.max_body_bytes:
            raise self._too_large()

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(f"the body is over the limit of {self.max_body_bytes} bytes")

    async def body(self) -> bytes:
        """The whole body, as JSON is to be sent.

        Raises UnsupportedMediaTypeError, BodyTooLargeError, OverloadedError where all bodies under way take too much,
        ClientGoneError.
        """
        body = self._take() if self.complete else await self._gather()
        if len(body) > self.max_body_bytes:
            raise self._too_large()
        self._check_media_type(body)
        return body

    def _take(self) -> bytes:
        taken = b"".join(self._arrived)
        self.drop()
        return taken

    async def _gather(self) -> bytes:
        """Take the parts as they come, so that a body over a limit is refused before all of it is here."""
        body = bytearray()
        while True:
            body += self._take()
            if len(body) > self.max_body_bytes:
                raise self._too_large()
            if self.gone:
                raise ClientGoneError
            if self.complete:
                return bytes(body)
            self.budget.take(len(body) - self._budgeted_bytes)
            self._budgeted_bytes = len(body)
            self._wanted = self._on_body_wanted()
            await self._wanted

    def _check_media_type(self, body: bytes) -> None:
        content_type = self.fields.get(b"content-type", b"")
        if content_type == b"application/json" and self._single and b"content-encoding" not in self.fields:
            return
        if not body and b"content-type" not in self.fields:
            return  # it is as empty as it says
        for name in (b"content-type", b"content-encoding"):
            if self.sent_twice(name):
                raise UnsupportedMediaTypeError(f"[Header '{name.decode()}'] sent more than once")
        if content_type != b"application/json":
            media_type, _, parameters = content_type.lower().partition(b";")
            charset = parameters.replace(b" ", b"").replace(b'"', b"")
            if media_type.strip() != b"application/json" or charset not in (b"", b"charset=utf-8"):
                raise UnsupportedMediaTypeError("[Header 'Content-Type'] expected application/json")
        if self.fields.get(b"content-encoding", b"identity").lower() != b"identity":
            raise UnsupportedMediaTypeError("[Header 'Content-Encoding'] expected a body that is not encoded")
