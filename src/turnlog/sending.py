"""Sends a webhook's requests over HTTP. The only module that knows aiohttp.

The receiver is whoever an account's owner has named, so it is trusted with nothing: not with where the request goes
(the address that a socket is about to be connected to is judged, whatever a name meant before), not with time (one
deadline for all of it), not with memory (a few kilobytes are read), not with what is shown to people.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import io
import os
import socket
import ssl
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler

from turnlog import __version__
from turnlog.addresses import RefusedUrlError, check_url, refuse_reason
from turnlog.lookups import SystemResolver
from turnlog.sent import Sender, Sent
from turnlog.signing import BadSecretError, live, signed_headers

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from aiohttp.client_reqrep import ClientResponse
    from aiohttp.connector import Connection
    from aiohttp.http_parser import RawResponseMessage
    from aiohttp.streams import StreamReader

    from turnlog.model import Webhook

    Resolve = Callable[[str], Awaitable[Sequence[str]]]
    """The addresses of a name. Raises OSError."""

DEADLINE_S = 15.0
"""For one attempt: name, connection, TLS, request, answer."""
_CONNECT_SHARE = 1 / 3
"""Of the deadline, for one address: that leaves time for the name's next one."""
CONNECTIONS = 512
"""At most, to all receivers together; whoever calls ``send`` for more at once has them wait within their deadlines."""
MAX_ANSWER_BYTES = 64 * 1024
"""Of its body."""
_MAX_HEAD_BYTES = 64 * 1024
_MAX_HEADS = 8
"""Of one answer: interim ones (1xx) and the last."""
_PART_BYTES = 4096
MAX_EXCERPT_BYTES = 1024
MAX_RETRY_AFTER_S = 24 * 3600.0
_MAX_ADDRESSES = 4
"""Of a name: its owner says how many it has, and each is one connection that we can be made to try."""
_MAX_PLAIN_BYTES = 1024 * 1024
"""What is larger goes to aiohttp as a file, which it writes in parts; as it is, aiohttp warns of it."""
_KEEPALIVE_S = 15.0
_US_PER_S = 1_000_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_destination = functools.lru_cache(maxsize=4096)(check_url)


class RefusedAddressError(OSError):
    """The name or the URL leads to an address that nothing is sent to."""


class _Exchange:
    """What is under way for one attempt: the connection, for as long as it is this attempt's."""

    __slots__ = ("reused", "transport")

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.reused = False

    def abort(self) -> None:
        """Drop the connection and what it has not sent yet; closing it would wait for the receiver to take that."""
        if self.transport is not None:
            self.transport.abort()


_exchange: ContextVar[_Exchange] = ContextVar("_exchange")
_used: WeakSet[ResponseHandler] = WeakSet()


class _Request(aiohttp.ClientRequest):
    """Tells its attempt which connection it is sent on."""

    async def send(self, conn: Connection) -> ClientResponse:
        exchange = _exchange.get()
        exchange.transport = conn.transport
        if conn.protocol is not None:
            exchange.reused = conn.protocol in _used
            _used.add(conn.protocol)
        return await super().send(conn)


class _Protocol(ResponseHandler):
    """Takes in so much of an answer and no more, in small parts.

    aiohttp parses at once whatever has come, a quarter of a megabyte at a time, and goes on for as long as interim
    answers (1xx) come: a receiver that sends nothing else would have the event loop to itself.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._left = 0
        self._heads = 0

    def set_response_params(self, **params: Any) -> None:
        self._left = MAX_ANSWER_BYTES + _MAX_HEAD_BYTES
        self._heads = 0
        super().set_response_params(**params)

    def feed_data(self, data: tuple[RawResponseMessage, StreamReader], size: int = 0) -> None:
        """One head, and what will be its body."""
        self._heads += 1
        super().feed_data(data, size)

    def data_received(self, data: bytes) -> None:
        if not data:  # the parser's own way to go on with what it has kept
            super().data_received(data)
            return
        # What goes beyond is dropped at first and the connection next time, so that what came before gets read.
        transport = self.transport
        over = not self._left
        taken = data[: self._left]
        self._left -= len(taken)
        for start in range(0, len(taken), _PART_BYTES):
            super().data_received(taken[start : start + _PART_BYTES])
            over = over or self._heads > _MAX_HEADS
            if over or self.transport is None or self.transport.is_closing():
                break
        if over and transport is not None:
            transport.abort()


class _Connector(aiohttp.TCPConnector):
    """Has connections read by ``_Protocol``; tests/test_sending.py does not pass where aiohttp does not do so."""

    def __init__(self, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(**options)
        self._factory = functools.partial(_Protocol, loop=loop)  # type: ignore[assignment]


class _Resolver(AbstractResolver):
    """``Resolve`` as aiohttp wants it."""

    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        addresses = list(dict.fromkeys(await self._resolve(host)))[:_MAX_ADDRESSES]
        if not addresses:
            raise OSError(errno.ENOENT, "it has no address")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=socket.AI_NUMERICHOST)
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is held."""


class HttpSender(Sender):
    """Made within a running event loop, and closed there.

    ``allow_private``: see addresses.py. ``refuse`` takes the place of its judgement on an address.
    """

    def __init__(
        self,
        now_us: Callable[[], int],
        *,
        allow_private: bool = False,
        deadline_s: float = DEADLINE_S,
        connections: int = CONNECTIONS,
        tls: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
        refuse: Callable[[str], str | None] | None = None,
    ) -> None:
        self._now_us = now_us
        self._allow_private = allow_private
        self._deadline_s = deadline_s
        self._refuse = refuse or (lambda address: refuse_reason(address, allow_private=allow_private))
        self._loop = asyncio.get_running_loop()
        connector = _Connector(
            self._loop,
            limit=connections,
            keepalive_timeout=_KEEPALIVE_S,
            resolver=_Resolver(resolve or SystemResolver()),
            # One address after the other, each through ``_socket``: there is no other way to a connection.
            happy_eyeballs_delay=None,
            socket_factory=self._socket,
            ssl=tls or ssl.create_default_context(),
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            request_class=_Request,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=deadline_s * _CONNECT_SHARE, ceil_threshold=float("inf")
            ),
            headers={
                "Content-Type": "application/json",
                "User-Agent": f"turnlog/{__version__}",
                "Accept-Encoding": "identity",
            },
            read_bufsize=MAX_ANSWER_BYTES // 4,
        )

    async def close(self) -> None:
        """Close every connection; what is under way fails."""
        await self._session.close()

    async def send(self, webhook: Webhook, event_id: str, body: bytes) -> Sent:
        """See Sender. At most one request reaches the receiver, but for one on a kept connection that it had closed."""
        started = self._loop.time()
        exchange = _Exchange()
        _exchange.set(exchange)
        try:
            return await self._attempt(webhook, event_id, body, started, exchange)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this attempt's outcome and nobody else's
            exchange.abort()
            return Sent(status=None, error=self._described(error), seconds=self._loop.time() - started)
        except BaseException:
            exchange.abort()
            raise

    async def _attempt(self, webhook: Webhook, event_id: str, body: bytes, started: float, exchange: _Exchange) -> Sent:
        destination = _destination(webhook.url, allow_private=self._allow_private)
        now_us = self._now_us()
        headers = signed_headers(live(webhook.secrets, now_us), event_id, now_us // _US_PER_S, body)
        deadline = started + self._deadline_s
        async with asyncio.timeout_at(deadline):
            response = await self._post(destination.url, headers, body, exchange)
        excerpt = await _read_excerpt(response, exchange, deadline)
        retry_after = response.headers.get("Retry-After")
        return Sent(
            status=response.status,
            error="",
            seconds=self._loop.time() - started,
            retry_after_s=None if retry_after is None else read_retry_after(retry_after, now_us),
            excerpt=excerpt,
        )

    async def _post(
        self, url: str, headers: dict[str, str], body: bytes, exchange: _Exchange
    ) -> aiohttp.ClientResponse:
        """The beginning of the answer.

        That a kept connection was closed just now says nothing of its receiver, so that the request goes out once more;
        should it have arrived after all, its id says that it is the same.
        """
        while True:
            try:
                data = body if len(body) <= _MAX_PLAIN_BYTES else io.BytesIO(body)
                return await self._session.post(url, data=data, headers=headers, allow_redirects=False)
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                if isinstance(error, aiohttp.ClientConnectorError) or not exchange.reused:
                    raise
                exchange.reused = False

    def _socket(self, info: tuple[int, int, int, str, tuple[object, ...]]) -> socket.socket:
        """A socket that aiohttp connects to the address in ``info``, unless that is refused.

        Called for each connection with exactly the address that it is then made to: a name's as well as a literal one.
        """
        family, kind, protocol, _, where = info
        address = str(where[0])
        reason = self._refuse(address)
        if reason is not None:
            raise RefusedAddressError(errno.EACCES, f"address {address} is {reason}")
        made = socket.socket(family, kind, protocol)
        if sys.platform == "linux":
            # A connection that was closed with data that its receiver does not take ends with this, not with the
            # receiver.
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self._deadline_s * 1000))
        return made

    def _described(self, error: Exception) -> str:
        """A short text for people, without anything of the request's in it."""
        match error:
            case aiohttp.ServerTimeoutError():
                text = f"no connection within {self._deadline_s * _CONNECT_SHARE:g} s"
            case TimeoutError():
                text = f"timed out after {self._deadline_s:g} s"
            case RefusedUrlError() | BadSecretError():
                text = str(error)
            case aiohttp.ClientConnectorCertificateError():
                text = f"certificate: {getattr(error.certificate_error, 'verify_message', '') or 'not valid'}"
            case aiohttp.ClientConnectorDNSError():
                text = f"the name was not found: {error.os_error.strerror or 'no reason given'}"
            case aiohttp.ClientConnectorError():
                text = _described_by_system(error.os_error)
            case aiohttp.ServerDisconnectedError():
                text = "the connection was closed without an answer"
            case aiohttp.ClientResponseError():
                text = "the answer is not HTTP"
            case OSError():
                text = _described_by_system(error)
            case _:
                text = f"failed: {type(error).__name__}"
        return text


def _described_by_system(error: OSError) -> str:
    if isinstance(error, RefusedAddressError):
        return str(error.strerror)
    if isinstance(error, ssl.SSLError):
        return f"TLS: {(error.reason or 'failed').replace('_', ' ').lower()}"
    return os.strerror(error.errno).lower() if error.errno else "connection failed"


async def _read_excerpt(response: aiohttp.ClientResponse, exchange: _Exchange, deadline: float) -> str:
    """The beginning of the body, for people.

    The answer stands, whatever becomes of its rest: what was asked for is done or not done by then. The connection is
    kept only where all of the body has come.
    """
    beginning = bytearray()
    size = 0
    whole = False
    try:
        async with asyncio.timeout_at(deadline):
            while size < MAX_ANSWER_BYTES and not whole:
                part = await response.content.readany()
                whole = not part
                size += len(part)
                beginning += part[: MAX_EXCERPT_BYTES - len(beginning)]
    except (aiohttp.ClientError, TimeoutError):
        pass
    finally:
        # A connection whose answer has ended may be somebody else's by now, even where this is not read to its end.
        if response.connection is not None:
            exchange.abort()
        exchange.transport = None
        response.close()
    text = beginning.decode("utf-8", "replace")
    return "".join(char if char.isprintable() else " " for char in text).strip()


def read_retry_after(text: str, now_us: int) -> float | None:
    """What a Retry-After header asks for (RFC 9110, 10.2.3), from 0 to MAX_RETRY_AFTER_S; ``None`` for nonsense."""
    text = text.strip()
    if text.isascii() and text.isdecimal():
        return MAX_RETRY_AFTER_S if len(text.lstrip("0")) > 6 else min(float(text), MAX_RETRY_AFTER_S)
    try:
        at = parsedate_to_datetime(text)
        seconds = (at.replace(tzinfo=at.tzinfo or UTC) - _EPOCH).total_seconds() - now_us / _US_PER_S
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
