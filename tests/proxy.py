"""A way to a database that is cut where a test says: between a store and its server, in the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Literal, NamedTuple, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Where = Literal["before", "after", "late"]
"""Of a statement that the client has sent: the server never gets it; it gets it and its answer is lost; it gets it only
when the client has gone elsewhere (``Proxy.deliver``)."""


class _Cut(NamedTuple):
    number: int
    where: Where
    marker: bytes
    then: Callable[[], Awaitable[None]] | None


class Proxy:
    """Passes on what is sent both ways until the cut that it was told of, of whatever connection comes to it first.

    What PostgreSQL's clients send is one packet for each thing that they wait for, so that packets are counted.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host, self._port, self._url = parts.hostname, parts.port, url
        self._cut: _Cut | None = None
        self._late: tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._under_way: set[asyncio.Task[None]] = set()
        self.cuts = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    @property
    def url(self) -> str:
        """The way through it to the same database."""
        port = self._server.sockets[0].getsockname()[1]
        return self._url.replace(f"{self._host}:{self._port}", f"127.0.0.1:{port}")

    def cut(
        self,
        where: Where,
        number: int = 1,
        *,
        marker: bytes = b"",
        then: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Cut the way at the ``number``-th packet from now that holds ``marker``; ``then`` is run before the client
        hears of it.
        """
        self._cut = _Cut(number, where, marker, then)

    def spare(self) -> bool:
        """Take back a cut that has not happened; whether that was so."""
        spared, self._cut = self._cut is not None, None
        return spared

    async def deliver(self) -> bytes:
        """What the server answers to the packet that was kept back at a cut ``late``, once it gets it."""
        assert self._late is not None
        packet, reader, writer = self._late
        writer.write(packet)
        answer = await reader.read(65536)
        writer.transport.abort()
        return answer

    async def _serve(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._under_way.add(task)
        server, to_server = await asyncio.open_connection(self._host, self._port)
        back = asyncio.create_task(_pass(server, to_client))
        kept = False
        try:
            while packet := await client.read(2**20):
                cut = self._due(packet)
                if cut is None:
                    to_server.write(packet)
                    continue
                back.cancel()
                await asyncio.wait((back,))
                kept = cut.where == "late"
                if kept:
                    self._late = (packet, server, to_server)
                elif cut.where == "after":
                    to_server.write(packet)
                    assert await server.read(1), "the server did not answer"
                if not kept:
                    to_server.transport.abort()
                if cut.then is not None:
                    await cut.then()
                break
        except OSError:
            pass
        finally:
            back.cancel()
            to_client.transport.abort()
            if not kept:
                to_server.transport.abort()
            self._under_way.discard(task)

    def _due(self, packet: bytes) -> _Cut | None:
        cut = self._cut
        if cut is None or cut.marker not in packet:
            return None
        if cut.number > 1:
            self._cut = cut._replace(number=cut.number - 1)
            return None
        self._cut = None
        self.cuts += 1
        return cut


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while packet := await reader.read(2**20):
            writer.write(packet)
    writer.transport.abort()
