"""HTTP/1.1 on a connection: httptools parses, the application answers; limits, order and refusals are kept here.

A request that has arrived whole is carried out in the same turn of the event loop (``steps.py``), so that its way to
the store and back costs no task, no event and no copy of its head: the hot path goes from ``data_received`` through
``on_message_complete`` and ``App.answer`` to one ``write``.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import httptools
import structlog

from turnlog.errors import (
    Error,
    MalformedParameterError,
    OverloadedError,
    RequestTimeoutError,
)
from turnlog.http.connection import Connection
from turnlog.http.heads import check_head, headers_too_large, malformed, no_such_method, target_too_long
from turnlog.http.requests import Request
from turnlog.http.responses import error_response, stream_head, whole_answer
from turnlog.http.steps import Steps

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from turnlog.http.app import App
    from turnlog.http.responses import Header, Response
    from turnlog.http.traffic import Traffic

_log = structlog.get_logger()

MIN_BODY_BYTES_PER_S = 1024
"""A body that arrives faster than this is given the time that it needs."""
MAX_FRAMING_BYTES = 1024 * 1024
"""What a chunked body may take beside its bytes: sizes of chunks, and trailers, which the parser keeps until whole."""
MAX_UNREAD_BYTES = 16 * 1024 * 1024
"""What is still taken of a body that was refused, so that its sender gets to read the answer."""
MAX_BEGUN_IN_A_TURN = 8
"""How many pipelined requests of one connection are begun before the others have their turn."""
UNPARSED = "unparsed"
"""The operation, in metrics and logs, of what never became a request."""


class Protocol(Connection):
    """One connection that speaks HTTP/1.1."""

    def __init__(self, app: App, traffic: Traffic, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(traffic.limits, loop)
        self._app = app
        self._traffic = traffic
        self._parser = httptools.HttpRequestParser(self)
        # What follows the last request of a connection is refused where it is looked at, not by the parser.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._url = b""
        self._headers: list[Header] = []
        self._in_head = True
        self._new_head = False
        self._head_bytes = 0
        self._body_complete = True
        self._unread_bytes = 0
        self._wire_bytes = 0
        self._body_bytes = 0
        self._first_line = b""
        self._unparsed_body_bytes = 0
        self._newest: Request | None = None
        self._due: deque[Request] = deque()
        """Requests without an answer, oldest first; only the first is ever under way."""
        self._begun_in_turn = 0
        self._going_on = False
        self._reading_paused = False
        self._continued: Request | None = None
        self._refusal: Error | None = None
        self._refused = False

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # a stream's
        """Take a connection, or turn it away where there are too many."""
        super().connection_made(transport)
        connections = self._traffic.connections
        connections.add(self)
        if len(connections) > self.limits.max_connections:
            self._refuse(OverloadedError("too many connections", retry_after_s=1))
            return
        self.expect_more(self.limits.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection; whoever answers it hears of it."""
        super().connection_lost(exc)
        self._traffic.connections.discard(self)
        for request in self._due:
            request.lose()
        self._due.clear()

    def data_received(self, data: bytes) -> None:
        """Parse what came, unless the connection is only waiting for its last answer to be read."""
        if self._refused:
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
        self._new_head = False
        self._begun_in_turn = 0
        self._feed(data)
        if self._in_head:
            # The parser reports a head when it is whole: one that never ends is counted here.
            if len(self._url) > self.limits.max_target_bytes:
                self._refuse(target_too_long(self.limits))
            elif self._head_bytes > self.limits.max_target_bytes + self.limits.max_header_bytes:
                self._refuse(headers_too_large(self.limits))
            elif self._head_bytes and not self._refused:
                self.expect_more(self.limits.header_timeout_s)
        elif not self._body_complete:
            if not self._new_head:  # else this piece has heads and other bodies in it, too
                self._bound_framing(len(data))
            self.expect_more(self.limits.body_timeout_s)
            self._go_on()

    def _bound_framing(self, count: int) -> None:
        """What is no body (sizes of chunks, trailers) is bounded, and trailers are dropped."""
        self._headers = []
        self._wire_bytes += count
        if self._wire_bytes - self._body_bytes > MAX_FRAMING_BYTES:
            self._refuse(MalformedParameterError(f"over {MAX_FRAMING_BYTES} bytes of chunk sizes and trailers"))

    def _feed(self, data: bytes) -> None:
        if self._unparsed_body_bytes:
            self._take_unparsed_body(data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserInvalidMethodError:
            self._refuse(no_such_method(self._first_line))
        except httptools.HttpParserUpgrade as upgrade:
            # The parser stops at the head of a request that offers an upgrade; declined, its body is still a body.
            self._take_unparsed_body(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal or malformed())

    def _take_unparsed_body(self, data: bytes) -> None:
        body = data[: self._unparsed_body_bytes]
        if body:
            self._unparsed_body_bytes -= len(body)
            self.on_body(body)
            if not self._unparsed_body_bytes:
                self.on_message_complete()

    def eof_received(self) -> bool:
        """The peer sends no more: what is due to it is still answered. True keeps our side open for that."""
        if not self._due or not self._body_complete:
            return False
        self._due[-1].keep_alive = False
        return True

    def resume_writing(self) -> None:
        """The peer goes on reading."""
        super().resume_writing()
        self._go_on()

    def is_idle(self) -> bool:
        """See Connection."""
        return not self._due and self._body_complete and not self._head_bytes

    def late(self, waited_s: float, arrived_bytes: int) -> None:
        """A head has its time; a body has longer as long as it keeps coming."""
        if not self._in_head and arrived_bytes >= MIN_BODY_BYTES_PER_S * waited_s:
            self.expect_more(self.limits.body_timeout_s)
        elif self._in_head and not self._head_bytes:
            self.transport.close()
        else:
            what = "head" if self._in_head else "body"
            self._refuse(RequestTimeoutError(f"the request's {what} did not arrive in time"))

    def shutdown(self) -> None:
        """The server stops: what is due is still answered."""
        if self._due:
            self._due[-1].keep_alive = False
        else:
            self.transport.close()

    # The parser's events.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._url = b""
        self._headers = []
        self._in_head = True
        self._head_bytes = max(1, self._head_bytes)

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
        try:
            check_head(request, len(self._url), self._head_bytes, self.limits)
        except Error as error:
            self._reject(error)
        if self._parser.should_upgrade():
            self._decline_upgrade(request)
        self._in_head = False
        self._new_head = True
        self._head_bytes = 0
        self._first_line = b""
        self._unread_bytes = self._wire_bytes = self._body_bytes = 0
        self._body_complete = False
        self.arrived()
        self._newest = request
        self._due.append(request)
        if len(self._due) > 1 and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()
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

    # Requests and their answers, one after the other.

    def _go_on(self) -> None:
        """Begin the answer that is due next; and, where it was there at once, the one behind it."""
        if self._going_on:
            return
        self._going_on = True
        try:
            while self._due and not self._due[0].answering and not self.write_paused:
                if self._begun_in_turn == MAX_BEGUN_IN_A_TURN:
                    self.loop.call_soon(self._go_on_in_next_turn)
                    return
                self._begun_in_turn += 1
                request = self._due[0]
                request.answering = True
                Steps(self._exchange(request), self.loop, self._traffic.under_way)
        finally:
            self._going_on = False

    def _go_on_in_next_turn(self) -> None:
        self._begun_in_turn = 0
        self._go_on()

    def _on_body_wanted(self) -> asyncio.Future[None]:
        """The request under way waits for its body: a client that asked to be told is told to send it."""
        request = self._due[0]
        if self._continued is not request and request.fields.get(b"expect", b"").lower() == b"100-continue":
            self._continued = request
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self.loop.create_future()

    async def _exchange(self, request: Request) -> None:
        """One request and its answer."""
        response = await self._app.answer(request)
        if response is None:
            return
        if not request.gone:
            if response.stream is None:
                self._write(request, response)
            else:
                try:
                    await self._stream(request, response, response.stream)
                except Exception:  # noqa: BLE001 - logged, and the caller sees it in the connection's end
                    # A listing that cannot be read to its end: cut the connection, so that nobody takes it for whole.
                    _log.exception("answer_cut_off", request_id=request.id, operation=request.operation)
                    request.keep_alive = False
        self._app.answered(request, response)
        if not request.gone:
            self._answered(request)

    def _write(self, request: Request, response: Response) -> None:
        self.transport.write(
            whole_answer(
                response,
                request.id,
                self._traffic.date,
                close=not request.keep_alive,
                with_body=request.method != b"HEAD",
            )
        )

    async def _stream(self, request: Request, response: Response, parts: AsyncIterator[bytes]) -> None:
        chunked = request.version == "1.1"
        head = stream_head(response, request.id, self._traffic.date, close=not request.keep_alive, chunked=chunked)
        if request.method == b"HEAD":
            self.transport.write(head)
            return
        request.begun = True
        async for part in parts:
            if request.gone:
                return
            if not part:
                continue
            self.transport.write(head + (b"%x\r\n%b\r\n" % (len(part), part) if chunked else part))
            head = b""
            await self.drain()
        if not request.gone and chunked:
            self.transport.write(b"0\r\n\r\n")

    def _answered(self, request: Request) -> None:
        """An answer has left: go on with the next request, or with the refusal that waits behind it."""
        request.answered = True
        self._due.popleft()
        if not request.keep_alive:
            self.transport.close()
        elif not self._due:
            if self._refused:
                self._send_refusal()
            else:
                self.idle()
        if len(self._due) < 2 and self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()
        self._go_on()

    # Refusals below the application.

    def _refuse(self, error: Error) -> None:
        """Answer with ``error`` behind the answers that are still due, then close."""
        if self._refused:
            return
        self._refused = True
        self._refusal = error
        self.arrived()
        if self._body_complete:
            if not self._due:
                self._send_refusal()
            # else what is refused comes behind a whole request: its answer comes first
        elif len(self._due) > 1:
            self._due.pop()  # the newest waits there and will never be whole; those before it are answered
        elif not self._due or self._due[0].begun:
            self.transport.close()  # it has its answer and goes on sending
        else:
            self._due.pop().lose()  # the application must not answer any more
            self._send_refusal()

    def _send_refusal(self) -> None:
        error, self._refusal = self._refusal, None
        if error is None or self.transport.is_closing():
            return
        request_id = self._traffic.new_id()
        response = error_response(error, request_id)
        self.transport.write(whole_answer(response, request_id, self._traffic.date, close=True))
        self.close_gently()
        self._traffic.metrics.request(UNPARSED, response.status, 0.0)
        if self.limits.log_requests != "none":
            _log.info("request", request_id=request_id, operation=UNPARSED, status=response.status, why=error.message)
