"""``python -m bench.feed``: what following the log costs those who record, and how fast a stream is.

Rounds of recording (wrk, 64 connections, SQLite) with and without 500 open streams and 10 webhooks, in turns; then one
stream through the history that came of it, and one beside a writer at full speed. Streams are read and
webhooks answered by one process each, on the same processors as everything else.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import httpx

from bench import load
from bench.scenarios import SCENARIOS
from bench.taking_part import Grounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bench.taking_part import Runner

STREAMS = 500
WEBHOOKS = 10
ROUNDS = 5
SECONDS = 4
_CHANGES = "/turnlog/v1/changes"
_READERS = """
import selectors, socket, sys
host, port, count, head = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4].encode().decode("unicode_escape")
selector = selectors.DefaultSelector()
for _ in range(count):
    one = socket.create_connection((host, port))
    one.sendall(head.encode("latin-1"))
    selector.register(one, selectors.EVENT_READ)
print("ready", flush=True)
taken = bytearray(1 << 20)
while True:
    for key, _ in selector.select():
        if not key.fileobj.recv_into(taken):
            sys.exit("a stream ended")
"""
_RECEIVER = """
import asyncio, uvloop
class Receiver(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.left = transport, b""
    def data_received(self, data):
        self.left += data
        while (end := self.left.find(b"\\r\\n\\r\\n")) >= 0:
            head = self.left[:end].lower()
            length = int(head.partition(b"content-length:")[2].split(b"\\r\\n")[0])
            if len(self.left) < end + 4 + length:
                return
            self.left = self.left[end + 4 + length:]
            self.transport.write(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
async def main():
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""


@contextlib.contextmanager
def _program(code: str, *arguments: str) -> Iterator[str]:
    """Run a program beside us; what it says first."""
    with subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None  # noqa: S101 - it is a pipe
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def _head(runner: Runner, query: str) -> str:
    fields = "".join(f"{name}: {value}\r\n" for name, value in runner.headers.items())
    return f"GET {_CHANGES}?{query} HTTP/1.1\r\nhost: bench\r\naccept: text/event-stream\r\n{fields}\r\n"


@contextlib.contextmanager
def _followers(runner: Runner) -> Iterator[None]:
    """Streams and webhooks, all of everything from now on."""
    host, port = runner.server.base.removeprefix("http://").split(":")
    head = _head(runner, "after=now").encode("unicode_escape").decode()
    with (
        _program(_READERS, host, port, str(STREAMS), head),
        _program(_RECEIVER) as receiver,
        httpx.Client(base_url=runner.server.base, headers=runner.headers) as client,
    ):
        made = []
        for number in range(WEBHOOKS):
            body = {"url": f"http://127.0.0.1:{receiver}/{number}"}
            answer = client.post("/turnlog/v1/webhooks", json=body)
            answer.raise_for_status()
            made.append(answer.json()["id"])
        try:
            yield
        finally:
            for webhook_id in made:
                client.delete(f"/turnlog/v1/webhooks/{webhook_id}").raise_for_status()


def _record(runner: Runner) -> float:
    scenario = SCENARIOS["message-64"]
    requests = runner.folder / scenario.requests
    return load.measure(runner.server.base, scenario.connections, SECONDS, requests).per_s


class _Reader(threading.Thread):
    """One stream; ``count`` events so far, the last of them ``last``, ``seen_at`` that time."""

    def __init__(self, runner: Runner, query: str) -> None:
        super().__init__(daemon=True)
        host, port = runner.server.base.removeprefix("http://").split(":")
        self._connection = socket.create_connection((host, int(port)))
        self._connection.sendall(_head(runner, query).encode())
        self.count = 0
        self.last = b""
        self.seen_at = time.perf_counter()

    def run(self) -> None:
        left = b""
        while part := self._connection.recv(1 << 20):
            whole, _, left = (left + part).rpartition(b"\n\n")
            count = whole.count(b"\ndata: ")
            if count:
                self.count += count
                self.last = whole[whole.rindex(b"id: ") + 4 :].partition(b"\n")[0]
                self.seen_at = time.perf_counter()

    def wait_for(self, event_id: str, seconds: float = 60) -> None:
        """Until the stream has given this event."""
        deadline = time.perf_counter() + seconds
        while self.last != event_id.encode():
            if time.perf_counter() > deadline:
                raise SystemExit(f"a stream stopped at {self.last!r}, {self.count} events; the log ends at {event_id}")
            time.sleep(0.005)


def _cursor(runner: Runner) -> str:
    answer = httpx.get(f"{runner.server.base}{_CHANGES}?after=now", headers=runner.headers)
    return str(answer.json()["nextCursor"])


def _history(runner: Runner) -> None:
    end, began = _cursor(runner), time.perf_counter()
    reader = _Reader(runner, "")
    reader.start()
    reader.wait_for(end)
    seconds = reader.seen_at - began
    print(f"one stream through history: {reader.count:,} events in {seconds:.1f} s, {reader.count / seconds:,.0f}/s")


def _live(runner: Runner) -> None:
    reader = _Reader(runner, f"after={_cursor(runner)}")
    reader.start()
    rate = _record(runner)
    ended, end = time.perf_counter(), _cursor(runner)
    reader.wait_for(end)
    print(
        f"one stream beside a writer of {rate:,.0f} messages/s: all {reader.count:,} events, "
        f"the last {max(0.0, reader.seen_at - ended):.2f} s after the writer's end"
    )


def main() -> None:
    load.need_wrk()
    with contextlib.ExitStack() as running:
        folder = running.enter_context(tempfile.TemporaryDirectory(prefix="turnlog-feed-"))
        runner = Grounds(Path(folder), None, running).start_turnlog("sqlite", "--allow-private-webhooks")
        rates: dict[str, list[float]] = {"alone": [], "followed": []}
        for _ in range(ROUNDS):
            rates["alone"].append(_record(runner))
            with _followers(runner):
                rates["followed"].append(_record(runner))
        alone, followed = median(rates["alone"]), median(rates["followed"])
        print(f"recording alone: {alone:,.0f} messages/s ({min(rates['alone']):,.0f} to {max(rates['alone']):,.0f})")
        print(
            f"with {STREAMS} streams and {WEBHOOKS} webhooks: {followed:,.0f} messages/s "
            f"({min(rates['followed']):,.0f} to {max(rates['followed']):,.0f}), {followed / alone:.2f} of that"
        )
        _history(runner)
        _live(runner)


if __name__ == "__main__":
    main()
