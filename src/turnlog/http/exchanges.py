"""The requests of a connection and their answers: one after the other, in the order in which they came.

A request that has arrived whole is carried out in the same turn of the event loop (``steps.py``), so that its way to
the store and back costs no task, no event and no copy of its head.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import structlog

from turnlog.http.connection import Connection
from turnlog.http.responses import error_response, stream_head, whole_answer
from turnlog.http.steps import Steps

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator

    from turnlog.errors import Error
    from turnlog.http.app import App
    from turnlog.http.requests import Request
    from turnlog.http.responses import Response
    from turnlog.http.traffic import Traffic

_log = structlog.get_logger()

MAX_BEGUN_IN_A_TURN = 8
"""How many pipelined requests of one connection are begun before the others have their turn."""
UNPARSED = "unparsed"
"""The operation, in metrics and logs, of what never became a request."""


class Exchanges(Connection):
    """A connection that answers what is ``_due``. Who inherits fills that, and may set ``_refusal``, the last word."""

    def __init__(self, app: App, traffic: Traffic, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(traffic.limits, loop)
        self._app = app
        self._traffic = traffic
        self._due: deque[Request] = deque()
        """Requests without an answer, oldest first; only the first is ever under way."""
        self._begun_in_turn = 0
        self._going_on = False
        self._reading_paused = False
        self._continued: Request | None = None
        self._refusal: Error | None = None
        self._refused = False

    def resume_writing(self) -> None:
        """The peer goes on reading."""
        super().resume_writing()
        self._go_on()

    def _go_on(self) -> None:
        """Begin the answer that is due next; and, where it was there at once, the one behind it."""
        if self._going_on:
            return
        self._going_on = True
        try:
            while self._may_begin():
                if self._begun_in_turn >= MAX_BEGUN_IN_A_TURN:
                    if self._begun_in_turn == MAX_BEGUN_IN_A_TURN:  # only once
                        self._begun_in_turn += 1
                        self.loop.call_soon(self._go_on_in_next_turn)
                    return
                self._begun_in_turn += 1
                request = self._due[0]
                request.answering = True
                Steps(self._exchange(request), self.loop, self._traffic.under_way)
        finally:
            self._going_on = False

    def _may_begin(self) -> bool:
        waits = bool(self._due) and not self._due[0].answering
        return waits and not self.write_paused and not self.transport.is_closing()

    def _pace(self) -> None:
        """Read on only while what has come is answered, or at least taken."""
        pause = len(self._due) > 1 or (bool(self._due) and self._due[0].is_full)
        if pause == self._reading_paused or self.transport.is_closing():
            return
        self._reading_paused = pause
        if pause:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
            self.expect_afresh()

    def _go_on_in_next_turn(self) -> None:
        self._begun_in_turn = 0
        self._go_on()

    def _on_body_wanted(self) -> asyncio.Future[None]:
        """The request under way waits for its body: a client that asked to be told is told to send it."""
        request = self._due[0]
        self._pace()
        expected = request.version == "1.1" and request.fields.get(b"expect", b"").lower() == b"100-continue"
        if expected and self._continued is not request:
            self._continued = request
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return self.loop.create_future()

    async def _exchange(self, request: Request) -> None:
        """One request and its answer. What goes wrong beyond an answer ends the connection, too."""
        try:
            await self._carry_out(request)
        except BaseException:
            self.transport.abort()
            raise

    async def _carry_out(self, request: Request) -> None:
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
        standing, with_body = self._traffic.standing, request.method != b"HEAD"
        self.transport.write(
            whole_answer(response, request.id, standing, close=not request.keep_alive, with_body=with_body)
        )

    async def _stream(self, request: Request, response: Response, parts: AsyncIterator[bytes]) -> None:
        chunked = request.version == "1.1"
        standing, close = self._traffic.standing, not request.keep_alive
        head = stream_head(response, request.id, standing, close=close, chunked=chunked)
        if request.method == b"HEAD":
            self.transport.write(head)
            return
        request.begun = True
        request.abort = self.transport.abort
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
        request.drop()
        self._due.popleft()
        if self._refusal is not None and not self._due:
            self._send_refusal()
        elif not request.keep_alive or (self._traffic.stopping and not self._due):
            self._close_behind(request)
        elif not self._due:
            self.idle()
        self._pace()
        self._go_on()

    def _close_behind(self, request: Request) -> None:
        """The last answer has left, perhaps while its request's body still arrives: what comes of that is dropped."""
        if request.complete or self.write_paused:
            self.close()
        else:
            self._refused = True
            self.arrived()
            self.close_gently()

    def _send_refusal(self) -> None:
        error, self._refusal = self._refusal, None
        if error is None or self.transport.is_closing():
            return
        request_id = self._traffic.new_id()
        response = error_response(error, request_id)
        self.transport.write(whole_answer(response, request_id, self._traffic.standing, close=True))
        self.close_gently()
        self._traffic.metrics.request(UNPARSED, response.status, 0.0)
        if self.limits.log_requests != "none":
            _log.info("request", request_id=request_id, operation=UNPARSED, status=response.status, why=error.message)
