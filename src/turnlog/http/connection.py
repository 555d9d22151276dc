"""A connection below HTTP: how long it may be silent, how fast its peer has to read, how it ends.

Timers cost more than what they guard. An ordinary request, whose head and body arrive together, starts none; how long
a connection has been idle is looked at now and then by one timer, not by one for each request.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from turnlog.config import Config

LINGER_S = 2.0
"""How long a refused connection is kept for its peer to read the answer."""


class Connection(asyncio.Protocol):
    """What every connection does; who inherits says when it ``is_idle``, and what a ``late`` part or a stop means."""

    def __init__(self, limits: Config, loop: asyncio.AbstractEventLoop) -> None:
        self.limits = limits
        self.loop = loop
        self.transport: asyncio.Transport
        self.write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._idle_since = 0.0
        self._idle_timer: asyncio.TimerHandle | None = None
        self._arrival: asyncio.TimerHandle | None = None
        self._arrival_bytes = 0
        self._arrival_timeout_s = 0.0
        self._slow_reader: asyncio.TimerHandle | None = None
        self._untaken_bytes = 0
        self._linger: asyncio.TimerHandle | None = None

    def is_idle(self) -> bool:
        """Whether nothing is under way and nothing has begun to arrive."""
        raise NotImplementedError

    def shutdown(self) -> None:
        """The server stops: what is due is still answered."""
        raise NotImplementedError

    def late(self, waited_s: float, arrived_bytes: int) -> None:
        """``waited_s`` have passed since more was expected; meanwhile so much of it has arrived."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # a stream's
        """Take a connection."""
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection's timers, and let nobody wait for it."""
        del exc
        self.arrived()
        for timer in (self._slow_reader, self._linger, self._idle_timer):
            if timer is not None:
                timer.cancel()
        self._release()

    # How long it may be silent.

    def idle(self) -> None:
        """From now on nothing is under way: the connection is closed where that lasts too long."""
        self._idle_since = self.loop.time()
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_later(self.limits.keep_alive_s, self._check_idle)

    def _check_idle(self) -> None:
        left_s = self._idle_since + self.limits.keep_alive_s - self.loop.time()
        if not self.is_idle():
            left_s = self.limits.keep_alive_s
        self._idle_timer = None
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._check_idle)
        else:
            self.close()

    def expect_more(self, timeout_s: float) -> None:
        """Something has begun, or has to begin, to arrive: ``late`` hears of it unless it has ``arrived`` by then."""
        if self._arrival is None:
            self._arrival_bytes = 0
            self._arrival_timeout_s = timeout_s
            self._arrival = self.loop.call_later(timeout_s, self._late, timeout_s)

    def arriving(self, count: int) -> None:
        """``count`` bytes came."""
        self._arrival_bytes += count

    def arrived(self) -> None:
        """All that was expected is here."""
        if self._arrival is not None:
            self._arrival.cancel()
            self._arrival = None

    def expect_afresh(self) -> None:
        """What is expected was not taken meanwhile: it has all its time again."""
        if self._arrival is not None:
            self.arrived()
            self.expect_more(self._arrival_timeout_s)

    def _late(self, waited_s: float) -> None:
        self._arrival = None
        self.late(waited_s, self._arrival_bytes)

    # How fast its peer has to read.

    def pause_writing(self) -> None:
        """The peer does not take what it is sent: it has ``write_timeout_s`` to go on."""
        self.write_paused = True
        if self._slow_reader is None:
            self._watch_reader()

    def _watch_reader(self) -> None:
        self._untaken_bytes = self._untaken()
        self._slow_reader = self.loop.call_later(self.limits.write_timeout_s, self._check_reader)

    def _check_reader(self) -> None:
        """A peer that takes something, however slowly, is waited for; one that takes nothing is not."""
        if self._untaken() >= self._untaken_bytes:
            self.transport.abort()
        else:
            self._watch_reader()

    def _untaken(self) -> int:
        """Bytes that have not reached the peer: ours and the kernel's, which takes more in large pieces only."""
        socket = self.transport.get_extra_info("socket")
        if socket is None or socket.fileno() < 0:
            return self.transport.get_write_buffer_size()
        queued = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4))
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def resume_writing(self) -> None:
        """The peer goes on reading."""
        if self._slow_reader is not None:
            self._slow_reader.cancel()
            self._slow_reader = None
        self._release()

    def _release(self) -> None:
        self.write_paused = False
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    async def drain(self) -> None:
        """Wait until the peer takes more, or is gone."""
        if self.write_paused:
            self._drained = self.loop.create_future()
            await self._drained

    # How it ends.

    def close(self) -> None:
        """Close it once its peer has taken what it was sent; one that takes nothing any more is cut off."""
        self.transport.close()
        if self._slow_reader is None and self.transport.get_write_buffer_size():
            self._watch_reader()

    def close_gently(self) -> None:
        """Close our side and let the peer finish: closed with bytes unread, the kernel's reset would eat the answer."""
        if not self.transport.can_write_eof():
            self.close()
            return
        self.transport.write_eof()
        self._linger = self.loop.call_later(LINGER_S, self.transport.abort)
