"""The whole list of a long conversation, as one answer, while others go on asking."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from bench import load, requests, seed
from bench.results import LongList

if TYPE_CHECKING:
    from bench.taking_part import Runner

OTHERS = 16
OTHERS_PAUSE_MS = 10
"""Sixteen callers with a pause before each request: far from full load, as most servers are most of the time."""
_PIECE = 1 << 18
_END = b"0\r\n\r\n"


class _Streamed(NamedTuple):
    bytes: int
    messages: int
    first_byte_s: float
    seconds: float


def stream(runner: Runner, conversation: str) -> _Streamed:
    """Read the list to its end, without keeping it. Ends the program where it is cut short."""
    host, _, port = runner.server.base.removeprefix("http://").partition(":")
    path = f"{requests.V1}/conversations/{conversation}/messages"
    fields = "".join(f"{name}: {value}\r\n" for name, value in runner.headers.items())
    request = f"GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{fields}\r\n".encode()
    size, messages, end, rest = 0, 0, b"", b""
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        started_at = time.perf_counter()
        connection.sendall(request)
        piece = connection.recv(_PIECE)
        first_byte_s = time.perf_counter() - started_at
        good = piece.startswith(b"HTTP/1.1 200")
        while piece:
            size += len(piece)
            whole = rest + piece
            messages += whole.count(b'"messageId"')
            # What may be the beginning of another one; too short to be a whole one, which would be counted twice.
            rest = whole[1 - len(b'"messageId"') :]
            end = (end + piece)[-len(_END) :]
            piece = connection.recv(_PIECE)
    if not good or end != _END:
        raise SystemExit(f"the list of the long conversation broke off after {size:,} bytes")
    return _Streamed(size, messages, first_byte_s, time.perf_counter() - started_at)


def _again_and_again(runner: Runner, done: threading.Event) -> None:
    while not done.is_set():
        stream(runner, seed.conversation_id(0))


def growth_mb(runner: Runner) -> float:
    """How much more memory a server holds for the list, where it is the first thing that it is asked for."""
    runner.server.process.forget_peak()
    stream(runner, seed.conversation_id(0))
    return runner.server.process.peak_mb() - runner.server.rest_mb


def stream_beside_others(runner: Runner, messages: int, seconds: int, times: int) -> LongList:
    """In turns: the others alone, the list alone, and the others while the list is read."""
    found = LongList(messages, bytes=0)
    file = runner.folder / "mixed"

    def others() -> load.Load:
        return load.measure(runner.server.base, OTHERS, seconds, file, OTHERS_PAUSE_MS)

    others()
    for _ in range(times):
        found.quiet.append(others())
        alone = stream(runner, seed.conversation_id(0))
        if alone.messages != messages:
            raise SystemExit(f"the list of the long conversation has {alone.messages:,} of {messages:,} messages")
        found.bytes = alone.bytes
        found.seconds.append(alone.seconds)
        found.first_byte_ms.append(1000 * alone.first_byte_s)
        with ThreadPoolExecutor(1) as pool:
            done = threading.Event()
            reader = pool.submit(_again_and_again, runner, done)
            try:
                found.meanwhile.append(others())
            finally:
                done.set()
            reader.result()
    return found
