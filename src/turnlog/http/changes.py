"""The change feed over HTTP: pages, pages that wait, and streams of Server-Sent Events. One resource, three ways."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from turnlog.errors import GoneError, OverloadedError
from turnlog.feed import PART_EVENTS, wake
from turnlog.http.events import (
    EVENT_STREAM,
    event_json,
    page_json,
    slices,
    stream_comment,
    stream_end,
    stream_start,
)
from turnlog.http.operations import Operation
from turnlog.http.responses import Response
from turnlog.http.streams import Rendered
from turnlog.keyring import unauthenticated
from turnlog.model import EVERYTHING, LogFilter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from turnlog.feed import Feed
    from turnlog.http.operations import Context
    from turnlog.http.requests import Request

DEFAULT_PAGE_EVENTS = 100
MAX_PAGE_BYTES = 4 * 1024 * 1024
"""A page that has so many ends there, whatever its limit."""
LOOK_FOR_S = 2.0
"""How long a page may look through a log for what its filters let through."""
_STORE_AWAY_S = 1.0
_NEVER = re.compile(rb"q=0(?:\.0{0,3})?")


async def _list_changes(context: Context, request: Request) -> Response:
    """A page of the feed; a stream, where the request accepts one."""
    query = request.query()
    wanted = LogFilter(query.event_types(), query.text("conversationId"), query.text("externalId"))
    limit, wait_s, after = query.limit(), query.wait_s(), query.one("after")
    account = request.key.account
    if _accepts_a_stream(request):
        last = request.fields.get(b"last-event-id")
        parameter = "Query 'after'"
        if last:  # an empty one is a browser's that has seen none
            after, parameter = last.decode("latin-1"), "Header 'Last-Event-ID'"
        place = await context.feed.place(account, after, parameter)
        if len(context.streams) >= context.streams.most:
            raise OverloadedError("too many streams are open", retry_after_s=1)
        return Response(stream=_stream(context, request, wanted, place), content_type=EVENT_STREAM)
    place = await context.feed.place(account, after)
    events, place = await _page(context, request, wanted, place, limit or DEFAULT_PAGE_EVENTS, wait_s)
    return Response(page_json(events, (await context.feed.cursors(account)).cursor(place)))


def _accepts_a_stream(request: Request) -> bool:
    for part in request.fields.get(b"accept", b"").lower().split(b","):
        media_type, *parameters = [piece.strip() for piece in part.split(b";")]
        if media_type == EVENT_STREAM:
            return not any(_NEVER.fullmatch(parameter) for parameter in parameters)
    return False


async def _page(
    context: Context, request: Request, wanted: LogFilter, place: int, limit: int, wait_s: float
) -> tuple[list[bytes], int]:
    """Up to ``limit`` events, and how far the log was looked through; what there is, as soon as there is any."""
    feed, account = context.feed, request.key.account
    cursors = await feed.cursors(account)
    events: list[bytes] = []
    now = asyncio.get_running_loop().time
    began, size = now(), 0
    while True:
        seen = feed.moves(account)
        await context.streams.turn()
        left = limit - len(events)
        # With a filter, what is looked at is more than what is found; what is found too much is left for the next page.
        part = await feed.part(account, wanted, place, left if wanted == EVERYTHING else PART_EVENTS)
        found = part.entries[:left]
        new = [event_json(entry, cursors.cursor(entry.position)) for entry in found]
        events += new
        size += sum(map(len, new))
        reached = part.reached if len(found) == len(part.entries) else found[-1].position
        at_end, place = reached == place, reached
        if len(events) >= limit or size >= MAX_PAGE_BYTES:
            break
        if not at_end:
            if now() > began + LOOK_FOR_S + wait_s:
                break
            continue
        left_s = began + wait_s - now()
        if events or left_s <= 0 or request.ends:
            break
        await _until_it_moves(feed, request, account, seen, min(left_s, context.streams.good_for_s(request)))
        if context.streams.good_for_s(request) <= 0:
            raise unauthenticated()
    return events, place


async def _until_it_moves(feed: Feed, request: Request, account: str, seen: int, seconds: float) -> None:
    """Return once there may be more, or the request should end; after ``seconds`` at the latest."""
    move = feed.next_move(account, seen)
    request.on_end = lambda: wake(move)
    timer = asyncio.get_running_loop().call_later(seconds, wake, move)
    try:
        if not request.ends:
            await move
    finally:
        timer.cancel()
        move.cancel()
        request.on_end = None


async def _stream(context: Context, request: Request, wanted: LogFilter, place: int) -> AsyncIterator[bytes]:
    """Everything behind ``place``, then everything as it comes, until the client, the key or the server goes."""
    feed, streams, account = context.feed, context.streams, request.key.account
    now = asyncio.get_running_loop().time
    cursors = await feed.cursors(account)
    with streams.open():
        yield stream_start(cursors.cursor(place))
        spoke_at = now()
        while not request.ends:
            left_s = streams.good_for_s(request)
            if left_s <= 0:
                return
            seen = feed.moves(account)
            wait_s = min(left_s, spoke_at + streams.comment_s - now())
            try:
                part = await streams.part(account, wanted, place)
            except GoneError:  # the next connection is told
                break
            except OverloadedError:  # what it has missed it will find in the log
                wait_s, part = min(wait_s, _STORE_AWAY_S), Rendered(b"", place)
                seen = feed.moves(account)
            if part.events:
                with streams.sending(request):
                    for slice_ in slices(part.events):
                        yield slice_
                        if request.gone:
                            return
                spoke_at = now()
            if part.reached > place:
                place = part.reached
            elif wait_s > 0:
                await _until_it_moves(feed, request, account, seen, wait_s)
            if now() >= spoke_at + streams.comment_s:
                yield stream_comment(cursors.cursor(place))
                spoke_at = now()
        if not request.gone:
            yield stream_end()


CHANGES = (Operation("list_changes", "GET", "/turnlog/v1/changes", _list_changes, "feed"),)
"""Turnlog's own: the feed."""
