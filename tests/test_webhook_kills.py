"""W01: who delivers is killed again and again; the receiver misses nothing, and each conversation keeps its order."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import httpx

from tests.harness import V1, Key, Server, create_conversation, message, wait_for
from tests.receiver import Receiver, hang, status
from tests.sse import Stream
from tests.test_changes import ALL, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

PRIVATE = {"TURNLOG_ALLOW_PRIVATE_WEBHOOKS": "true"}
CONVERSATIONS = 5
KILLS = 4
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of the specification's example
TAKEN_OVER_S = 10


def _subscribe(client: httpx.Client, receiver: Receiver) -> None:
    body = {"url": receiver.url, "secret": SECRET, "after": "beginning"}
    answer = client.post("/turnlog/v1/webhooks", json=body)
    assert answer.status_code == 200, answer.text


def _check(receiver: Receiver, items: Iterable[dict[str, Any]]) -> None:
    """Everything at least once; first deliveries in the order of each conversation; equal ids are equal events."""
    wanted = {item["id"]: item for item in items}
    wait_for(lambda: len({one.id for one in receiver.received}) >= len(wanted), 60)
    received = receiver.received
    assert {one.id: one.event for one in received} == wanted
    first = list(dict.fromkeys(one.id for one in received))
    for conversation in {item["conversationId"] for item in wanted.values()}:
        order = [one for one in wanted if wanted[one]["conversationId"] == conversation]
        assert [one for one in first if wanted[one]["conversationId"] == conversation] == order


def test_nothing_is_missed_while_nodes_that_deliver_are_killed(start: Callable[..., Server], store_kind: str) -> None:
    count = 2 if store_kind == "postgresql" else 1
    nodes = [start(environment=PRIVATE) for _ in range(count)]
    key = nodes[0].create_key("feed", *ALL)
    with Receiver(SECRET) as receiver, nodes[0].client(key) as client:
        _subscribe(client, receiver)
        ids = [create_conversation(client, f"c{n}") for n in range(CONVERSATIONS)]
        for number in range(KILLS):
            node, seen = nodes[number % count], len(receiver.received)
            for n in range(40):
                path = f"{V1}/conversations/{ids[n % CONVERSATIONS]}/messages"
                client.post(path, json=message(f"{number}-{n}")).raise_for_status()
            wait_for(lambda seen=seen: len(receiver.received) > seen, 30)
            node.kill()
            node.start()
            wait_for(lambda: _answers(nodes[0], key))
        _check(receiver, walk(client, 1000))


def _answers(node: Server, key: Key) -> bool:
    try:
        return httpx.get(f"{node.base}/v1/health", headers=key.headers).status_code == 200
    except httpx.HTTPError:
        return False


def test_a_dead_nodes_webhooks_are_taken_over_within_ten_seconds(start: Callable[..., Server], store_kind: str) -> None:
    """On SQLite by the next start; on PostgreSQL by the other node."""
    first = start(environment=PRIVATE)
    key = first.create_key("feed", *ALL)
    with Receiver(SECRET) as receiver:
        with first.client(key) as client:
            _subscribe(client, receiver)
            path = f"{V1}/conversations/{create_conversation(client, 'one')}/messages"
            wait_for(lambda: len(receiver.received) >= 1, 30)
        second = start(environment=PRIVATE) if store_kind == "postgresql" else first
        began = time.monotonic()
        first.kill()
        if store_kind == "sqlite":
            first.start()
        with second.client(key) as client:
            client.post(path, json=message("after the kill")).raise_for_status()
            wait_for(lambda: any("message" in one.event for one in receiver.received), 30)
            assert time.monotonic() - began < TAKEN_OVER_S
            _check(receiver, walk(client))


def test_one_node_delivers_at_a_time(start: Callable[..., Server], store_kind: str) -> None:
    """With all nodes well, nothing comes twice."""
    nodes = [start(environment=PRIVATE) for _ in range(2 if store_kind == "postgresql" else 1)]
    key = nodes[0].create_key("feed", *ALL)
    with Receiver(SECRET) as receiver, nodes[0].client(key) as client:
        _subscribe(client, receiver)
        ids = [create_conversation(client, f"c{n}") for n in range(CONVERSATIONS)]

        def send(node: Server, name: str) -> None:
            with node.client(key) as other:
                for n in range(100):
                    path = f"{V1}/conversations/{ids[n % CONVERSATIONS]}/messages"
                    other.post(path, json=message(f"{name}-{n}")).raise_for_status()

        threads = [threading.Thread(target=send, args=(node, str(n))) for n, node in enumerate(nodes)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        items = walk(client, 1000)
        _check(receiver, items)
        assert len(receiver.received) == len(items)


def test_a_server_stops_in_time_whatever_its_receivers_and_streams_do(start: Callable[..., Server]) -> None:
    """C06: with receivers that hang and streams that are open, all of it within ten seconds, status 0."""
    server = start(environment=PRIVATE)
    key = server.create_key("feed", *ALL)
    with Receiver(SECRET) as receiver, server.client(key) as client, Stream(server, key):
        receiver.behaviour = hang
        _subscribe(client, receiver)
        create_conversation(client, "one")
        receiver.wait(1)
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10
        receiver.behaviour = status(200)
        server.start()
        wait_for(lambda: len(receiver.received) > 1, 30)
        assert len({one.id for one in receiver.received}) == 1
