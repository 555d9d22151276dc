"""TLS between a socket and the connection that speaks HTTP: a protocol to the one, a transport to the other.

uvloop has this too, but its end of a connection waits for the peer, who may have gone for coffee, gives up what the
peer has not read yet, and knows no closed half. Here a connection begins with its socket, not with the end of the
handshake, so that everything that bounds a plain connection (their number, the head's deadline, the time of a slow
reader, a stop) bounds this one from its first moment, the handshake included.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

import structlog

from turnlog.errors import MalformedParameterError

if TYPE_CHECKING:
    from turnlog.http.protocol import Protocol

_HANDSHAKE = b"\x16"
"""The first byte of whatever speaks TLS."""
_RECORD_BYTES = 16 * 1024
_MAX_UNASKED_BYTES = 64 * 1024
"""What TLS itself may have to say to a peer that does not read: a flood of key updates must not fill the memory."""
_log = structlog.get_logger()


class Tls(asyncio.Transport, asyncio.Protocol):
    """One TLS connection at the server's end. ``above`` takes it for a transport from the start.

    What ``above`` writes before the end of the handshake goes out behind it. A peer that does not speak TLS is told so
    by ``above``, in plain HTTP, and nothing that it sent is looked at.
    """

    def __init__(self, context: ssl.SSLContext, above: Protocol, *, log: bool) -> None:
        super().__init__()
        self._above = above
        self._log = log
        self._below: asyncio.Transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._context = context
        self._secured: ssl.SSLObject | None = None
        self._shaken = False
        self._plain = False
        self._backlog: list[bytes] = []
        self._backlog_bytes = self._unasked_bytes = 0
        self._ended = self._said_goodbye = self._closing = False

    # The socket's protocol.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # a stream's
        """Take a connection; the handshake is the peer's to begin."""
        self._below = transport
        self._above.connection_made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self._closing = True
        above, self._secured, self._above = self._above, None, None  # type: ignore[assignment] # else a cycle, as above
        above.connection_lost(exc)

    def pause_writing(self) -> None:
        """The peer does not take what it is sent."""
        self._above.pause_writing()

    def resume_writing(self) -> None:
        """The peer goes on reading."""
        self._unasked_bytes = 0
        self._above.resume_writing()

    def data_received(self, data: bytes) -> None:
        """Go on with the handshake, or give what came to the connection above."""
        if self._closing or self._ended or self._plain or (self._said_goodbye and self._shaken):
            return
        if self._secured is None:
            if not data.startswith(_HANDSHAKE):
                self._plain = True
                self._above.refuse(MalformedParameterError("this port speaks TLS: expected https://"))
                return
            self._secured = self._context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._incoming.write(data)
        if self._shaken or self._shake(self._secured):
            self._read(self._secured)

    def eof_received(self) -> bool | None:
        """The peer sends no more; whether it said so within TLS makes no difference: HTTP knows where a body ends."""
        if self._ended:
            return not self._closing
        self._ended = True
        if not self._shaken and not self._plain:
            self.abort()
        elif not self._above.eof_received():
            self.close()
        return not self._closing

    def _shake(self, secured: ssl.SSLObject) -> bool:
        """Whether the handshake is at its end."""
        try:
            secured.do_handshake()
        except ssl.SSLWantReadError:
            self._say_unasked()
            return False
        except ssl.SSLError as error:
            self._fail("handshake_failed", error)
            return False
        self._shaken = True
        backlog, self._backlog = self._backlog, []
        self._backlog_bytes = 0
        for data in backlog:
            secured.write(data)
        self._send()
        if self._said_goodbye:
            self._say_goodbye()
        return True

    def _read(self, secured: ssl.SSLObject) -> None:
        parts = []
        try:
            while self._incoming.pending or secured.pending():
                part = secured.read(_RECORD_BYTES)
                if not part:
                    self._ended = True  # the peer has said goodbye
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._fail("tls_broken", error)
            return
        if self._outgoing.pending:
            self._say_unasked()
        if parts:
            self._above.data_received(parts[0] if len(parts) == 1 else b"".join(parts))
        if self._ended and not self._closing and not self._above.eof_received():
            self._above.close()

    def _fail(self, event: str, error: ssl.SSLError) -> None:
        """What came is no TLS, or of no kind that is taken here: the peer is told by an alert."""
        if self._log:
            _log.info(event, why=(error.reason or "unknown").replace("_", " ").lower())
        self._send()
        self._closing = True
        self._below.close()

    def _send(self) -> None:
        if self._outgoing.pending:
            self._below.write(self._outgoing.read())

    def _say_unasked(self) -> None:
        """Send what is TLS's own, to a peer that reads."""
        self._unasked_bytes += self._outgoing.pending
        self._send()
        if self._unasked_bytes > _MAX_UNASKED_BYTES and self._below.get_write_buffer_size():
            self.abort()

    # The connection's transport.

    def write(self, data: Any) -> None:
        """Send ``data``, behind the handshake at the earliest."""
        if self._closing or self._said_goodbye:
            return
        if self._plain:
            self._below.write(data)
        elif self._shaken and self._secured is not None:
            self._secured.write(data)
            self._send()
        else:
            self._backlog.append(data)
            self._backlog_bytes += len(data)

    def get_write_buffer_size(self) -> int:
        """Bytes that the peer has not taken yet."""
        return self._backlog_bytes + self._below.get_write_buffer_size()

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._closing or self._below.is_closing()

    def close(self) -> None:
        """Say goodbye behind what is to be sent, and wait for nobody's answer to that."""
        if not self._closing:
            self._closing = True
            self._say_goodbye()
            self._below.close()

    def abort(self) -> None:
        """Cut it off."""
        self._closing = True
        self._below.abort()

    def can_write_eof(self) -> bool:
        """Our side can be closed alone."""
        return True

    def write_eof(self) -> None:
        """Say goodbye behind what is to be sent; what the peer still says is dropped."""
        self._said_goodbye = True
        if self._shaken:
            self._say_goodbye()
        elif self._plain:
            self._below.write_eof()

    def _say_goodbye(self) -> None:
        if self._shaken and self._secured is not None:
            with contextlib.suppress(ssl.SSLError):  # the peer has not said so yet
                self._secured.unwrap()
            self._send()
        if not self._closing and self._below.can_write_eof():
            self._below.write_eof()

    def pause_reading(self) -> None:
        """Leave what comes to the kernel."""
        self._below.pause_reading()

    def resume_reading(self) -> None:
        """Take what comes."""
        self._below.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the socket below has it."""
        return self._below.get_extra_info(name, default)
