"""uvicorn as it comes, tuned as one tunes it: uvloop, httptools, no access log, few searches for reference cycles."""

from __future__ import annotations

import gc
import socket
from typing import Any

import uvicorn


def serve(app: Any) -> None:
    """Serve an ASGI application on a free port, in one process, until a signal; print the address first."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(f'"address":"http://127.0.0.1:{listener.getsockname()[1]}"', flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", ws="none", access_log=False, log_level="warning")
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    uvicorn.Server(config).run(sockets=[listener])
