"""The listening socket: starts the application, stops it without losing what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from email.utils import formatdate
from typing import TYPE_CHECKING, NamedTuple

from turnlog.http.intake import Intake, Shares
from turnlog.http.protocol import Protocol
from turnlog.http.traffic import Traffic

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from turnlog.config import Config
    from turnlog.http.app import App
    from turnlog.metrics import Metrics


BACKLOG = 4096
"""How many connections the kernel keeps until they are taken."""
_DATE_INTERVAL_S = 1.0
_LOOK_INTERVAL_S = 0.02
"""How often a stopping server looks whether everything is answered."""
_LAST_ANSWERS_S = 1.0
"""How long requests that were cut short have for their answers."""


class Share(NamedTuple):
    """For one of several workers: where they count the connections that they take from one socket, and its number."""

    shares: Shares
    mine: int


class Server:
    """Answers what comes on a listening socket until it is told to stop.

    SIGINT and SIGTERM tell it; a second SIGINT ends its patience. One of several workers, a server with a ``share``,
    leaves SIGINT to its parent.
    """

    def __init__(
        self, app: App, traffic: Traffic, limits: Config, on_started: Callable[[], None], share: Share | None
    ) -> None:
        self._app = app
        self._traffic = traffic
        self._limits = limits
        self._on_started = on_started
        self._share = share
        self._stop = asyncio.Event()
        self._hurry = False

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

    def _interrupt(self) -> None:
        """Ctrl-C; where somebody presses it again, they do not want to wait."""
        self._hurry = self._stop.is_set()
        self.stop()

    async def serve(self, listener: socket.socket) -> None:
        """Listen until told to stop; return when everything is answered, ``drain_timeout_s`` later at the latest."""
        loop = asyncio.get_running_loop()
        self._traffic.date = formatdate(usegmt=True).encode()
        date = loop.create_task(self._keep_date())
        with self._signals(loop):
            listener.settimeout(0)
            listener.listen(BACKLOG)
            share = self._share or Share(Shares(1), 1)
            intake = Intake(listener, lambda: self._connection(loop), lambda: self.open_connections, *share)
            self._on_started()
            await self._stop.wait()
            await intake.close()
            await self._drain(loop)
        date.cancel()

    def _connection(self, loop: asyncio.AbstractEventLoop) -> Protocol:
        return Protocol(self._app, self._traffic, loop)

    async def _keep_date(self) -> None:
        while True:
            await asyncio.sleep(_DATE_INTERVAL_S)
            self._traffic.date = formatdate(usegmt=True).encode()

    @contextlib.contextmanager
    def _signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Hear the signals. A SIGTERM that comes once more, however late, must not turn a clean end into a death."""
        handlers = {signal.SIGTERM: self.stop}
        if self._share is None:
            handlers[signal.SIGINT] = self._interrupt
        before = {
            number: signal.signal(number, lambda *_, handler=handler: loop.call_soon_threadsafe(handler))
            for number, handler in handlers.items()
        }
        try:
            yield
        finally:
            for number, handler in (before | {signal.SIGTERM: signal.SIG_IGN}).items():
                signal.signal(number, handler)

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
        while not self._traffic.is_over and loop.time() < until and not self._hurry:  # noqa: ASYNC110 - once, at the end
            await asyncio.sleep(_LOOK_INTERVAL_S)


def make_server(
    app: App,
    config: Config,
    new_id: Callable[[], str],
    metrics: Metrics,
    on_started: Callable[[], None],
    share: Share | None = None,
) -> Server:
    """A server for ``app``, not yet listening."""
    return Server(app, Traffic(config, new_id, metrics), config, on_started, share)
