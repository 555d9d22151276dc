"""A bad way to a server: a network namespace that loses packets and is slow, and a relay that sits in it.

Callers speak to the relay on the loopback interface; its connections to the server come from inside the namespace,
over a veth pair with `nft` random drop on both directions and a `tbf` of so many kilobits a second at both ends. There
is no netem without its kernel module: late packets are the queue's, and a pause that the relay makes of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import random
import re
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.harness import forgo, need

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_SO_LINGER_NOW = struct.pack("ii", 1, 0)
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Way:
    """What happens on it. Shares are of packets (``loss``) and of answers (``reset``, ``replay``)."""

    loss: float = 0.0
    jitter_s: float = 0.0
    kbit_per_s: int = 0
    reset: float = 0.0
    """The answer is lost and the caller's connection reset: what it asked for has happened."""
    replay: float = 0.0
    """What has a key is sent to the server once more, as proxies do, and the second answer is passed on."""


def _run(*command: str, text: str = "") -> None:
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)


class Namespace:
    """A network namespace joined to this one; ``host`` is this side's address as seen from there."""

    def __init__(self) -> None:
        for program in ("ip", "tc", "nft"):
            need(program)
        if os.geteuid() != 0:
            forgo("making a network namespace needs root")
        number = os.getpid() % 200 + 20
        self.name = f"turnlog-{os.getpid()}-{next(_numbers)}"
        self._outside, self._inside = f"tl{os.getpid() % 100000}o", f"tl{os.getpid() % 100000}i"
        self.host, self._there = f"10.213.{number}.1", f"10.213.{number}.2"

    def __enter__(self) -> Self:
        try:
            _run("ip", "netns", "add", self.name)
            _run("ip", "link", "add", self._outside, "type", "veth", "peer", "name", self._inside, "netns", self.name)
            _run("ip", "address", "add", f"{self.host}/30", "dev", self._outside)
            _run("ip", "link", "set", self._outside, "up")
            self._there_run("ip", "address", "add", f"{self._there}/30", "dev", self._inside)
            self._there_run("ip", "link", "set", self._inside, "up")
        except subprocess.CalledProcessError as error:
            self.__exit__()
            forgo(f"a network namespace cannot be made here: {error.stderr}")
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "netns", "delete", self.name)
        with contextlib.suppress(subprocess.CalledProcessError):
            _run("ip", "link", "delete", self._outside)

    def enter(self) -> None:
        """From now on, the sockets that this thread makes are the namespace's."""
        with Path(f"/run/netns/{self.name}").open("rb") as file:
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.setns(file.fileno(), _CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    def _there_run(self, *command: str, text: str = "") -> None:
        _run("ip", "netns", "exec", self.name, *command, text=text)

    def connect(self, port: int) -> socket.socket:
        """A connection from there to a port of this side."""
        made: list[socket.socket] = []

        def make() -> None:  # in a thread that ends with it: a thread cannot well go back
            self.enter()
            made.append(socket.create_connection((self.host, port), timeout=10))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        return made[0]

    def slow_down(self, kbit_per_s: int) -> None:
        """Both directions carry no more, and what waits longer than 0.4 s for its turn is dropped."""
        shaped = ("root", "tbf", "rate", f"{kbit_per_s}kbit", "burst", "3000", "latency", "400ms")
        _run("tc", "qdisc", "add", "dev", self._outside, *shaped)
        self._there_run("tc", "qdisc", "add", "dev", self._inside, *shaped)

    def lose(self, share: float) -> None:
        """Of the packets of each direction, drop that share at random; 1.0 is the end of the way."""
        drop = "counter drop"
        if share < 1:
            drop = f"numgen random mod 1000 < {int(1000 * share)} {drop}"
        chains = "".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; {drop}; }}\n" for hook in ("input", "output")
        )
        self._there_run(
            "nft", "-f", "-", text=f"table inet bad\ndelete table inet bad\ntable inet bad {{\n{chains}}}\n"
        )

    def lost(self) -> int:
        """How many packets were dropped since ``lose``."""
        command = ("ip", "netns", "exec", self.name, "nft", "list", "table", "inet", "bad")
        told = subprocess.run(command, text=True, check=True, capture_output=True).stdout
        return sum(int(count) for count in re.findall(r"counter packets (\d+)", told))


class Relay:
    """Passes on between callers on ``port`` and a server, in the way of ``way``; from within ``namespace`` if given."""

    def __init__(self, host: str, port: int, way: Way, seed: int, namespace: Namespace | None = None) -> None:
        self._to = (host, port)
        self._way = way
        self._chance = random.Random(seed)  # noqa: S311 - a repeatable run, not a secret
        self._namespace = namespace
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._stop: asyncio.Event
        self.port = 0
        self.resets = 0
        self.replays = 0

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        if self._namespace is not None:  # this thread alone: sockets stay where they are made
            self._namespace.enter()
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _pass_on(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        with _cut_off(to_client):
            server, to_server = await asyncio.open_connection(*self._to)
            with _cut_off(to_server):
                if self._way.reset or self._way.replay:
                    await self._exchanges(client, to_client, server, to_server)
                else:
                    ways = (self._one_way(client, to_server), self._one_way(server, to_client))
                    _, pending = await asyncio.wait(
                        [asyncio.ensure_future(one) for one in ways], return_when=asyncio.FIRST_COMPLETED
                    )
                    for task in pending:
                        task.cancel()

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while part := await reader.read(65536):
                await asyncio.sleep(self._chance.random() * self._way.jitter_s)
                writer.write(part)
                await writer.drain()

    async def _exchanges(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        """One request at a time, as its caller sends them; each is small enough to be one piece."""
        while request := await client.read(1 << 20):
            to_server.write(request)
            answer = await server.read(1 << 20)
            luck = self._chance.random()
            if b"idempotency-key:" in request and luck < self._way.replay:
                self.replays += 1
                to_server.write(request)
                answer = await server.read(1 << 20)
            elif luck > 1 - self._way.reset:
                self.resets += 1
                to_client.get_extra_info("socket").setsockopt(1, 13, _SO_LINGER_NOW)  # SOL_SOCKET, SO_LINGER
                return
            to_client.write(answer)


@contextlib.contextmanager
def _cut_off(writer: asyncio.StreamWriter) -> Iterator[None]:
    with contextlib.suppress(OSError, asyncio.CancelledError):
        try:
            yield
        finally:
            writer.transport.abort()
