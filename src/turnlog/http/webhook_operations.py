"""The operations on webhooks, as rows of the table."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from turnlog.http.operations import Operation, read_body
from turnlog.http.representations import attempt_view, encode, failed_view, webhook_view
from turnlog.http.responses import Response
from turnlog.http.webhook_bodies import replay_body, rotation_body, webhook_body, webhook_change_body

if TYPE_CHECKING:
    from turnlog.http.operations import Context, Handler
    from turnlog.http.requests import Request

DEFAULT_PAGE_FAILED = 100


async def _create(context: Context, request: Request) -> Response:
    new = await read_body(context, webhook_body, request)
    made = await context.webhooks.create_webhook(request.key.account, new)
    return Response(encode(webhook_view(made, with_secret=True)))


async def _list(context: Context, request: Request) -> Response:
    found = await context.webhooks.list_webhooks(request.key.account)
    return Response(encode({"items": [webhook_view(one) for one in found]}))


async def _read(context: Context, request: Request) -> Response:
    found = await context.webhooks.read_webhook(request.key.account, request.path["webhookId"])
    return Response(encode(webhook_view(found)))


async def _change(context: Context, request: Request) -> Response:
    change = await read_body(context, webhook_change_body, request)
    changed = await context.webhooks.change_webhook(request.key.account, request.path["webhookId"], change)
    return Response(encode(webhook_view(changed)))


async def _rotate(context: Context, request: Request) -> Response:
    secret, old_ends_s = await read_body(context, rotation_body, request)
    rotated = await context.webhooks.rotate_webhook(request.key.account, request.path["webhookId"], secret, old_ends_s)
    return Response(encode(webhook_view(rotated, with_secret=True)))


async def _test(context: Context, request: Request) -> Response:
    sent = await context.webhooks.test_webhook(request.key.account, request.path["webhookId"])
    return Response(encode(attempt_view(sent)))


async def _list_failed_events(context: Context, request: Request) -> Response:
    query = request.query()
    limit, after = query.limit() or DEFAULT_PAGE_FAILED, query.one("after")
    page = await context.webhooks.list_failed_events(
        request.key.account, request.path["webhookId"], limit=limit, after=after
    )
    return Response(encode(failed_view(page)))


async def _replay(context: Context, request: Request) -> Response:
    replay = await read_body(context, replay_body, request)
    done = await context.webhooks.replay_webhook(request.key.account, request.path["webhookId"], replay)
    return Response(encode({"replayed": done} if isinstance(done, int) else {"cursor": done}))


async def _delete(context: Context, request: Request) -> Response:
    await context.webhooks.delete_webhook(request.key.account, request.path["webhookId"])
    return Response(status=204)


def _row(name: str, method: str, path: str, handler: Handler) -> Operation:
    async def in_a_task(context: Context, request: Request) -> Response:
        # Drivers and the HTTP client ask for the current task (see steps.py); these are rare, so a task costs nothing.
        return await asyncio.ensure_future(handler(context, request))

    return Operation(name, method, f"/turnlog/v1/webhooks{path}", in_a_task, "feed")


WEBHOOK_OPERATIONS = (
    _row("create_webhook", "POST", "", _create),
    _row("list_webhooks", "GET", "", _list),
    _row("read_webhook", "GET", "/{webhookId}", _read),
    _row("change_webhook", "PATCH", "/{webhookId}", _change),
    _row("rotate_webhook", "POST", "/{webhookId}/rotate", _rotate),
    _row("test_webhook", "POST", "/{webhookId}/test", _test),
    _row("list_failed_events", "GET", "/{webhookId}/failed", _list_failed_events),
    _row("replay_webhook", "POST", "/{webhookId}/replay", _replay),
    _row("delete_webhook", "DELETE", "/{webhookId}", _delete),
)
"""Turnlog's own: webhooks."""
