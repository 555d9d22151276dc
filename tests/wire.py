"""HTTP/1.1 as bytes: requests that no client would write, and answers read to the end of the connection."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.harness import parse_response

if TYPE_CHECKING:
    import socket

    from tests.harness import Key, Server

Answer = tuple[int, dict[str, str], bytes]
"""Status, headers, body."""

GOOD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
ALIVE = b'{"status":"alive"}'
HOST = b"Host: localhost"


def read(connection: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


def answers(raw: bytes) -> list[Answer]:
    """Every answer in ``raw``, which must end where the last of them ends."""
    found = []
    while raw:
        status, headers, body = parse_response(raw)
        found.append((status, headers, body))
        raw = raw.partition(b"\r\n\r\n")[2][len(body) :]
    return found


def exchange(server: Server, *parts: bytes) -> list[Answer]:
    """Send ``parts``, then read until the server closes: a connection that stays open fails by its time-out."""
    with server.connection() as connection:
        connection.settimeout(8)
        for part in parts:
            connection.sendall(part)
        return answers(read(connection))


def check_refusal(answer: Answer, code: str) -> None:
    status, headers, body = answer
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (int(code[:3]), code)
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"] == error["requestId"]
    assert headers["connection"] == "close"
    assert error["message"]


def request(line: bytes = b"GET /livez HTTP/1.1", *headers: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((line, *headers, b"", body))


def credentials(key: Key) -> list[bytes]:
    return [f"{name}: {value}".encode() for name, value in key.headers.items()]


def posting(server: Server, key: Key, path: str, *more: bytes, length: int) -> bytes:
    fields = (HOST, *credentials(key), b"Content-Type: application/json", b"Content-Length: %d" % length, *more)
    return request(f"POST {path} HTTP/1.1".encode(), *fields)
