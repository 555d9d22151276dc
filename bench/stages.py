"""``python -m bench.stages``: what a recorded message costs the event loop, by stages, without sockets and store.

Each figure is the least of many short turns, in microseconds, so that what else the machine does shows little. The
stages call what the program calls; the whole path is measured too, and what no stage accounts for is said.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import time
from typing import TYPE_CHECKING, Any

import httptools
import uvloop

from bench.requests import message
from turnlog import limits
from turnlog.cli.keys import new_key, now_us
from turnlog.config import Config
from turnlog.http.app import App
from turnlog.http.bodies import BodyReader
from turnlog.http.operations import OPERATIONS, Context
from turnlog.http.protocol import Protocol
from turnlog.http.requests import Request
from turnlog.http.responses import Response, whole_answer
from turnlog.http.routing import Router
from turnlog.http.steps import Steps
from turnlog.http.traffic import Traffic
from turnlog.ids import Ulids
from turnlog.keyring import Keyring
from turnlog.metrics import Metrics
from turnlog.service import Service
from turnlog.store.protocol import AppendMessages, KeyRecord
from turnlog.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONNECTIONS = 64
_TURNS = 100
_CALLS = 500
_URL = b"/conversation/v1/conversations/01HZX3Y4Z5A6B7C8D9E0F1G2H3/messages"


class _NoStore:
    """Takes everything at once."""

    parallel = 1
    failure = None

    def lane(self, _write: object) -> None:
        return None

    async def append(self, writes: Sequence[Any]) -> list[object]:
        return [write.ids for write in writes]


class _KeysStore:
    def __init__(self, record: KeyRecord) -> None:
        self._record = record

    async def keys_version(self) -> int:
        return 1

    async def keys(self) -> list[KeyRecord]:
        return [self._record]


class _Socket:
    """Takes what is written; counts it."""

    answers = 0

    def write(self, _data: bytes) -> None:
        self.answers += 1

    def is_closing(self) -> bool:
        return False


def least(call: Callable[[], object]) -> float:
    """Microseconds of one call."""
    found = float("inf")
    for _ in range(_TURNS):
        started_at = time.perf_counter()
        for _ in range(_CALLS):
            call()
        found = min(found, (time.perf_counter() - started_at) / _CALLS)
    return found * 1e6


class Path:
    """Everything between a socket and a store, put together as ``cli/serve.py`` does."""

    def __init__(self) -> None:
        self.ids, self.metrics, config = Ulids(now_us, secrets.randbits), Metrics(), Config()
        store: Any = _NoStore()
        self.writer = Writer(
            store, max_rows=10**6, max_chars=10**9, deadline_s=10, monotonic_s=time.monotonic,
            on_batch=self.metrics.batch, on_failure=lambda _: None,
        )  # fmt: skip
        self.record, self.secret = new_key("stages", "main")
        self.keyring = Keyring(now_us, time.monotonic)
        service = Service(store, self.writer, self.ids, now_us, refuse_repeats=False)
        self.bodies = BodyReader(lenient=True)
        others: Any = None
        context = Context(service, self.bodies, others, others, others)
        app = App(OPERATIONS, context, self.keyring, self.metrics, config, self.ids)
        self.traffic = Traffic(config, self.ids.new, self.metrics)
        self.traffic.standing = b"date: Sat, 31 Jan 2026 12:00:00 GMT\r\n"
        self.loop = asyncio.get_running_loop()
        self.connections = [Protocol(app, self.traffic, self.loop) for _ in range(CONNECTIONS)]
        self.sockets: list[Any] = [_Socket() for _ in self.connections]
        for connection, one in zip(self.connections, self.sockets, strict=True):
            connection.connection_made(one)

    async def whole(self, request: bytes) -> float:
        """Microseconds of a request, of as many at once as there are connections."""
        found = float("inf")
        for _ in range(5 * _TURNS):
            started_at = time.perf_counter()
            for connection in self.connections:
                connection.data_received(request)
            while self.traffic.under_way:  # noqa: ASYNC110 - this is the loop's work, not a wait for it
                await asyncio.sleep(0)
            found = min(found, (time.perf_counter() - started_at) / CONNECTIONS)
        if {one.answers for one in self.sockets} != {5 * _TURNS}:
            raise SystemExit("not every request was answered")
        return found * 1e6

    async def queue(self, write: AppendMessages) -> tuple[float, float]:
        """Microseconds of a write until it waits, and of its outcome."""
        there = back = float("inf")
        for _ in range(_TURNS):
            started_at = time.perf_counter()
            for _ in range(CONNECTIONS):
                self.writer.submit(write)
            there = min(there, (time.perf_counter() - started_at) / CONNECTIONS)
            started_at = time.perf_counter()
            await self.writer.drain()
            back = min(back, (time.perf_counter() - started_at) / CONNECTIONS)
        return there * 1e6, back * 1e6


async def stages() -> list[tuple[str, float]]:
    """The stages in the order of a request's way, and their microseconds; last the whole."""
    path = Path()
    store: Any = _KeysStore(path.record)
    await path.keyring.refresh(store)
    key_id, secret = path.record.key.id.encode(), path.secret.encode()
    body = b'{"text":"%b","sender":{"role":"customer","externalId":"jane-5550142"},"timestamp":"%b"}' % (
        message(1)["text"].encode(), message(1)["timestamp"].encode()
    )  # fmt: skip
    headers = [(b"host", b"127.0.0.1"), (b"asapp-api-id", key_id), (b"asapp-api-secret", secret),
               (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]  # fmt: skip
    raw = b"POST %b HTTP/1.1\r\n%b\r\n%b" % (_URL, b"".join(b"%b: %b\r\n" % field for field in headers), body)
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # as cli/serve.py has it
    parser, router = httptools.HttpRequestParser(object()), Router(OPERATIONS)

    def request() -> Request:
        return Request(b"POST", _URL, "1.1", headers, keep_alive=True, on_body_wanted=path.loop.create_future)

    def credentials() -> None:
        found = request_.credentials()
        assert found is not None  # noqa: S101
        path.keyring.admit(path.keyring.authenticate(*found), "messages:write")

    async def nothing() -> None:
        pass

    def read() -> None:
        limits.check_message(path.bodies.message(body))

    request_, new, answer = request(), path.bodies.message(body), Response(b'{"id":"01HZX3Y4Z5A6B7C8D9E0F1G2H3"}')
    write = AppendMessages("main", "C", (new,), [path.ids.new()], 0)
    there, back = await path.queue(write)
    found = [
        ("server: parsing HTTP", least(lambda: parser.feed_data(raw))),
        ("server: the request as an object", least(request)),
        ("server: carrying a coroutine out", least(lambda: Steps(nothing(), path.loop, path.traffic.under_way))),
        ("routing", least(lambda: router.match(_URL))),
        ("credentials, permission, rate", least(credentials)),
        ("parsing and checking the body", least(read)),
        ("ids: of the request and of the message", 2 * least(path.ids.new)),
        ("queue: into it", there),
        ("queue: a batch and its outcomes", back),
        ("answer: as bytes", least(lambda: whole_answer(answer, write.ids[0], path.traffic.standing, close=False))),
        ("answer: counting it", least(lambda: path.metrics.request("create_message", 200, 0.004))),
    ]
    whole = await path.whole(raw)
    rest = whole - sum(took for _, took in found)
    return [*found, ("between: callbacks, coroutines, futures, bookkeeping", rest), ("the whole path", whole)]


def main() -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for name, took in runner.run(stages()):
            print(f"{name:<56}{took:6.2f} us")


if __name__ == "__main__":
    main()
