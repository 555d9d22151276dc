"""The listening socket: starts the application, stops it without losing what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple

from turnlog.http.intake import Intake, Shares
from turnlog.http.protocol import Protocol
from turnlog.http.responses import standing_headers
from turnlog.http.tls import Tls
from turnlog.http.traffic import Traffic

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from turnlog.config import Config
    from turnlog.http.app import App
    from turnlog.http.certificate import Certificate
    from turnlog.metrics import Metrics


BACKLOG = 4096
"""How many connections the kernel keeps until they are taken."""
_CLOCK_INTERVAL_S = 1.0
"""How often the date is made anew, and a renewed certificate looked for."""
_LOOK_INTERVAL_S = 0.02
"""How often a stopping server looks whether everything is answered."""
_LAST_ANSWERS_S = 1.0
"""How long requests that were cut short have for their answers."""


class Share(NamedTuple):
    """Where the workers of one server count the connections that they take from its socket, and this one's number."""

    shares: Shares
    mine: int


class Server:
    """Answers what comes on a listening socket until it is told to stop, by SIGTERM or by ``stop``."""

    def __init__(
        self,
        app: App,
        traffic: Traffic,
        limits: Config,
        on_started: Callable[[], None],
        share: Share,
        certificate: Certificate | None,
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._limits = limits
        self._on_started = on_started
        self._share = share
        self._certificate = certificate
        self._stop = asyncio.Event()

    @property
    def open_connections(self) -> int:
        """How many connections are open."""
        return len(self._traffic.connections)

    def stop(self) -> None:
        """Take no more connections, answer what is due, return from ``serve``."""
        self._stop.set()

    async def until_stopping(self) -> None:
        """Return once it has been told to stop."""
        await self._stop.wait()

    async def serve(self, listener: socket.socket) -> None:
        """Take what comes on ``listener``, which listens and does not block, until told to stop.

        Returns when everything is answered, ``drain_timeout_s`` later at the latest.
        """
        loop = asyncio.get_running_loop()
        self._look()
        looking = loop.create_task(self._keep_looking())
        with self._signals(loop):
            intake = Intake(listener, lambda: self._connection(loop), lambda: self.open_connections, *self._share)
            self._on_started()
            await self._stop.wait()
            await intake.close()
            await self._drain(loop)
        looking.cancel()

    def _connection(self, loop: asyncio.AbstractEventLoop) -> asyncio.Protocol:
        connection = Protocol(self._app, self._traffic, loop)
        if self._certificate is None:
            return connection
        return Tls(self._certificate.context, connection, log=self._limits.log_requests != "none")

    async def _keep_looking(self) -> None:
        while True:
            await asyncio.sleep(_CLOCK_INTERVAL_S)
            self._look()

    def _look(self) -> None:
        """What time it is, and whether the certificate was renewed."""
        self._traffic.standing = standing_headers(formatdate(usegmt=True), secure=self._certificate is not None)
        if self._certificate is not None:
            self._certificate.renew()

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Hear SIGTERM. One that comes once more, however late, must not turn a clean end into a death."""
        signal.signal(signal.SIGTERM, lambda *_: loop.call_soon_threadsafe(self.stop))
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    async def _drain(self, loop: asyncio.AbstractEventLoop) -> None:
        traffic = self._traffic
        traffic.stopping = True
        for connection in list(traffic.connections):
            connection.shutdown()
        await self._wait(loop.time() + self._limits.drain_timeout_s)
        if not traffic.is_over:
            for steps in list(traffic.under_way):
                steps.cancel()
            await self._wait(loop.time() + _LAST_ANSWERS_S)
            for connection in list(traffic.connections):
                connection.transport.abort()

    async def _wait(self, until: float) -> None:
        loop = asyncio.get_running_loop()
        while not self._traffic.is_over and loop.time() < until:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(_LOOK_INTERVAL_S)


def make_server(
    app: App,
    config: Config,
    new_id: Callable[[], str],
    metrics: Metrics,
    on_started: Callable[[], None],
    share: Share,
    certificate: Certificate | None = None,
) -> Server:
    """A server for ``app``, not yet taking anything; with a ``certificate`` it speaks TLS and nothing else."""
    return Server(app, Traffic(config, new_id, metrics), config, on_started, share, certificate)
