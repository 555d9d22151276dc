"""The listening socket and its event loop: starts the application, stops it without losing what is under way."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import uvicorn

from turnlog.http.protocol import protocol_class

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from turnlog.config import Config
    from turnlog.http.app import App
    from turnlog.metrics import Metrics


class Server(uvicorn.Server):
    """uvicorn's server, stopped by SIGINT and SIGTERM, with a return instead of the signal's death."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn would raise the signal again after a clean stop, and the exit status would tell of a failure."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        if not self.should_exit:
            self._on_started()


def make_server(
    app: App, config: Config, new_id: Callable[[], str], metrics: Metrics, on_started: Callable[[], None]
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
            backlog=4096,
        ),
        on_started,
    )


def open_connections(server: Server) -> int:
    """How many connections are open."""
    return len(server.server_state.connections)
