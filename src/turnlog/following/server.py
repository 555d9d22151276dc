"""Following a log through a running server: as Server-Sent Events, resumed where they were cut; in pages to its end."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, NoReturn
from urllib.parse import urlencode

import msgspec
import urllib3

from turnlog.errors import SettingError
from turnlog.feed import NOW
from turnlog.following.protocol import Event
from turnlog.http.events import RETRY_MS
from turnlog.targets.remote import credentials, key_refused, reason, redirected, said, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from turnlog.following.protocol import Say, Take, Wanted

_CHANGES = "/turnlog/v1/changes"
_EVENT_STREAM = "text/event-stream"
CONNECT_S = 5.0
SILENCE_S = 60.0
"""After so long without even a comment, a stream is taken for dead; servers comment every 15 seconds."""
_LONGEST_PAUSE_S = 30.0
_PAGE_EVENTS = 1000
_READ_BYTES = 64 * 1024
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")
"""An id with one of these is none: it could not be sent back in a header."""
_UNSURE = frozenset({408, 429, 500, 502, 503, 504})


class _CutError(Exception):
    """The way to the server was lost, or it cannot answer now."""

    def __init__(self, why: str, pause_s: float = 0.0) -> None:
        super().__init__(why)
        self.pause_s = pause_s


class _Page(msgspec.Struct, rename="camel"):
    items: list[msgspec.Raw]
    next_cursor: str


class _Id(msgspec.Struct):
    id: str


class Parser:
    """Server-Sent Events (WHATWG HTML, 9.2.6) out of bytes as they come, whatever their boundaries.

    ``last_id`` moves only with a whole block: one that was cut within was not received.
    """

    def __init__(self, last_id: str) -> None:
        self.last_id = last_id
        self.retry_ms: int | None = None
        self._rest = b""
        self._id = last_id
        self._data: list[bytes] = []

    def feed(self, content: bytes) -> list[Event]:
        """The events that ``content`` completes."""
        *lines, self._rest = (self._rest + content).split(b"\n")
        events = []
        for raw in lines:
            line = raw.removesuffix(b"\r")
            if line:
                self._field(line)
                continue
            self.last_id = self._id
            if self._data:
                events.append(Event(self._id, b"\n".join(self._data)))
                self._data = []
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"id" and not _CONTROL.search(value):
            self._id = value.decode("latin-1")
        elif name == b"data":
            self._data.append(value)
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value[:9])


def follow_server(  # noqa: PLR0913 - the last four are a test's
    url: str,
    key: tuple[str, str],
    wanted: Wanted,
    take: Take,
    say: Say,
    *,
    connect_s: float = CONNECT_S,
    silence_s: float = SILENCE_S,
    sleep: Callable[[float], None] = time.sleep,
    random: Callable[[], float],
) -> None:
    """Give ``take`` the log that the key opens; returns at its end where it is not to be followed.

    A connection that is lost, or on which nothing is heard for ``silence_s``, is made again for ever, without a gap or
    a repeat; the first one must succeed. Raises SettingError where the server refuses: the key, its permission, the
    place in the log.
    """
    headers = credentials(url, *key)
    timeout = urllib3.Timeout(connect=connect_s, read=silence_s)
    with urllib3.PoolManager(num_pools=1, headers=headers, timeout=timeout) as pool:
        connection = _Follower(url.rstrip("/"), pool, wanted, take)
        failures = 0
        told = False
        while True:
            try:
                for _ in connection.stream() if wanted.follow else connection.pages():
                    if told:
                        say("connected again")
                    failures, told = 0, False
                if not wanted.follow:
                    return
                problem = _CutError("the server has ended the stream")
            except _CutError as error:
                problem = error
            if not told:
                say(f"disconnected from {connection.url}, trying again: {problem}")
                told = True
            pause_s = min(connection.retry_s * 2**failures, _LONGEST_PAUSE_S)
            # Many that were cut together should not all come back together.
            sleep(max(problem.pause_s, pause_s * (1 + random() / 2)))
            failures = min(failures + 1, 10)


class _Follower:
    """One place in the log, and the requests that move it."""

    def __init__(self, url: str, pool: urllib3.PoolManager, wanted: Wanted, take: Take) -> None:
        self.url = url
        self.retry_s = RETRY_MS / 1000
        self._pool = pool
        self._take = take
        self._reached_once = False
        self._after = wanted.after or NOW
        self._moved = False
        one = wanted.filter
        types = None if one.types is None else ",".join(sorted(one.types))
        named = {"types": types, "conversationId": one.conversation_id, "externalId": one.external_id}
        self._query = {name: value for name, value in named.items() if value is not None}

    def stream(self) -> Iterator[None]:
        """Take events until the stream ends; yields each time that anything came. Raises _CutError."""
        if self._moved:  # what the caller named is in the query, so that a refusal speaks of that
            response = self._ask({"accept": _EVENT_STREAM, "last-event-id": self._after}, self._query)
        else:
            response = self._ask({"accept": _EVENT_STREAM}, self._query | self._place())
        try:
            if response.headers.get("content-type", "").partition(";")[0] != _EVENT_STREAM:
                self._stranger()
            parser = Parser(self._after)
            while content := self._read(response):
                events = parser.feed(content)
                if parser.retry_ms is not None:
                    self.retry_s = parser.retry_ms / 1000
                if events or parser.last_id != self._after:
                    self._after, self._moved = parser.last_id, True
                    self._take(events, self._after)
                yield
        finally:
            response.close()

    def pages(self) -> Iterator[None]:
        """Take what there is, page by page, to the page that brings nothing new. Raises _CutError."""
        while True:
            response = self._ask({"accept": "application/json"}, self._query | self._place() | {"limit": _PAGE_EVENTS})
            try:
                content = b"".join(iter(lambda: self._read(response), b""))  # noqa: B023 - it is used up at once
            finally:
                response.release_conn()
            try:
                page = msgspec.json.decode(content, type=_Page)
                events = [Event(msgspec.json.decode(item, type=_Id).id, bytes(item)) for item in page.items]
            except (msgspec.DecodeError, UnicodeDecodeError):
                self._stranger()
            at_end, self._after = page.next_cursor == self._after, page.next_cursor
            self._take(events, self._after)
            yield
            if at_end:
                return

    def _place(self) -> dict[str, str]:
        return {"after": self._after}

    def _ask(self, headers: dict[str, str], query: Mapping[str, object]) -> urllib3.BaseHTTPResponse:
        """An answer that is good, its body unread. Raises SettingError where asking again would not help."""
        try:
            response = self._pool.request(
                "GET",
                f"{self.url}{_CHANGES}?{urlencode(query)}",
                headers={**self._pool.headers, **headers},
                preload_content=False,
                retries=False,
                redirect=False,
            )
        except urllib3.exceptions.HTTPError as error:
            if not self._reached_once:
                raise SettingError(f"cannot reach {self.url}: {reason(error)}") from None
            raise _CutError(reason(error)) from None
        self._reached_once = True
        if response.status == 200:
            return response
        try:
            self._refused(response)
        finally:
            response.close()

    def _refused(self, response: urllib3.BaseHTTPResponse) -> NoReturn:
        status = response.status
        try:
            why = said(response.data)
        except urllib3.exceptions.HTTPError as error:
            raise _CutError(reason(error)) from None
        if status in _UNSURE:
            pause_s = min(seconds(response.headers.get("retry-after")), _LONGEST_PAUSE_S)
            raise _CutError(f"it answers {status}: {why}", pause_s)
        if status == 401:
            raise key_refused(self.url)
        if status == 403:
            raise SettingError(f"{why}: make one with `turnlog keys create NAME --permission feed`")
        if 300 <= status < 400:
            raise redirected(self.url, response.headers)
        if status in {400, 410, 422}:
            raise SettingError(f"{self.url} answers {status}: {why}")
        raise SettingError(f"no change feed at {self.url}: it answers {status} ({why})")

    def _read(self, response: urllib3.BaseHTTPResponse) -> bytes:
        """Some of the body, as soon as there is any; nothing at its end."""
        try:
            return response.read1(_READ_BYTES)
        except urllib3.exceptions.HTTPError as error:
            raise _CutError(reason(error)) from None

    def _stranger(self) -> NoReturn:
        raise SettingError(f"{self.url} does not answer as Turnlog's change feed")
