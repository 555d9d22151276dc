"""Ways on which packets and answers are lost; and peers that vanish (N01, N02, N04)."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.faults.network import lossy_network, replaying_proxy
from tests.faults.site import Site
from tests.faults.way import Namespace
from tests.harness import V1, create_conversation, message, wait_for
from tests.wire import HOST, credentials, posting, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.faults.ledger import Entry
    from tests.harness import Server


@pytest.fixture
def site(store_kind: str, new_store: Callable[[], str]) -> Iterator[Site]:
    with Site(store_kind, new_store) as one:
        yield one


def _passed(entry: Entry) -> None:
    print(f"\n{entry.measure}, {entry.store}: {entry.figures}")  # noqa: T201 - the figures of the run
    assert entry.passed, (entry.invalid, *entry.problems)


def test_answers_lost_behind_the_commit_and_requests_that_a_proxy_replays_are_stored_once(site: Site) -> None:
    """N01."""
    _passed(replaying_proxy(site, seconds=2))


@pytest.mark.sqlite_only("it is about the network between callers and server, and takes its time")
def test_a_network_that_loses_a_third_of_the_packets_loses_no_message(site: Site) -> None:
    """N02."""
    _passed(lossy_network(site, seconds=6, connections=4))


DEADLINES = ("HEADER_TIMEOUT_S", "BODY_TIMEOUT_S", "WRITE_TIMEOUT_S", "KEEP_ALIVE_S")


@pytest.mark.sqlite_only("it is about the network between callers and server")
def test_the_slot_of_a_peer_that_vanishes_is_freed_at_its_deadline(start: Callable[..., Server]) -> None:
    """N04: idle, in the middle of a head and of a body, and while it is sent a listing; not a packet comes any more."""
    settings = {f"TURNLOG_{name}": "1" for name in DEADLINES}
    server = start("--host", "0.0.0.0", environment=settings)  # noqa: S104 - for the namespace, while this runs
    key = server.create_key("vanishing")
    with Namespace() as namespace, server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'vanishing')}/messages"
        for _ in range(20):
            assert client.post(path, json=message("a" * 800_000)).status_code == 200
        listing = request(f"GET {path} HTTP/1.1".encode(), HOST, *credentials(key))
        body = json.dumps(message()).encode()
        begun = posting(server, key, path, length=len(body)) + body[:9]
        peers = [namespace.connect(server.port) for _ in range(4)]
        for peer, sent in zip(
            peers, (b"GET /livez HTTP/1.1\r\n\r\n"[:0], b"GET /livez HTT", begun, listing), strict=True
        ):
            peer.sendall(sent)
        assert peers[3].recv(1)
        assert _open_connections(client) >= 2
        namespace.lose(1.0)
        wait_for(lambda: _open_connections(client) == 1, timeout_s=20)
        for peer in peers:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()


def _open_connections(client: httpx.Client) -> int:
    text = client.get("/metrics").text
    return int(float(text.partition("\nturnlog_open_connections")[2].partition("\n")[0].split()[-1]))
