"""HTTP/1.1 below the application: uvicorn's httptools protocol, with the limits, deadlines and envelope it lacks.

uvicorn bounds neither the head of a request nor the time that a client may take over it, and answers what it cannot
parse with plain text. Everything added here costs nothing on the way of an ordinary request, whose head and body
arrive together: timers start only where something is missing.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from turnlog.errors import (
    Error,
    HeadersTooLargeError,
    MalformedParameterError,
    MethodNotAllowedError,
    OverloadedError,
    RequestTimeoutError,
    TargetTooLongError,
)
from turnlog.http.cycle import EXTENSIONS, Cycle
from turnlog.http.responses import error_response, rendered

if TYPE_CHECKING:
    from collections.abc import Callable

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from turnlog.config import Config
    from turnlog.metrics import Metrics

_log = structlog.get_logger()

MIN_BODY_BYTES_PER_S = 1024
"""A body that arrives faster than this is given the time that it needs."""
MAX_FRAMING_BYTES = 1024 * 1024
"""What a chunked body may take beside its bytes: sizes of chunks, and trailers, which the parser keeps until whole."""
MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""What is still taken of a body that was refused, so that its sender gets to read the answer."""
LINGER_S = 2.0
"""How long a refused connection is kept for its peer to read the answer."""
_METHODS = "GET, HEAD, OPTIONS, POST"
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ /[^ ]* HTTP/1\.[01]\r\n")
UNPARSED = "unparsed"
"""The operation, in metrics and logs, of what never became a request."""


def _malformed() -> Error:
    return MalformedParameterError("not a well-formed HTTP/1.1 request")


class Protocol(HttpToolsProtocol):
    """One connection. ``limits``, ``new_id`` and ``metrics`` are set by ``protocol_class``."""

    limits: Config
    new_id: Callable[[], str]
    metrics: Metrics

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.url = b""
        self._in_head = True
        self._new_head = False
        self._head_bytes = 0
        self._body_complete = True
        self._unread_bytes = 0
        self._wire_bytes = 0
        self._body_bytes = 0
        self._refusal: Error | None = None
        self._refused = False
        self._arrival: asyncio.TimerHandle | None = None
        self._arrival_bytes = 0
        self._slow_reader: asyncio.TimerHandle | None = None
        self._unsent_bytes = 0
        self._linger: asyncio.TimerHandle | None = None
        self._first_line = b""
        self._unparsed_body_bytes = 0

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, or turn it away where there are too many."""
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(OverloadedError("too many connections", retry_after_s=1))
            return
        self._expect_more(self.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and its timers."""
        self._arrived()
        for timer in (self._slow_reader, self._linger):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the connection is only waiting for its last answer to be read."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        if self._in_head:
            self._head_bytes += len(data)
            self._first_line = data
        elif self.cycle.response_complete:
            self._unread_bytes += len(data)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.transport.abort()
                return
        self._arrival_bytes += len(data)
        self._new_head = False
        self._feed(data)
        if self._in_head:
            # The parser reports a head when it is whole: one that never ends is counted here.
            if len(self.url) > self.limits.max_target_bytes:
                self._refuse(self._target_too_long())
            elif self._head_bytes > self.limits.max_target_bytes + self.limits.max_header_bytes:
                self._refuse(self._headers_too_large())
            elif self._head_bytes and not self._refused:
                self._expect_more(self.limits.header_timeout_s)
        elif not self._body_complete:
            if not self._new_head:  # else this piece has heads and other bodies in it, too
                self._bound_framing(len(data))
            self._expect_more(self.limits.body_timeout_s)

    def _bound_framing(self, count: int) -> None:
        """What is no body (sizes of chunks, trailers) is bounded, and trailers are dropped."""
        self.headers = []
        self._wire_bytes += count
        if self._wire_bytes - self._body_bytes > MAX_FRAMING_BYTES:
            self._refuse(MalformedParameterError(f"over {MAX_FRAMING_BYTES} bytes of chunk sizes and trailers"))

    def on_body(self, body: bytes) -> None:
        """A part of the body came."""
        self._body_bytes += len(body)
        super().on_body(body)

    def _feed(self, data: bytes) -> None:
        if self._unparsed_body_bytes:
            self._take_unparsed_body(data)
            return
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError:
            if _REQUEST_LINE.match(self._first_line):
                self._refuse(MethodNotAllowedError(f"this server knows no such method: it offers {_METHODS}", _METHODS))
            else:
                self._refuse(_malformed())
        except httptools.HttpParserUpgrade as upgrade:
            # The parser stops at the head of a request that offers an upgrade; declined, its body is still a body.
            self._take_unparsed_body(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal or _malformed())

    def _take_unparsed_body(self, data: bytes) -> None:
        body = data[: self._unparsed_body_bytes]
        if body:
            self._unparsed_body_bytes -= len(body)
            self.on_body(body)
            if not self._unparsed_body_bytes:
                self.on_message_complete()

    def eof_received(self) -> bool:  # type: ignore[override] # uvicorn gives None, asyncio takes either
        """The peer sends no more: what is due to it is still answered. True keeps our side open for that."""
        if not self._is_busy() or not self._body_complete:
            return False
        self.cycle.keep_alive = False
        return True

    # The parser's events.

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = max(1, self._head_bytes)

    def on_headers_complete(self) -> None:
        """The head is complete: check what the parser lets through, then hand the request to the application."""
        self._check_head()
        upgrade = self.parser.should_upgrade()
        if upgrade:
            self._decline_upgrade()
        self._in_head = False
        self._new_head = True
        self._head_bytes = 0
        self._first_line = b""
        self._unread_bytes = self._wire_bytes = self._body_bytes = 0
        self._body_complete = False
        self._arrived()
        # Whatever follows an upgrade is another protocol's; it must not be read as the next request.
        self._begin(keep_alive=not upgrade and self.parser.should_keep_alive())
        self.headers = []  # what may still come are trailers: they are nobody's headers

    def _begin(self, *, keep_alive: bool) -> None:
        """Hand the request to the application, or queue it behind the one under way."""
        scope, version = self.scope, self.parser.get_http_version()
        scope["method"] = self.parser.get_method().decode("ascii")
        scope["http_version"] = version
        raw_path, _, query = self.url.partition(b"?")
        scope["raw_path"] = raw_path
        path = raw_path.decode("latin-1")
        scope["path"] = unquote(path) if "%" in path else path
        scope["query_string"] = query
        scope["extensions"] = EXTENSIONS  # type: ignore[typeddict-item] # ours is not among those of the specification
        busy = self._is_busy()
        self.cycle = Cycle(
            scope=scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=keep_alive and version != "1.0",
            on_response=self.on_response_complete,
        )
        if busy:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            self._start_asgi_task(self.cycle, self.app)

    def _is_busy(self) -> bool:
        """Whether an answer is due."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request, whatever uvicorn's types say
        return cycle is not None and not cycle.response_complete

    def _decline_upgrade(self) -> None:
        """Take the body's length into our own hands: the parser goes no further than this head."""
        headers = dict(self.headers)
        if b"transfer-encoding" in headers:
            self._reject(MalformedParameterError("[Header 'Upgrade'] not offered here, and not with a chunked body"))
        self._unparsed_body_bytes = int(headers.get(b"content-length", b"0"))

    def on_message_complete(self) -> None:
        """The body is complete."""
        if self._unparsed_body_bytes:
            return
        self._body_complete = True
        self._in_head = True
        self._head_bytes = 0
        self._arrived()
        super().on_message_complete()

    def _check_head(self) -> None:
        headers, limits = self.headers, self.limits
        if len(self.url) > limits.max_target_bytes:
            self._reject(self._target_too_long())
        if len(headers) > limits.max_headers or (
            # What came in one piece with its body is counted whole first, because that is a single number.
            self._head_bytes > limits.max_header_bytes
            and sum(len(name) + len(value) for name, value in headers) > limits.max_header_bytes
        ):
            self._reject(self._headers_too_large())
        if not self.url.startswith(b"/"):
            self._reject(MalformedParameterError("the request target must be a path: /…"))
        names = [name for name, _ in headers]
        hosts = names.count(b"host")
        if b"transfer-encoding" in names:
            codings = b",".join(value.lower() for name, value in headers if name == b"transfer-encoding")
            if codings.strip() != b"chunked" or self.parser.get_http_version() != "1.1":
                self._reject(MalformedParameterError("[Header 'Transfer-Encoding'] expected chunked, in HTTP/1.1"))
        if hosts != 1 and (hosts or self.parser.get_http_version() != "1.0"):
            self._reject(MalformedParameterError(f"[Header 'Host'] sent {hosts} times: expected once"))

    def _target_too_long(self) -> TargetTooLongError:
        return TargetTooLongError(f"the target is over the limit of {self.limits.max_target_bytes} bytes")

    def _headers_too_large(self) -> HeadersTooLargeError:
        return HeadersTooLargeError(
            f"the headers are over the limit of {self.limits.max_headers} and {self.limits.max_header_bytes} bytes"
        )

    def _reject(self, error: Error) -> None:
        """Stop the parser from inside one of its events; ``_feed`` then answers with ``error``."""
        self._refusal = error
        raise httptools.HttpParserError(error.message)

    # Refusals below the application.

    def _refuse(self, error: Error) -> None:
        """Answer with ``error`` behind the answers that are still due, then close."""
        if self._refused:
            return
        self._refused = True
        self._refusal = error
        self._arrived()
        cycle = self.cycle
        if not self._is_busy() and self._body_complete:
            self._send_refusal()
        elif self._body_complete:
            pass  # what is refused comes behind a whole request: on_response_complete goes on
        elif self.pipeline:
            self.pipeline.popleft()  # the newest waits there and will never be whole; those before it are answered
        elif cycle.response_started:
            self.transport.close()  # it has its answer and goes on sending
        else:
            cycle.disconnected = True  # the application must not answer any more
            cycle.message_event.set()
            self._send_refusal()

    def _send_refusal(self) -> None:
        error = self._refusal
        if error is None or self.transport.is_closing():
            return
        request_id = self.new_id()
        response = error_response(error, request_id)
        head = rendered((*self.server_state.default_headers, *response.head(request_id), (b"connection", b"close")))
        self.transport.write(STATUS_LINE[response.status] + head + b"\r\n" + response.body)
        self._close_gently()
        self.metrics.request(UNPARSED, response.status, 0.0)
        if self.limits.log_requests != "none":
            _log.info(
                "request",
                request_id=request_id,
                operation=UNPARSED,
                status=response.status,
                why=error.message,
            )

    def _close_gently(self) -> None:
        """Close our side and let the peer finish: closed with bytes unread, the kernel's reset would eat the answer."""
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self._linger = self.loop.call_later(LINGER_S, self.transport.abort)

    def on_response_complete(self) -> None:
        """An answer has left: go on with the next request, or with the refusal that waits behind it."""
        if self._refused and not self.pipeline:
            self._send_refusal()
            return
        super().on_response_complete()
        if self._in_head and self._head_bytes:
            self._unset_keepalive_if_required()  # the next request has begun, and its own deadline runs

    # Deadlines.

    def _expect_more(self, timeout_s: float) -> None:
        if self._arrival is None:
            self._arrival_bytes = 0
            self._arrival = self.loop.call_later(timeout_s, self._late, timeout_s)

    def _arrived(self) -> None:
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def _late(self, waited_s: float) -> None:
        """A head has its time; a body has longer as long as it keeps coming."""
        self._arrival = None
        if not self._in_head and self._arrival_bytes >= MIN_BODY_BYTES_PER_S * waited_s:
            self._expect_more(self.limits.body_timeout_s)
        elif self._in_head and not self._head_bytes:
            self.transport.close()
        else:
            what = "head" if self._in_head else "body"
            self._refuse(RequestTimeoutError(f"the request's {what} did not arrive in time"))

    def pause_writing(self) -> None:
        """The peer does not take what it is sent: it has ``write_timeout_s`` to go on."""
        super().pause_writing()
        if self._slow_reader is None:
            self._unsent_bytes = self.transport.get_write_buffer_size()
            self._slow_reader = self.loop.call_later(self.limits.write_timeout_s, self._check_reader)

    def _check_reader(self) -> None:
        """A peer that takes something, however slowly, is waited for; one that takes nothing is not."""
        unsent = self.transport.get_write_buffer_size()
        if unsent >= self._unsent_bytes:
            self.transport.abort()
            return
        self._unsent_bytes = unsent
        self._slow_reader = self.loop.call_later(self.limits.write_timeout_s, self._check_reader)

    def resume_writing(self) -> None:
        """The peer goes on reading."""
        super().resume_writing()
        if self._slow_reader is not None:
            self._slow_reader.cancel()
            self._slow_reader = None


def protocol_class(limits: Config, new_id: Callable[[], str], metrics: Metrics) -> type[Protocol]:
    """Uvicorn makes one instance per connection and passes nothing of ours: so a class with what it needs."""
    return type("BoundProtocol", (Protocol,), {"limits": limits, "new_id": staticmethod(new_id), "metrics": metrics})
