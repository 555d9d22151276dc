"""One request and its answer on a connection: uvicorn's, which also takes a whole answer in one piece.

An answer in two ASGI events has each of its headers looked at again, against bytes that ours cannot hold; a third of
the time that the event loop spends on a recorded message went there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from turnlog.http.responses import rendered

if TYPE_CHECKING:
    from turnlog.http.responses import Header

WHOLE_ANSWER = "turnlog.whole_answer"
"""An ASGI extension, and the type of its one event: ``status``, ``head`` (header lines as bytes) and ``body``."""
EXTENSIONS: dict[str, dict[str, Any]] = {WHOLE_ANSWER: {}}


class StandingHeaders:
    """The server's own headers as bytes, rendered once for as long as uvicorn keeps them (it renews ``date``)."""

    def __init__(self) -> None:
        self._headers: list[Header] = []
        self._rendered = b""

    def of(self, headers: list[Header]) -> bytes:
        """``headers`` as header lines."""
        if headers is not self._headers:
            self._headers, self._rendered = headers, rendered(headers)
        return self._rendered


_standing = StandingHeaders()


class Cycle(RequestResponseCycle):
    """See the module. What uvicorn promises of ``send`` holds for the whole answer too."""

    async def send(self, message: Any) -> None:
        """Send an ASGI event, or a whole answer."""
        if message["type"] != WHOLE_ANSWER:
            await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.transport.write(
            b"".join(
                (
                    STATUS_LINE[message["status"]],
                    _standing.of(self.default_headers),
                    message["head"],
                    b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n",
                    b"" if self.scope["method"] == "HEAD" else message["body"],
                )
            )
        )
        self.response_started = self.response_complete = True
        self.waiting_for_100_continue = False
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
