"""A receiver of webhooks on this machine: a real HTTP(S) server in threads of its own.

It does with a request whatever a test tells it to, and has every request verified by the published library.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

import standardwebhooks

if TYPE_CHECKING:
    from pathlib import Path

Behaviour = Callable[[socket.socket, threading.Event], bool]
"""Answers one request on its connection, until the event at the longest; whether the connection is kept."""


# What it can be told to do.


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    """An answer; header names with ``_`` for ``-``."""
    fields = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"HTTP/1.1 {code} {HTTPStatus(code).phrase}", f"Content-Length: {len(body)}", *fields])
    return raw(head.encode() + b"\r\n\r\n" + body, kept=True)


def raw(answer: bytes, *, kept: bool = False) -> Behaviour:
    """These bytes, then the connection's end unless it is ``kept``."""

    def behave(connection: socket.socket, _: threading.Event) -> bool:
        connection.sendall(answer)
        return kept

    return behave


def hang(connection: socket.socket, over: threading.Event) -> bool:
    """No answer, until the client gives it up."""
    connection.settimeout(0.02)
    while not over.is_set():
        with contextlib.suppress(TimeoutError):
            if not connection.recv(65536):
                break
    return False


def reset(connection: socket.socket, _: threading.Event) -> bool:
    """The connection's end without an answer, by RST."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return False


def hang_up(connection: socket.socket, _: threading.Event) -> bool:
    """The connection's end without an answer."""
    return False


def drip(beginning: bytes, part: bytes, every_s: float = 0.02) -> Behaviour:
    """``beginning``, then ``part`` again and again."""

    def behave(connection: socket.socket, over: threading.Event) -> bool:
        connection.sendall(beginning)
        while not over.wait(every_s):
            connection.sendall(part)
        return False

    return behave


def flood(beginning: bytes, part: bytes, size: int = 2**30) -> Behaviour:
    """``beginning``, then ``part`` until ``size`` bytes were sent, as fast as they are taken."""

    def behave(connection: socket.socket, over: threading.Event) -> bool:
        connection.sendall(beginning)
        for _ in range(size // len(part)):
            if over.is_set():
                break
            connection.sendall(part)
        return False

    return behave


@dataclass(frozen=True)
class Received:
    """A request: its headers by lower-case name, when it had come (``time.monotonic``), and on which connection."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float
    connection: int

    @property
    def id(self) -> str:
        """``webhook-id``."""
        return self.headers["webhook-id"]

    @property
    def event(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class Receiver:
    """Listens from ``with`` on. A request that none of ``secrets`` verifies gets 401, and the ``with`` fails by it.

    ``tls`` makes it HTTPS. ``behaviour`` is what it does with every request, ``next`` what it does with the next ones
    first; both may be set at any time, as may ``secrets``.
    """

    def __init__(self, *secrets: str, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> None:
        self.secrets = list(secrets)
        self.behaviour: Behaviour = status(200)
        self.next: deque[Behaviour] = deque()
        self.connections = 0
        self.sent_away: list[str] = []
        self._tls = tls
        self._host = host
        self._received: list[Received] = []
        self._news = threading.Condition()
        self._over = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.socket()
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((self._host, 0))
        self._listener.listen(128)
        self.port: int = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)
        if kind is None:
            assert not self.sent_away, self.sent_away

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.url_at(self._host)

    def url_at(self, host: str, path: str = "/hook") -> str:
        """Where it listens, by another name."""
        return f"{'http' if self._tls is None else 'https'}://{host}:{self.port}{path}"

    @property
    def received(self) -> list[Received]:
        """Every request that was verified, oldest first."""
        with self._news:
            return list(self._received)

    def wait(self, count: int, timeout_s: float = 20) -> list[Received]:
        """The requests once there are ``count`` of them; an AssertionError after ``timeout_s``."""
        with self._news:
            enough = self._news.wait_for(lambda: len(self._received) >= count, timeout_s)
            assert enough, f"{len(self._received)} requests of {count} came within {timeout_s} s"
            return list(self._received)

    def open_connections(self) -> int:
        """How many there are now."""
        with self._news:
            return len(self._open)

    def wait_closed(self, timeout_s: float = 10) -> None:
        """Return once its clients have closed every connection; an AssertionError after ``timeout_s``."""
        with self._news:
            assert self._news.wait_for(lambda: not self._open, timeout_s), f"{len(self._open)} connections are open"

    def close_connections(self) -> None:
        """End every connection that is open."""
        with self._news:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        self.wait_closed()

    def _start(self, what: Callable[[], None]) -> None:
        thread = threading.Thread(target=what, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            number = next(self._numbers)
            with self._news:
                self.connections += 1
                self._open.add(connection)
            self._start(lambda connection=connection, number=number: self._serve(connection, number))  # type: ignore[misc]

    def _serve(self, plain: socket.socket, number: int) -> None:
        connection = plain
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(plain, server_side=True)
                with self._news:
                    self._open.discard(plain)
                    self._open.add(connection)
            while self._answer(connection, number):
                pass
        except OSError:  # the client's end of it, or this one's
            pass
        finally:
            connection.close()
            with self._news:
                self._open -= {plain, connection}
                self._news.notify_all()

    def _answer(self, connection: socket.socket, number: int) -> bool:
        request = _read(connection, number)
        if request is None:
            return False
        problem = self._problem(request)
        if problem is not None:
            self.sent_away.append(problem)
            return status(401)(connection, self._over)
        with self._news:
            behaviour = self.next.popleft() if self.next else self.behaviour
            self._received.append(request)
            self._news.notify_all()
        return behaviour(connection, self._over)

    def _problem(self, request: Received) -> str | None:
        problems = [f"{request.path}: there is no secret to verify with"]
        for secret in self.secrets:
            try:
                standardwebhooks.Webhook(secret).verify(request.body, request.headers)
            except standardwebhooks.WebhookVerificationError as error:
                problems = [f"{request.path}: {error}"]
            else:
                return None
        return problems[0]


def _read(connection: socket.socket, number: int) -> Received | None:
    """The next request; ``None`` at the connection's end."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return None
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    method, path, _ = line.split(" ")
    assert method == "POST", line
    length = int(headers["content-length"])
    while len(body) < length:
        part = connection.recv(65536)
        if not part:
            return None
        body += part
    return Received(path, headers, body, time.monotonic(), number)


@dataclass(frozen=True)
class Certificate:
    """A certificate that only who is told to trusts, and its key."""

    certificate: Path
    key: Path

    def server(self) -> ssl.SSLContext:
        """For a Receiver."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        """For a sender that trusts it."""
        return ssl.create_default_context(cafile=str(self.certificate))


def make_certificate(folder: Path, names: str = "DNS:receiver.example,IP:127.0.0.1", days: int = 2) -> Certificate:
    """A self-signed certificate, by the openssl program."""
    made = Certificate(folder / "certificate.pem", folder / "key.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    about = ["-days", str(days), "-subj", "/CN=receiver", "-addext", f"subjectAltName={names}"]
    files = ["-keyout", str(made.key), "-out", str(made.certificate)]
    subprocess.run([*command, *about, *files], check=True, capture_output=True)
    return made
