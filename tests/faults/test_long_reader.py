"""D12: what a long reader of an SQLite file costs, and that no caller of the server can be one."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

import apsw
import pytest

from tests.harness import V1, create_conversation, message, wait_for
from tests.stores import path_of
from tests.wire import HOST, credentials, request

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.harness import Server

MB = 1024 * 1024
LARGE = 900_000
BOUND = 80 * MB
"""64 MiB of WAL, and the batches that come while it is folded in."""

pytestmark = pytest.mark.sqlite_only("it is about SQLite's WAL")


def _wal_bytes(client: httpx.Client) -> float:
    found = re.search(r"^turnlog_store_wal_bytes(?:\{.*\})? (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return float(found[1])


def _record(client: httpx.Client, path: str, megabytes: int) -> None:
    for _ in range(megabytes * MB // LARGE):
        client.post(path, json=message("a" * LARGE)).raise_for_status()


def test_a_long_reader_from_outside_is_seen_and_its_end_bounds_the_wal_again(start: Callable[..., Server]) -> None:
    """Nothing can bound the WAL under a transaction of another process: a metric and a line of the log tell of it."""
    server = start()
    with server.client(server.create_key("long")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'long')}/messages"
        visitor = apsw.Connection(str(path_of(server.url)), flags=apsw.SQLITE_OPEN_READWRITE)
        visitor.execute("BEGIN; SELECT count(*) FROM message").fetchall()
        _record(client, path, 95)
        held = _wal_bytes(client)
        assert held > BOUND
        wait_for(lambda: any('"event":"wal_held"' in line for line in server.log_lines))
        assert sum('"event":"wal_held"' in line for line in server.log_lines) == 1
        visitor.execute("ROLLBACK")
        visitor.close()
        _record(client, path, 30)
        assert _wal_bytes(client) <= held + 15 * MB  # it began anew, and does not grow any more


def test_a_caller_who_takes_a_listing_slowly_does_not_hold_the_wal(start: Callable[..., Server]) -> None:
    server = start()
    key = server.create_key("slow")
    with server.client(key) as client, socket.socket() as slow:
        path = f"{V1}/conversations/{create_conversation(client, 'slow')}/messages"
        _record(client, path, 20)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(request(f"GET {path} HTTP/1.1".encode(), HOST, *credentials(key)))
        assert slow.recv(1)
        _record(client, path, 95)
        assert _wal_bytes(client) < BOUND
        assert not any('"event":"wal_held"' in line for line in server.log_lines)
        assert slow.recv(1)  # it is still there
