"""The ceiling: an ASGI callable that does nothing, on uvicorn. No application in Python on that server is faster."""

from __future__ import annotations

from typing import Any

from bench.asgi import serve

_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"2")]


async def empty(scope: Any, _receive: Any, send: Any) -> None:
    assert scope["type"] == "http"  # noqa: S101 - uvicorn takes it for: no start-up to wait for
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": b"{}"})


if __name__ == "__main__":
    serve(empty)
