"""Time and numbers below the application: deadlines of heads, bodies and answers, and how many may be connected."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness import V1, Key, Server, create_conversation, message, wait_for
from tests.wire import ALIVE, GOOD, HOST, answers, check_refusal, credentials, exchange, posting, read, request

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    import httpx

    from tests.stores import Stores

DEADLINE_S = 0.3


@pytest.fixture(scope="module")
def hurried(stores: Stores) -> Iterator[tuple[Server, Key]]:
    """A server whose deadlines are ``DEADLINE_S``, and a key."""
    names = ("HEADER_TIMEOUT_S", "BODY_TIMEOUT_S", "WRITE_TIMEOUT_S", "KEEP_ALIVE_S")
    environment = {f"TURNLOG_{name}": str(DEADLINE_S) for name in names}
    with Server(stores.new(), environment=environment) as running:
        yield running, running.create_key("tests")


def _drip(connection: socket.socket, byte: bytes) -> bytes:
    """Send ``byte`` again and again, never for as long as a deadline, until the server closes; what it said."""
    connection.settimeout(DEADLINE_S / 6)
    said = b""
    ends_at = time.monotonic() + 10
    while time.monotonic() < ends_at:
        try:
            connection.sendall(byte)
            part = connection.recv(65536)
        except TimeoutError:
            continue
        except OSError:
            return said
        if not part:
            return said
        said += part
    raise AssertionError("still open")


def test_an_idle_connection_is_closed_without_a_word(hurried: tuple[Server, Key]) -> None:
    """O06; before the first request, and between two."""
    server, _ = hurried
    assert exchange(server) == []
    assert [status for status, _, _ in exchange(server, GOOD)] == [200]


def test_what_is_refused_already_does_not_go_on_arriving_for_ever(hurried: tuple[Server, Key]) -> None:
    """O06: a body without credentials has its answer at once, and one deadline to end, however fast it comes."""
    server, _ = hurried
    with server.connection() as connection:
        connection.sendall(b"POST /v1/health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999\r\n\r\n")
        said = _drip(connection, b"x" * 600)
    assert [status for status, _, _ in answers(said)] == [401]


@pytest.mark.parametrize("start", [b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: ", b"GET /", GOOD + b"GET /"])
def test_a_head_that_drips_is_cut_at_its_deadline(hurried: tuple[Server, Key], start: bytes) -> None:
    server, _ = hurried
    with server.connection() as connection:
        connection.sendall(start)
        got = answers(_drip(connection, b"E"))
    check_refusal(got[-1], "408-01")
    assert len(got) == 1 + start.startswith(GOOD)


@pytest.mark.parametrize("drips", [False, True])
def test_a_body_that_drips_or_stops_is_cut_at_its_deadline(hurried: tuple[Server, Key], *, drips: bool) -> None:
    server, key = hurried
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, f'drip-{drips}')}/messages"
    with server.connection() as connection:
        connection.sendall(posting(server, key, path, length=10_000) + b'{"text": "')
        got = answers(_drip(connection, b"a") if drips else read(connection))
    assert len(got) == 1
    check_refusal(got[0], "408-01")


def test_a_body_that_is_slow_but_steady_is_not_cut(hurried: tuple[Server, Key]) -> None:
    """Ten times the deadline long, and always above the least rate."""
    server, key = hurried
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'steady')}/messages"
    body = json.dumps(message("a" * 30_000)).encode()
    started_at = time.monotonic()
    with server.connection() as connection:
        connection.sendall(posting(server, key, path, b"Connection: close", length=len(body)))
        for n in range(0, len(body), 300):
            connection.sendall(body[n : n + 300])
            wait_for(lambda sent=n: time.monotonic() - started_at > sent / 10_000)
        assert [status for status, _, _ in answers(read(connection))] == [200]
    assert time.monotonic() - started_at > 5 * DEADLINE_S


def test_a_caller_that_does_not_read_is_cut_and_its_slot_is_free(hurried: tuple[Server, Key]) -> None:
    """N04: a listing of 20 MB to a peer that takes none of it."""
    server, key = hurried
    with server.client(key) as client:
        conversation_id = create_conversation(client, "big")
        path = f"{V1}/conversations/{conversation_id}/messages"
        for _ in range(25):
            assert client.post(path, json=message("a" * 800_000)).status_code == 200
        with server.connection() as connection:
            connection.sendall(request(f"GET {path} HTTP/1.1".encode(), HOST, *credentials(key)))
            wait_for(lambda: _open_connections(client) == 2)
            wait_for(lambda: _open_connections(client) == 1)


def _open_connections(client: httpx.Client) -> int:
    text = client.get("/metrics").text
    return int(float(text.partition("\nturnlog_open_connections ")[2].partition("\n")[0]))


def _check_alive(connection: socket.socket) -> None:
    connection.sendall(GOOD)
    raw = b""
    while not raw.endswith(ALIVE):
        part = connection.recv(65536)
        assert part, raw
        raw += part


def test_a_connection_too_many_is_told_so(start: Callable[..., Server]) -> None:
    server = start(environment={"TURNLOG_MAX_CONNECTIONS": "2"})
    with server.connection() as first, server.connection() as second:
        for connection in (first, second):
            _check_alive(connection)
        got = exchange(server, GOOD)
        assert len(got) == 1
        check_refusal(got[0], "503-01")
        assert int(got[0][1]["retry-after"]) >= 1
        _check_alive(first)
        second.close()
        wait_for(lambda: exchange(server, request(b"GET /livez HTTP/1.0"))[0][0] == 200)
