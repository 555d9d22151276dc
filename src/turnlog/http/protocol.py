"""HTTP/1.1 on a connection: httptools parses, the application answers; limits and refusals are kept here.

The hot path goes from ``data_received`` through ``on_message_complete`` and ``exchanges.py`` to one ``write``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import httptools
import structlog

from turnlog.errors import (
    Error,
    InternalError,
    MalformedParameterError,
    OverloadedError,
    RequestTimeoutError,
)
from turnlog.http.exchanges import MAX_BEGUN_IN_A_TURN, UNPARSED, Exchanges
from turnlog.http.heads import check_head, headers_too_large, malformed, no_such_method, target_too_long
from turnlog.http.requests import Request

if TYPE_CHECKING:
    import asyncio

    from turnlog.http.app import App
    from turnlog.http.responses import Header
    from turnlog.http.traffic import Traffic

_log = structlog.get_logger()

MIN_BODY_BYTES_PER_S = 1024
"""A body that arrives faster than this is given the time that it needs."""
MAX_FRAMING_BYTES = 1024 * 1024
"""What a chunked body may take beside its bytes: sizes of chunks, and trailers, which the parser keeps until whole."""
MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""What is still taken of a body that was refused, so that its sender gets to read the answer."""


class Protocol(Exchanges):
    """One connection that speaks HTTP/1.1."""

    def __init__(self, app: App, traffic: Traffic, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(app, traffic, loop)
        self._parser = httptools.HttpRequestParser(self)
        # What follows the last request of a connection is refused where it is looked at, not by the parser.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._url = b""
        self._headers: list[Header] = []
        self._in_head = True
        self._new_head = False
        self._head_bytes = self._before_head_bytes = 0
        self._piece_bytes = 0
        self._body_complete = True
        self._unread_bytes = 0
        self._wire_bytes = 0
        self._body_bytes = 0
        self._first_line = b""
        self._unparsed_body_bytes = 0
        self._newest: Request | None = None

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # a stream's
        """Take a connection, or turn it away where there are too many."""
        super().connection_made(transport)
        connections = self._traffic.connections
        connections.add(self)
        if len(connections) > self.limits.max_connections:
            self.refuse(OverloadedError("too many connections", retry_after_s=1))
            return
        if self._traffic.stopping:
            self.shutdown()
        else:
            self.expect_more(self.limits.header_timeout_s)

    def _peer(self) -> str:
        """The address of who is connected."""
        return str((self.transport.get_extra_info("peername") or ("",))[0])

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; whoever answers it hears of it."""
        super().connection_lost(exc)
        self._traffic.connections.discard(self)
        for request in self._due:
            request.lose()
        self._due.clear()
        self._newest = self._continued = None
        # The parser knows this connection: a cycle that would wait for the collector.
        self._parser = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the connection is only waiting for its last answer to be read."""
        if self._refused or self.transport.is_closing():
            return
        if self._in_head:
            self._head_bytes += len(data)
            self._first_line = data
        elif self._newest is not None and self._newest.answered:
            self._unread_bytes += len(data)
            if self._unread_bytes > MAX_UNREAD_BYTES:
                self.transport.abort()
                return
        self.arriving(len(data))
        self._piece_bytes = len(data)
        self._new_head = False
        if self._begun_in_turn <= MAX_BEGUN_IN_A_TURN:  # else the next turn is the next, whatever comes before it
            self._begun_in_turn = 0
        self._feed(data)
        if self._in_head:
            # The parser reports a head when it is whole: one that never ends is counted here.
            came_bytes = self._head_bytes - self._before_head_bytes
            if len(self._url) > self.limits.max_target_bytes:
                self.refuse(target_too_long(self.limits))
            elif came_bytes > self.limits.max_target_bytes + self.limits.max_header_bytes:
                self.refuse(headers_too_large(self.limits))
            elif self._head_bytes and not self._refused:
                self.expect_more(self.limits.header_timeout_s)
        elif not self._body_complete:
            if not self._new_head:  # else this piece has heads and other bodies in it, too
                self._bound_framing(len(data))
            self.expect_more(self.limits.body_timeout_s)
            self._go_on()
        self._pace()

    def _bound_framing(self, count: int) -> None:
        """What is no body (sizes of chunks, trailers) is bounded, and trailers are dropped."""
        self._headers = []
        self._wire_bytes += count
        if self._wire_bytes - self._body_bytes > MAX_FRAMING_BYTES:
            self.refuse(MalformedParameterError(f"over {MAX_FRAMING_BYTES} bytes of chunk sizes and trailers"))

    def _feed(self, data: bytes) -> None:
        if self._unparsed_body_bytes:
            self._take_unparsed_body(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError:
            self.refuse(no_such_method(self._first_line))
        except httptools.HttpParserUpgrade as upgrade:
            # The parser stops at the head of a request that offers an upgrade; declined, its body is still a body.
            self._take_unparsed_body(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:  # something of ours was raised in one of the events below
            if self._refusal is None:
                _log.exception("internal_error", operation=UNPARSED, exc_info=error)
            self.refuse(self._refusal or InternalError("internal error: the log has it"))
        except httptools.HttpParserError:
            self.refuse(malformed())

    def _take_unparsed_body(self, data: bytes) -> None:
        body = data[: self._unparsed_body_bytes]
        if body:
            self._unparsed_body_bytes -= len(body)
            self.on_body(body)
            if not self._unparsed_body_bytes:
                self.on_message_complete()

    def eof_received(self) -> bool:
        """The peer sends no more: what is due to it is still answered. True keeps our side open for that."""
        if self._due and not self._due[-1].complete:
            self._due.pop().lose()  # it will never be whole; those before it are
        if not self._due:
            return False
        self._due[-1].keep_alive = False
        return True

    def is_idle(self) -> bool:
        """See Connection."""
        return not self._due and self._body_complete and not self._head_bytes

    def late(self, waited_s: float, arrived_bytes: int) -> None:
        """A head has its time; a body has longer as long as it keeps coming, unless it was refused already."""
        answered = self._newest is not None and self._newest.answered
        if self._reading_paused:
            self.expect_more(waited_s)  # what is missing may have come: it is we who do not take it
        elif not self._in_head and not answered and arrived_bytes >= MIN_BODY_BYTES_PER_S * waited_s:
            self.expect_more(self.limits.body_timeout_s)
        elif self._in_head and not self._head_bytes:
            self.transport.close()
        else:
            what = "head" if self._in_head else "body"
            self.refuse(RequestTimeoutError(f"the request's {what} did not arrive in time"))

    def shutdown(self) -> None:
        """The server stops: what is due is still answered."""
        if self._due:
            self._due[-1].keep_alive = False
            for request in self._due:
                request.stop()
        else:
            self.close()

    # The parser's events.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers = []
        self._in_head = True
        if not self._head_bytes:  # it begins within a piece, behind the end of another: at most all of that is its own
            self._head_bytes = self._before_head_bytes = self._piece_bytes

    def on_url(self, url: bytes) -> None:
        """A part of the target came."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header came, or a trailer."""
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """The head is complete: check what the parser lets through."""
        parser = self._parser
        request = Request(
            parser.get_method(),
            self._url,
            parser.get_http_version(),
            self._headers,
            keep_alive=parser.should_keep_alive(),
            on_body_wanted=self._on_body_wanted,
        )
        request.source = self._peer
        try:
            check_head(request, len(self._url), self._head_bytes, self.limits)
        except Error as error:
            self._reject(error)
        if self._parser.should_upgrade():
            self._decline_upgrade(request)
        self._in_head = False
        self._new_head = True
        self._head_bytes = self._before_head_bytes = 0
        self._first_line = b""
        self._unread_bytes = self._wire_bytes = self._body_bytes = 0
        self._body_complete = False
        self.arrived()
        if self._due and not self._due[-1].keep_alive:
            request.answered = True  # behind the last answer of a connection nothing is carried out
        else:
            self._due.append(request)
        self._newest = request
        self._headers = []  # what may still come are trailers: they are nobody's headers

    def on_body(self, body: bytes) -> None:
        """A part of the body came."""
        self._body_bytes += len(body)
        if self._newest is not None and not self._newest.answered:
            self._newest.feed(body)

    def on_message_complete(self) -> None:
        """The body is complete."""
        if self._unparsed_body_bytes:
            return
        self._body_complete = True
        self._in_head = True
        self._head_bytes = 0
        self.arrived()
        if self._newest is not None:
            self._newest.end()
        self._go_on()
        if not self._due and not self._refused:
            self.idle()

    def _decline_upgrade(self, request: Request) -> None:
        """Take the body's length into our own hands: the parser goes no further than this head.

        Whatever follows is another protocol's; it must not be read as the next request.
        """
        if b"transfer-encoding" in request.fields:
            self._reject(MalformedParameterError("[Header 'Upgrade'] not offered here, and not with a chunked body"))
        self._unparsed_body_bytes = int(request.fields.get(b"content-length", b"0"))
        request.keep_alive = False

    def _reject(self, error: Error) -> None:
        """Stop the parser from inside one of its events; ``_feed`` then answers with ``error``."""
        self._refusal = error
        raise httptools.HttpParserError(error.message)

    # Refusals below the application.

    def refuse(self, error: Error) -> None:
        """Answer with ``error`` behind the answers that are still due, then close."""
        if self._refused:
            return
        self._refused = True
        self._refusal = error
        self.arrived()
        last = self._due[-1] if self._due else None
        if last is not None and last.complete and not last.keep_alive:
            self._refusal = None  # behind the last answer of a connection nothing is answered, and it is not cut
        elif self._body_complete:
            if not self._due:
                self._send_refusal()
            # else what is refused comes behind a whole request: its answer comes first
        elif len(self._due) > 1:
            self._due.pop().lose()  # the newest waits there and will never be whole; those before it are answered
        elif not self._due or self._due[0].begun:
            self.close()  # it has its answer and goes on sending
        else:
            self._due.pop().lose()  # the application must not answer any more
            self._send_refusal()
