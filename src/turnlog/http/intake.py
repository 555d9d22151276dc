"""Takes connections, many in a turn; those of several workers that share a listening socket take even shares.

Left alone, whoever wakes first takes what there is: of 64 connections opened at once, one of two workers had up to 64,
and a connection stays where it was taken. So each worker writes down in shared memory how many it has, and one that
has more than another leaves the next connection to it for a moment. Only for a moment: a worker that hangs, or is
being started again, keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

_LEAD = 2
"""How many more than another a worker may have and still take the next."""
_AT_ONCE = 64
"""How many are taken in a turn of the event loop: one a turn, each would wait for the requests of all before it."""
_LEAVE_S = 0.001
"""How long a connection is left to another worker."""
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_EXHAUSTED_S = 0.1
_log = structlog.get_logger()


class Shares:
    """How many connections each worker has open, by their numbers from 1, in memory that survives each of them."""

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, 4 * workers)).cast("I")

    def put(self, worker: int, connections: int) -> None:
        """Only a worker itself says how many it has."""
        self._counts[worker - 1] = connections

    def fewest(self) -> int:
        """What the one with the fewest has, or had when it last said so."""
        return min(self._counts)


class Intake:
    """Takes connections for worker ``mine`` until it is closed. ``count`` says how many the worker has open."""

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        count: Callable[[], int],
        shares: Shares,
        mine: int,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._make_protocol = make_protocol
        self._count = count
        self._shares = shares
        self._mine = mine
        self._arriving: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._exhausted = False
        self._note()
        self._loop.add_reader(listener, self._waiting)

    async def close(self) -> None:
        """Take no more: what is still to be taken is the other workers'. All that was taken has its protocol then."""
        if self._timer is None:
            self._loop.remove_reader(self._listener)
        else:
            self._timer.cancel()
        self._listener.close()
        if self._arriving:
            await asyncio.wait(self._arriving)

    def _note(self) -> int:
        count = self._count() + len(self._arriving)
        self._shares.put(self._mine, count)
        return count

    def _waiting(self) -> None:
        """Connections wait: take them, but for those that another worker should."""
        for _ in range(_AT_ONCE):
            if self._note() >= self._shares.fewest() + _LEAD:
                self._pause(_LEAVE_S)
                return
            if not self._take():
                return

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._timer = self._loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        """Whose turn it was has had it: take the connection where it is still there."""
        self._timer = None
        self._loop.add_reader(self._listener, self._waiting)
        self._take()

    def _take(self) -> bool:
        """Whether there was one."""
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # usually EAGAIN: another worker was quicker
            if error.errno in _EXHAUSTED:
                if not self._exhausted:  # once, not ten times a second
                    _log.error("cannot_accept", error=str(error))
                self._exhausted = True
                self._pause(_EXHAUSTED_S)
            return False
        self._exhausted = False
        connection.settimeout(0)
        handing_over = self._loop.create_task(self._hand_over(connection))
        self._arriving.add(handing_over)
        handing_over.add_done_callback(self._arriving.discard)
        self._note()
        return True

    async def _hand_over(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # it is gone already
            connection.close()
