"""The ceiling: an empty ASGI callable on the server class that Turnlog runs on, with the same settings."""

from __future__ import annotations

import asyncio
import gc
import itertools
import socket
from typing import Any

import uvloop

from turnlog.config import Config
from turnlog.http.server import make_server
from turnlog.metrics import Metrics

_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


async def empty(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": b"{}"})


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    number = itertools.count()
    app: Any = empty
    server = make_server(app, Config(), lambda: str(next(number)), Metrics(), lambda: print(f'"address":"{address}"'))
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # as cli/serve.py has it
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(server.serve(sockets=[listener]))


main()
