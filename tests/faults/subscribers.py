"""E02: many who read the log along, and one of them who takes nothing."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING

from tests.faults.crowds import Others, memory_mb, peak_mb
from tests.faults.ledger import Entry
from tests.harness import V1, create_conversation, make_key, message, wait_for
from tests.sse import CHANGES
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.faults.site import Site

WRITE_TIMEOUT_S = 2.0


def many_subscribers(
    site: Site, *, subscribers: int = 2000, seconds: float = 5, windows: int = 3, most: float = 2.0
) -> Entry:
    """All read what is recorded; the one who does not is cut at the deadline for writing. Others record meanwhile."""
    server = site.start(TURNLOG_WRITE_TIMEOUT_S=str(WRITE_TIMEOUT_S), TURNLOG_STREAM_COMMENT_S="1")
    key = make_key(server.url, "events", permissions=PERMISSIONS)
    others = Others(server, key, per_s=100)
    head = "".join(f"{name}: {value}\r\n" for name, value in key.headers.items())
    rest = f"HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n{head}\r\n"
    crowd = _Crowd(server.port, f"GET {CHANGES}?after=now {rest}".encode())
    with server.client(key) as client, socket.socket() as slow:
        _fill(client)
        before = memory_mb(server.worker_pid)
        for _ in range(windows):
            others.look(seconds, beside=False)
            asyncio.run(crowd.read_along(subscribers, lambda: others.look(seconds, beside=True)))
        wait_for(lambda: _open_streams(client) == 0, timeout_s=30)  # who closes is noticed at the next comment
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(f"GET {CHANGES} {rest}".encode())
        wait_for(lambda: _open_streams(client) == 1)
        began_at = time.monotonic()
        wait_for(lambda: _open_streams(client) == 0, timeout_s=60)
        cut_s = time.monotonic() - began_at
        memory = peak_mb(server.worker_pid) - before
    problems = others.problems(most)
    if cut_s > 2 * WRITE_TIMEOUT_S + 8:
        problems.append(f"who took nothing was cut after {cut_s:.1f} s, {WRITE_TIMEOUT_S} s are allowed")
    if crowd.dropped:
        problems.append(f"{crowd.dropped} of those who read were dropped, too")
    figures = others.figures() | {
        "subscribers": subscribers,
        "events heard": crowd.heard,
        "slow one cut after s": round(cut_s, 1),
        "more memory at the peak MB": round(memory),
    }
    return Entry(
        "E02 subscribers, one slow", site.store, figures, tuple(problems), "" if crowd.heard else "nobody heard"
    )


class _Crowd:
    """Subscribers that read whatever comes."""

    def __init__(self, port: int, request: bytes) -> None:
        self._port = port
        self._request = request
        self._begun = asyncio.Semaphore(0)
        self.heard = 0
        self.dropped = 0

    async def read_along(self, subscribers: int, meanwhile: Callable[[], object]) -> None:
        """Until ``meanwhile`` has returned."""
        self._begun = asyncio.Semaphore(0)
        crowd = [asyncio.ensure_future(self._one()) for _ in range(subscribers)]
        for _ in crowd:
            await self._begun.acquire()
        await asyncio.to_thread(meanwhile)
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)

    async def _one(self) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(self._request)
            await reader.readuntil(b"\r\n\r\n")
            self._begun.release()
            while part := await reader.read(65536):
                self.heard += part.count(b"\ndata: ")
            self.dropped += 1  # nobody else ends it before all are cancelled
        finally:
            writer.transport.abort()


def _fill(client: httpx.Client) -> None:
    """Record more than the kernel keeps for a connection."""
    path = f"{V1}/conversations/{create_conversation(client, 'filled')}/messages/batch"
    for _ in range(10):
        client.post(path, json={"messages": [message("x" * 6000)] * 300}).raise_for_status()


def _open_streams(client: httpx.Client) -> int:
    return int(float(client.get("/metrics").text.partition("\nturnlog_open_streams")[2].partition("\n")[0].split()[-1]))
