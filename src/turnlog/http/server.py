"""The listening socket and its event loop: starts the application, stops it without losing what is under way."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING, Any, NamedTuple

import uvicorn

from turnlog.http.intake import Intake
from turnlog.http.protocol import protocol_class

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Callable, Iterator

    from turnlog.config import Config
    from turnlog.http.app import App
    from turnlog.http.intake import Shares
    from turnlog.metrics import Metrics


BACKLOG = 4096
"""How many connections the kernel keeps until they are taken."""


class Share(NamedTuple):
    """For one of several workers: where they count the connections that they take from one socket, and its number."""

    shares: Shares
    mine: int


class Server(uvicorn.Server):
    """uvicorn's server, stopped by SIGINT and SIGTERM, with a return instead of the signal's death.

    One of several workers, a server with a ``share``, leaves SIGINT to its parent.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        on_started: Callable[[], None],
        share: Share | None,
    ) -> None:
        super().__init__(config)
        self._on_started = on_started
        self._share = share
        self._intakes: list[Intake] = []

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise the signal again after a clean stop, and the exit status would tell of a failure."""
        numbers = (signal.SIGINT, signal.SIGTERM) if self._share is None else (signal.SIGTERM,)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets if self._share is None else [])
        if self._share is not None:
            for listener in sockets or ():
                self._intakes.append(
                    Intake(listener, self._make_protocol, lambda: open_connections(self), *self._share)
                )
        if not self.should_exit:
            self._on_started()

    def _make_protocol(self) -> asyncio.Protocol:
        """As uvicorn does it for the sockets that it listens on itself."""
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, then end those that there are."""
        for intake in self._intakes:
            await intake.close()
        await super().shutdown(sockets)


def make_server(
    app: App,
    config: Config,
    new_id: Callable[[], str],
    metrics: Metrics,
    on_started: Callable[[], None],
    share: Share | None = None,
) -> Server:
    """A server for ``app``, not yet listening."""
    return Server(
        uvicorn.Config(
            app,
            http=protocol_class(config, new_id, metrics),
            loop="uvloop",
            ws="none",
            lifespan="off",
            interface="asgi3",
            access_log=False,
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=config.keep_alive_s,  # type: ignore[arg-type] # given to call_later as it is
            timeout_graceful_shutdown=config.drain_timeout_s,  # type: ignore[arg-type] # and this to wait_for
            backlog=BACKLOG,
        ),
        on_started,
        share,
    )


def open_connections(server: Server) -> int:
    """How many connections are open."""
    return len(server.server_state.connections)
