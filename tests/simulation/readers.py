"""Readers of the feed, by pages, by pages that wait, and by streams; each resumes where it was and sees the log."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import msgspec

from tests.simulation.loop import OUTSIDE
from tests.simulation.network import reset
from turnlog.errors import Error
from turnlog.http.changes import CHANGES
from turnlog.http.requests import Request

if TYPE_CHECKING:
    from tests.simulation.loop import SimulatedFuture
    from tests.simulation.network import Network
    from tests.simulation.node import Node
    from tests.simulation.world import World
    from turnlog.http.responses import Response
    from turnlog.model import Entry, LogFilter

_AGAIN_S = 1.0
_HEADERS = [(b"asapp-api-id", b"id"), (b"asapp-api-secret", b"secret")]
_changes: Any = CHANGES[0].handler


class _Event(msgspec.Struct):
    id: str


class _Page(msgspec.Struct, rename="camel"):
    items: list[_Event]
    next_cursor: str


class _Held(msgspec.Struct):
    """What a request has instead of a key: its account."""

    account: str

    @property
    def key(self) -> _Held:
        return self


class Reader:
    """Follows one account's log from a cursor on, and keeps what it was given in the order in which it came."""

    def __init__(self, world: World, network: Network, account: str, wanted: LogFilter, kind: str) -> None:
        self._world = world
        self._network = network
        self.account = account
        self.wanted = wanted
        self.kind = kind
        self.after = "beginning"
        self.seen: list[str] = []
        self.refusals: list[str] = []
        self.is_done = False

    def expected(self) -> list[Entry]:
        return [
            entry
            for entry in self._world.log(self.account)
            if (self.wanted.types is None or entry.type in self.wanted.types)
            and self.wanted.conversation_id in (None, entry.conversation_id)
        ]

    async def run(self) -> None:
        """Until ``is_done``."""
        world = self._world
        while not self.is_done:
            machines = [number for number, node in sorted(self._network.nodes.items()) if node.accepts]
            if not machines:
                await asyncio.sleep(_AGAIN_S)
                continue
            node = self._network.nodes[world.random.choice(machines)]
            try:
                await (self._stream(node) if self.kind == "stream" else self._page(node))
            except (ConnectionError, TimeoutError):
                await asyncio.sleep(_AGAIN_S)
            except Error as error:
                if not error.code.startswith("503"):
                    self.refusals.append(f"{error.code} {error.message}")
                await asyncio.sleep(_AGAIN_S)

    def _request(self, *, stream: bool) -> Request:
        world = self._world
        words = [f"after={self.after}"]
        if self.wanted.types is not None:
            words.append(f"types={','.join(sorted(self.wanted.types))}")
        if self.wanted.conversation_id is not None:
            words.append(f"conversationId={self.wanted.conversation_id}")
        headers = list(_HEADERS)
        if stream:
            headers.append((b"accept", b"text/event-stream"))
        else:
            words.append(f"limit={world.random.choice((1, 3, 20, 200))}")
            words.append(f"wait={5 if self.kind == 'waiting' else 0}")
        target = f"/turnlog/v1/changes?{'&'.join(words)}".encode()
        request = Request(b"GET", target, "1.1", headers, keep_alive=True, on_body_wanted=_never)
        held: Any = _Held(self.account)
        request.held = held
        return request

    async def _page(self, node: Node) -> None:
        world, request = self._world, self._request(stream=False)
        answer = world.loop.create_future()
        async with asyncio.timeout(20):
            response: Response = await self._ask(node, request, answer)
        page = msgspec.json.decode(response.body, type=_Page)
        self.seen += [event.id for event in page.items]
        self.after = page.next_cursor
        await world.sleep((0.0, 0.3) if self.kind == "waiting" else (0.5, 2.0))

    async def _ask(self, node: Node, request: Request, answer: SimulatedFuture) -> Response:
        """The request's way there and back. Raises ConnectionError, and what the node refuses it with."""
        world = self._world
        await world.sleep(world.weather.way_s)
        if not node.accepts or not node.is_alive:
            raise ConnectionError
        self._network.open(node, answer, _handled(node, request))
        node.streams.append(request)
        if world.dice(world.weather.cut):
            world.loop.call_later(world.random.random() * 3.0, reset, answer, context=OUTSIDE)
        try:
            found = await answer
        finally:
            request.lose()
            node.streams.remove(request)
        if isinstance(found, Error):
            raise found
        return found  # type: ignore[no-any-return]

    async def _stream(self, node: Node) -> None:
        """A stream until it is cut, of which the last part may come in half."""
        world, request = self._world, self._request(stream=True)
        await world.sleep(world.weather.way_s)
        if not node.accepts or not node.is_alive:
            raise ConnectionError
        ended = world.loop.create_future()
        text = bytearray()

        def receive(part: bytes) -> None:
            """Some of it may come with the next part only, or never."""
            if ended.done():
                return
            text.extend(part)
            came = bytearray(text[: world.random.randint(0, len(text))]) if world.dice(0.1) else text
            rest = b"" if came is text else bytes(text[len(came) :])
            self._take(came)
            text[:] = came + rest if rest else came

        self._network.open(node, ended, _streamed(node, request, receive))
        node.streams.append(request)
        if world.dice(max(world.weather.cut, 0.02)):
            world.loop.call_later(world.random.random() * 20.0, reset, ended, context=OUTSIDE)
        try:
            found = await ended
        finally:
            request.lose()
            node.streams.remove(request)
        if isinstance(found, Error):
            raise found
        await asyncio.sleep(_AGAIN_S)

    def _take(self, text: bytearray) -> None:
        """Dispatch what is complete, as a browser does."""
        while (end := text.find(b"\n\n")) >= 0:
            block = bytes(text[:end])
            del text[: end + 2]
            fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
            if b"data" in fields:
                self.seen.append(fields[b"id"].decode())
            if b"id" in fields:
                self.after = fields[b"id"].decode()


def _never() -> asyncio.Future[None]:
    raise AssertionError("nobody reads a body here")


async def _handled(node: Node, request: Request) -> object:
    try:
        return await _changes(node.context, request)
    except Error as error:
        return error


async def _streamed(node: Node, request: Request, receive: Any) -> object:
    try:
        response = await _changes(node.context, request)
        async with aclosing(response.stream) as stream:
            async for part in stream:
                receive(part)
                await asyncio.sleep(node.world.random.random() * 0.002)  # the reader takes it
                if request.gone:
                    break
    except Error as error:
        return error
    return None
