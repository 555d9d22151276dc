"""Bytes to a connection: whatever pieces they come in, the same requests are served and the same answers given.

Behind the connection is an application that says what it was asked, so that a request that another reader of HTTP would
not see there, or would end elsewhere, shows.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
from typing import TYPE_CHECKING, Any, cast

import h11

from turnlog.config import Config
from turnlog.errors import Error
from turnlog.http.protocol import Protocol
from turnlog.http.requests import Budget, ClientGoneError
from turnlog.http.responses import Response, error_response, standing_headers
from turnlog.http.traffic import Traffic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from turnlog.http.app import App
    from turnlog.http.requests import Request
    from turnlog.metrics import Metrics

LIMITS = Config(max_target_bytes=200, max_header_bytes=400, max_headers=8, max_body_bytes=300, log_requests="none")
QUIET_TURNS = 4
Served = tuple[bytes, bytes, bytes | None]
"""Method, target and body of a request; no body where it was refused for its head or its size."""


class _Mirror:
    """An application that answers with what it was asked."""

    def __init__(self) -> None:
        self.served: list[Served] = []

    async def answer(self, request: Request) -> Response | None:
        request.id = "R"
        request.budget = Budget(1_000_000)
        request.max_body_bytes = LIMITS.max_body_bytes
        target = request.raw_path + (b"?" + request.query_string if request.query_string else b"")
        try:
            request.check_length()
            credentials, key = request.credentials(), request.idempotency_key()
            body = await request.body()
        except Error as error:
            self.served.append((request.method, target, None))
            return error_response(error, request.id)
        except ClientGoneError:
            return None
        self.served.append((request.method, target, body))
        said = [str(one) for one in (request.method, target, body, credentials, key)]
        return Response(json.dumps(said).encode())

    def answered(self, request: Request, response: Response) -> None:
        pass


class _Unmeasured:
    def request(self, operation: str, status: int, seconds: float) -> None:
        pass


class _Transport:
    """The near end of a connection whose far end takes everything at once."""

    def __init__(self, loop: asyncio.AbstractEventLoop, lost: Callable[[Exception | None], None]) -> None:
        self.written: list[bytes] = []
        self.reading, self.calls = True, 0
        self._loop, self._lost = loop, lost
        self._closing = self.ended = False

    def get_extra_info(self, name: str) -> tuple[str, int] | None:
        return ("127.0.0.1", 50_000) if name == "peername" else None

    def write(self, data: bytes) -> None:
        self.calls += 1
        if not self._closing:
            assert not self.ended, "written behind the end"
            self.written.append(data)

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._loop.call_soon(self._lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self.calls += 1


async def _converse(pieces: Iterable[bytes]) -> tuple[list[Served], bytes]:
    """What was served and what was answered, the end of the conversation included."""
    loop = asyncio.get_running_loop()
    broken: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: broken.append(context))
    app = _Mirror()
    traffic = Traffic(LIMITS, lambda: "R", cast("Metrics", _Unmeasured()))
    traffic.standing = standing_headers("now", secure=False)
    protocol = Protocol(cast("App", app), traffic, loop)
    transport = _Transport(loop, protocol.connection_lost)
    protocol.connection_made(cast("asyncio.Transport", transport))

    async def settle() -> None:
        calls, quiet = transport.calls, 0
        while quiet < QUIET_TURNS:
            await asyncio.sleep(0)
            calls, quiet = transport.calls, quiet + 1 if calls == transport.calls else 0

    for piece in pieces:
        if transport.is_closing():
            break
        protocol.data_received(piece)
        await settle()
        assert transport.reading or transport.is_closing(), "not read any more, and nothing is under way"
    if not transport.is_closing():
        if not protocol.eof_received():
            transport.close()
        await settle()
        transport.close()
    await settle()
    assert not traffic.connections
    assert not traffic.under_way
    assert not broken, broken
    return app.served, b"".join(transport.written)


def _pieces(content: bytes) -> list[list[bytes]]:
    """The same bytes in several ways."""
    chance = random.Random(content)  # noqa: S311 - a repeatable run, not a secret
    cuts = sorted(chance.randrange(len(content) + 1) for _ in range(3))
    parts = [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    lines = content.splitlines(keepends=True)
    ways = [[content], [part for part in parts if part], lines]
    return [*ways, [content[n : n + 1] for n in range(len(content))]] if len(content) <= 300 else ways


def seen_by_another(content: bytes) -> list[Served]:
    """The whole requests that another reader of HTTP/1.1 sees there, up to what it takes for none."""
    seen: list[Served] = []
    while True:
        reader = h11.Connection(h11.SERVER, max_incomplete_event_size=100_000)
        # Blank lines before a request, and blanks before its version, are nobody's.
        line, end, rest = content.lstrip(b"\r\n").partition(b"\r\n")
        reader.receive_data(re.sub(b" +HTTP/", b" HTTP/", line) + end + rest)
        try:
            event = reader.next_event()
            if not isinstance(event, h11.Request):
                return seen
            body = b""
            while isinstance(part := reader.next_event(), h11.Data):
                body += bytes(part.data)
            if not isinstance(part, h11.EndOfMessage):
                return seen
            seen.append((event.method, event.target, body))
            reader.send(h11.Response(status_code=200, headers=[(b"content-length", b"0")]))
            reader.send(h11.EndOfMessage())
            content = reader.trailing_data[0]
            reader.start_next_cycle()
        except h11.ProtocolError:
            return seen


_OF_TIMING = re.compile(rb"HTTP/1\.1 100 Continue\r\n\r\n")
"""Whether it is said depends on whether the body is there by then."""
_NO_REQUEST = re.compile(rb"HTTP/1\.1 4(?:00|05|14|31) [^{]*connection: close\r\n\r\n\{[^}]*\}\}")
"""Which of several things is wrong with a head depends on how much of it was there."""


_LONG_HEAD_BYTES = LIMITS.max_target_bytes + LIMITS.max_header_bytes


def _comparable(content: bytes, answered: bytes) -> bytes:
    """The answers without what may differ from one way of sending ``content`` to another."""
    text = _NO_REQUEST.sub(b"<no request>", _OF_TIMING.sub(b"", answered))
    # A head that is too long and never ends is refused when the next piece of it comes.
    never_ends = len(content.rpartition(b"\r\n\r\n")[2]) > _LONG_HEAD_BYTES
    return text.removesuffix(b"<no request>") if never_ends else text


async def _check(content: bytes) -> None:
    served, answered = await _converse([content] if content else [])
    for pieces in _pieces(content):
        again, said = await _converse(pieces)
        assert again == served, (pieces, again, served)
        assert _comparable(content, said) == _comparable(content, answered), (pieces, said, answered)
    other = seen_by_another(content)
    assert sum(body is not None for _, _, body in served) <= len(other), (served, other)
    for ours, theirs in zip(served, other, strict=False):
        assert ours[:2] == theirs[:2], (ours, theirs)
        assert ours[2] is None or ours[2] == theirs[2], (ours, theirs)


def check(content: bytes) -> None:
    """H01, H06. Any split gives the same answers; no request is served that another reader sees differently."""
    asyncio.run(_check(content))


WORDS = (b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"GET / HTTP/1.1\r\n", b"POST /a?b=c HTTP/1.1\r\n", b"Host: x\r\n",
         b"HEAD ", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length: +5\r\n",
         b"Content-Length: 5, 5\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: identity\r\n",
         b"Transfer-Encoding: gzip, chunked\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n",
         b"5;a=b\r\n", b"ffffffffffffffff\r\n", b" chunked", b"Connection: close\r\n", b"Connection: keep-alive\r\n",
         b"Connection: upgrade\r\nUpgrade: h2c\r\n", b"Expect: 100-continue\r\n",
         b"Content-Type: application/json\r\n", b"Idempotency-Key: k\r\n", b" HTTP/1.0\r\n",
         b"asapp-api-id: i\r\nasapp-api-secret: s\r\n", b"X: " + b"y" * 300 + b"\r\n", b"\r\n folded", b" :", b"\0",
         b"\x0b", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT x:1 HTTP/1.1\r\n", b"QUERY /", b"BREW /",
         b"http://x/")  # fmt: skip
