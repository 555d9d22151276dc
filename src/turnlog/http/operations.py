"""The operations as the wire has them: one row each; routes, permissions, OpenAPI, metrics and tests follow from it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import msgspec

from turnlog.feed import Feed
from turnlog.http.bodies import BodyReader
from turnlog.http.representations import conversation_view, encode, message_view
from turnlog.http.responses import Response
from turnlog.http.streams import Streams
from turnlog.model import Permission
from turnlog.service import Listing, Part, Service
from turnlog.webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from turnlog.config import Config
    from turnlog.http.requests import Request

    Handler = Callable[["Context", Request], Awaitable[Response]]


T = TypeVar("T")
DEFAULT_PAGE_MESSAGES = 100
"""The page size where ``after`` comes without ``limit``."""
LARGE_BODY_BYTES = 128 * 1024


class Context(msgspec.Struct, frozen=True):
    """What a handler works with."""

    service: Service
    bodies: BodyReader
    feed: Feed
    streams: Streams
    webhooks: Webhooks
    large_bodies: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)
    """One at a time is read: what becomes of them takes several times their size."""


class Operation(msgspec.Struct, frozen=True):
    """One operation. ``permission`` is what a key needs; ``public`` needs no key."""

    name: str
    method: str
    path: str
    handler: Handler
    permission: Permission | None = None
    public: bool = False
    batch: bool = False

    def max_body_bytes(self, config: Config) -> int:
        """The limit that its body is under."""
        return config.max_batch_body_bytes if self.batch else config.max_body_bytes


async def read_body(
    context: Context, read: Callable[[bytes], T], request: Request, *, to_be_recorded: bool = False
) -> T:
    """Read the body; a large one on a thread, because a body made for it takes a part of a second to look through.

    What came to be too much to be recorded while it arrived, or while it waited, is refused before the work begins.
    """
    raw = await request.body()
    if to_be_recorded:
        context.service.check_room(request.key)
    if len(raw) <= LARGE_BODY_BYTES:
        return read(raw)
    async with context.large_bodies:
        if to_be_recorded:
            context.service.check_room(request.key)
        return await asyncio.to_thread(read, raw)


async def _read(context: Context, read: Callable[[bytes], T], request: Request) -> T:
    return await read_body(context, read, request, to_be_recorded=True)


async def _create_conversation(context: Context, request: Request) -> Response:
    new = await _read(context, context.bodies.conversation, request)
    conversation_id = await context.service.create_conversation(request.key, new)
    return Response(encode({"id": conversation_id}))


async def _find_conversations(context: Context, request: Request) -> Response:
    found = await context.service.find_conversations(request.key, request.query().external_id())
    return Response(encode({"items": [conversation_view(conversation) for conversation in found]}))


async def _read_conversation(context: Context, request: Request) -> Response:
    found = await context.service.read_conversation(request.key, request.path["conversationId"])
    return Response(encode(conversation_view(found)))


async def _create_message(context: Context, request: Request) -> Response:
    key = request.idempotency_key()
    message = await _read(context, context.bodies.message, request)
    message_id = await context.service.create_message(request.key, request.path["conversationId"], message, key)
    return Response(b'{"id":"%s"}' % message_id.encode())


async def _create_messages(context: Context, request: Request) -> Response:
    key = request.idempotency_key()
    messages = await _read(context, context.bodies.batch, request)
    ids = await context.service.create_messages(request.key, request.path["conversationId"], messages, key)
    return Response(encode({"ids": ids}))


async def _list_messages(context: Context, request: Request) -> Response:
    return await _listing(context, request, request.path["conversationId"])


async def _list_messages_by_external_id(context: Context, request: Request) -> Response:
    query = request.query()
    external_id = query.external_id()
    query.limit()  # what is malformed is told before what does not exist
    return await _listing(context, request, await context.service.conversation_id_of(request.key, external_id))


async def _listing(context: Context, request: Request, conversation_id: str) -> Response:
    """The first part is read before the answer begins, so that an error is an error; a short listing is sent whole."""
    query = request.query()
    limit, after = query.limit(), query.one("after")
    if after is not None and limit is None:
        limit = DEFAULT_PAGE_MESSAGES
    listing = await context.service.list_messages(request.key, conversation_id, limit=limit, after=after)
    first = await listing.part()
    if first.last:
        return Response(b'{"items":[' + _items(first) + _end(first))
    return Response(stream=_stream(first, listing))


def _items(part: Part) -> bytes:
    return encode([message_view(message) for message in part.items])[1:-1]


def _end(part: Part) -> bytes:
    return b"]}" if part.next_cursor is None else b'],"nextCursor":"%s"}' % part.next_cursor.encode()


async def _stream(first: Part, listing: Listing) -> AsyncIterator[bytes]:
    yield b'{"items":[' + _items(first)
    part = first
    while not part.last:
        part = await listing.part()
        if part.items:
            yield b"," + _items(part)
        await asyncio.sleep(0)  # a fast reader never makes the socket wait: let the others have their turn
    yield _end(part)


async def _read_message(context: Context, request: Request) -> Response:
    path = request.path
    found = await context.service.read_message(request.key, path["conversationId"], path["messageId"])
    return Response(encode(message_view(found)))


async def _authenticate(context: Context, request: Request) -> Response:
    fact = await _read(context, context.bodies.authentication, request)
    await context.service.authenticate(request.key, request.path["conversationId"], fact)
    return Response(status=204)


async def _health(context: Context, _request: Request) -> Response:
    healthy = await context.service.is_healthy()
    return Response(encode({"healthCheck": "SUCCESS" if healthy else "FAILED"}))


_V1 = "/conversation/v1"
_ONE = f"{_V1}/conversations/{{conversationId}}"

OPERATIONS = (
    Operation("create_conversation", "POST", f"{_V1}/conversations", _create_conversation, "conversations:write"),
    Operation("find_conversations", "GET", f"{_V1}/conversations", _find_conversations, "read"),
    Operation("read_conversation", "GET", _ONE, _read_conversation, "read"),
    Operation("create_message", "POST", f"{_ONE}/messages", _create_message, "messages:write"),
    Operation("list_messages", "GET", f"{_ONE}/messages", _list_messages, "read"),
    Operation("read_message", "GET", f"{_ONE}/messages/{{messageId}}", _read_message, "read"),
    Operation("create_messages", "POST", f"{_ONE}/messages/batch", _create_messages, "messages:write", batch=True),
    Operation(
        "list_messages_by_external_id",
        "GET",
        f"{_V1}/conversation/messages",
        _list_messages_by_external_id,
        "read",
    ),
    Operation("authenticate", "POST", f"{_ONE}/authenticate", _authenticate, "conversations:write"),
    Operation("health", "GET", "/v1/health", _health),
)
"""The nine operations of the contract in its order, and health."""
