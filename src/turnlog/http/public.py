"""What needs no key: is it alive, is it ready, its metrics, and the description of its interface.

Nothing here says anything about accounts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnlog.errors import OverloadedError
from turnlog.http import docs_page, openapi
from turnlog.http.operations import Operation
from turnlog.http.responses import Response
from turnlog.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from turnlog.config import Config
    from turnlog.http.operations import Context
    from turnlog.http.requests import Request
    from turnlog.metrics import Metrics
    from turnlog.store.protocol import Health


def public_operations(
    operations: Sequence[Operation],
    config: Config,
    metrics: Metrics,
    store_health: Callable[[], Awaitable[Health]],
    is_healthy: Callable[[], Awaitable[bool]],
) -> tuple[Operation, ...]:
    """The operations without a key; ``operations`` are those to describe."""
    document = openapi.document(operations, config)
    described = msgspec.json.encode(document)
    page = docs_page.render(document)

    async def livez(_context: Context, _request: Request) -> Response:
        return Response(b'{"status":"alive"}')

    async def readyz(_context: Context, _request: Request) -> Response:
        if not await is_healthy():
            raise OverloadedError("not ready: the store does not answer, or cannot record", retry_after_s=1)
        return Response(b'{"status":"ready"}')

    async def show_metrics(_context: Context, _request: Request) -> Response:
        try:
            health = await store_health()
        except Exception:  # noqa: BLE001 - a store that does not answer is a figure like any other
            health = None
        return Response(await metrics.expose(health), content_type=CONTENT_TYPE)

    async def show_openapi(_context: Context, _request: Request) -> Response:
        return Response(described)

    async def show_docs(_context: Context, _request: Request) -> Response:
        return Response(page, content_type=b"text/html; charset=utf-8", headers=docs_page.HEADERS)

    return tuple(
        Operation(name, "GET", path, handler, public=True)
        for name, path, handler in (
            ("livez", "/livez", livez),
            ("readyz", "/readyz", readyz),
            ("metrics", "/metrics", show_metrics),
            ("openapi", "/openapi.json", show_openapi),
            ("docs", "/docs", show_docs),
        )
    )
