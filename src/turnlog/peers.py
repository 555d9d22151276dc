"""What the workers of one server ask each other, past the port that all of them share.

Each has a door, a pair of sockets made before the first fork. A question is one end of a new pair, passed through the
other's door; the answer comes back through it, up to its end. Nothing of it lies in the file system: no folder has to
be writable, no path can be too long, nothing is left behind by ``kill -9``, and nobody else can ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Self

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

_ANSWER_S = 2.0
_PART_BYTES = 65_536
_log = structlog.get_logger()


class Doors:
    """The doors of all workers, by their numbers from 1; a worker that is started again finds its own."""

    def __init__(self, workers: int) -> None:
        self.inside: dict[int, socket.socket] = {}
        self.outside: dict[int, socket.socket] = {}
        for number in range(1, workers + 1):
            # Datagrams: questions of several workers do not run into each other.
            inside, outside = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in (inside, outside):
                end.settimeout(0)
            self.inside[number], self.outside[number] = inside, outside

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for end in (*self.inside.values(), *self.outside.values()):
            end.close()


class Peers:
    """The other workers, as the one with the number ``mine`` sees them."""

    def __init__(self, doors: Doors, mine: int) -> None:
        self._door = doors.inside[mine]
        self._others = {number: door for number, door in doors.outside.items() if number != mine}
        self._answers: set[asyncio.Task[None]] = set()

    def answer(self, tell: Callable[[], bytes]) -> None:
        """From now on, answer every question with what ``tell`` gives."""
        asyncio.get_running_loop().add_reader(self._door, self._open, tell)

    def _open(self, tell: Callable[[], bytes]) -> None:
        try:
            askers = socket.recv_fds(self._door, 1, 1)[1]
        except OSError as error:
            _log.warning("question_not_taken", error=str(error))
            return
        for asker in askers:  # one; none where this process may open no more files
            answer = asyncio.get_running_loop().create_task(self._answer(socket.socket(fileno=asker), tell))
            self._answers.add(answer)
            answer.add_done_callback(self._answers.discard)

    @staticmethod
    async def _answer(asker: socket.socket, tell: Callable[[], bytes]) -> None:
        with asker, contextlib.suppress(OSError, TimeoutError):  # it waits no more
            asker.settimeout(0)
            async with asyncio.timeout(_ANSWER_S):
                await asyncio.get_running_loop().sock_sendall(asker, tell())

    async def ask(self, within_s: float) -> dict[int, bytes | None]:
        """What each of the others says, by its number; ``None`` for one that does not within the time."""
        said = await asyncio.gather(*(self._ask(door, within_s) for door in self._others.values()))
        return dict(zip(self._others, said, strict=True))

    @staticmethod
    async def _ask(door: socket.socket, within_s: float) -> bytes | None:
        ours, theirs = socket.socketpair()
        ours.settimeout(0)
        parts = []
        with ours:
            try:
                with theirs:
                    socket.send_fds(door, [b"?"], [theirs.fileno()])
                async with asyncio.timeout(within_s):
                    while part := await asyncio.get_running_loop().sock_recv(ours, _PART_BYTES):
                        parts.append(part)
            except (OSError, TimeoutError):  # its questions pile up, it has died over this one, or it takes too long
                return None
        return b"".join(parts)
