"""Who follows the log ends with exactly the log, whoever is killed meanwhile: no gap, no repeat, the same order."""

from __future__ import annotations

import itertools
import threading
from typing import TYPE_CHECKING

import httpx

from tests.harness import V1, Key, Server, create_conversation, message, wait_for
from tests.sse import Stream
from tests.test_changes import ALL, walk

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 3
BETWEEN_KILLS = 150
"""Messages acknowledged between two kills."""


class Writer(threading.Thread):
    """Records messages at one node until told to stop; ``acknowledged`` has the ids that it was given."""

    def __init__(self, node: Server, key: Key, path: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[str] = []
        self._node = node
        self._key = key
        self._path = path
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            try:
                with httpx.Client(base_url=self._node.base, headers=self._key.headers, timeout=5) as client:
                    while not self._ended.is_set():
                        answer = client.post(self._path, json=message("x"))
                        if answer.status_code == 200:
                            self.acknowledged.append(answer.json()["id"])
            except httpx.HTTPError:
                self._ended.wait(0.02)

    def stop(self) -> None:
        self._ended.set()
        self.join()


class Follower(threading.Thread):
    """Follows the log through the nodes in turn, each time from where it was cut, up to the event ``until``."""

    def __init__(self, nodes: list[Server], key: Key) -> None:
        super().__init__(daemon=True)
        self.ids: list[str] = []
        self.connections = 0
        self.until = ""
        self._nodes = nodes
        self._key = key

    def run(self) -> None:
        for node in itertools.cycle(self._nodes):
            try:
                self._follow(node)
            except OSError:
                threading.Event().wait(0.02)  # it is being started again
            if self.until and self.until in self.ids[-1:]:
                return

    def _follow(self, node: Server) -> None:
        last = self.ids[-1] if self.ids else ""
        with Stream(node, self._key, last_id=last, timeout_s=1) as stream:
            if stream.answer.status != 200:
                return
            self.connections += 1
            for event in stream.events():
                self.ids.append(event.id)
                if event.id == self.until:
                    return


def test_a_follower_ends_with_exactly_the_log_while_nodes_are_killed_in_turn(
    start: Callable[..., Server], store_kind: str
) -> None:
    """E01. Two nodes on PostgreSQL; the one that an SQLite file has."""
    nodes = [start(), start()] if store_kind == "postgresql" else [start()]
    key = nodes[0].create_key("feed", *ALL)
    with nodes[0].client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'one')}/messages"
    writers = [Writer(node, key, path) for node in nodes]
    followers = [Follower(nodes, key), Follower(nodes[::-1], key)]
    for thread in (*writers, *followers):
        thread.start()
    for node in nodes * ROUNDS:
        before = sum(len(writer.acknowledged) for writer in writers)
        wait_for(lambda before=before: sum(len(writer.acknowledged) for writer in writers) > before + BETWEEN_KILLS, 30)
        node.kill()
        node.start()
    for writer in writers:
        writer.stop()
    with nodes[0].client(key) as client:
        items = walk(client, 1000)
    for follower in followers:
        follower.until = items[-1]["id"]
    for follower in followers:
        follower.join(30)
        assert not follower.is_alive()
        assert follower.ids == [item["id"] for item in items]
        assert follower.connections > ROUNDS / 2
    recorded = {item["message"]["messageId"] for item in items if "message" in item}
    assert {one for writer in writers for one in writer.acknowledged} <= recorded
