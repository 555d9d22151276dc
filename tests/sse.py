"""A reader of Server-Sent Events over a bare connection, as the WHATWG's specification reads them."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness import Key, Server

CHANGES = "/turnlog/v1/changes"


class Event(NamedTuple):
    """What was dispatched: the last event id at that time, the type, the data."""

    id: str
    type: str
    data: Any


class Stream:
    """One stream; ``last_id`` and ``retry_ms`` are what a browser would remember. Ended, ``whole`` says how."""

    def __init__(self, server: Server, key: Key, query: str = "", last_id: str = "", timeout_s: float = 30) -> None:
        self.last_id = last_id
        self.retry_ms: int | None = None
        self.comments = 0
        self.whole = False
        self._pending = b""
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)
        if server.trust is not None:
            self._connection = http.client.HTTPSConnection(
                "localhost", server.port, timeout=timeout_s, context=server.trust
            )
        headers = key.headers | {"accept": "text/event-stream"} | ({"last-event-id": last_id} if last_id else {})
        try:
            self._connection.request("GET", f"{CHANGES}?{query}", headers=headers)
            self.answer = self._connection.getresponse()
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def events(self) -> Iterator[Event]:
        """Events as they come, to the stream's end; a connection that is lost is an end too."""
        kind: str = "message"
        data: list[str] = []
        place = self.last_id
        try:
            for raw in self._lines():
                line = raw.decode()
                field, _, value = line.partition(":")
                value = value.removeprefix(" ")
                if not line:
                    self.last_id = place  # cut off before, it did not happen
                    if data:
                        yield Event(self.last_id, kind, json.loads("\n".join(data)))
                    kind, data = "message", []
                elif not field:
                    self.comments += 1
                elif field == "id":
                    place = value
                elif field == "event":
                    kind = value
                elif field == "data":
                    data.append(value)
                elif field == "retry":
                    self.retry_ms = int(value)
            self.whole = True
        except (OSError, http.client.HTTPException):
            pass

    def _lines(self) -> Iterator[bytes]:
        """Whole lines. By read1(): readline() takes a connection lost between two chunks for the end."""
        while True:
            while b"\n" not in self._pending:
                piece = self.answer.read1(65_536)
                if not piece:
                    return
                self._pending += piece
            line, _, self._pending = self._pending.partition(b"\n")
            yield line

    def take(self, count: int) -> list[Event]:
        """The next ``count`` events; fewer where the stream ends."""
        return [event for _, event in zip(range(count), self.events(), strict=False)]
