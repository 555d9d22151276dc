"""Stores to be damaged: filled through the server, with everything in the file, and bits to be turned over in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.harness import V1, Key, Server, create_conversation, message
from tests.stores import path_of
from turnlog.store.sqlite.connection import PAGE_BYTES

if TYPE_CHECKING:
    from pathlib import Path

PER_BATCH = 100


class Filled(NamedTuple):
    """What is in the store: ``ids`` and ``texts`` of the messages of one conversation, in the order of its listing."""

    url: str
    key: Key
    conversation: str
    ids: list[str]
    texts: list[str]

    @property
    def path(self) -> Path:
        return path_of(self.url)


def fill(url: str, batches: int = 10, padding: int = 100) -> Filled:
    """A new store with so many batches of messages, its server stopped in good order: no WAL is left."""
    ids: list[str] = []
    texts: list[str] = []
    with Server(url) as server:
        key = server.create_key("filler")
        with server.client(key) as client:
            conversation = create_conversation(client, "to be damaged")
            for batch in range(batches):
                named = [f"text {batch}-{number} " for number in range(PER_BATCH)]
                texts += [text + "y" * padding for text in named]
                bodies = [message(text) for text in texts[-PER_BATCH:]]
                answer = client.post(f"{V1}/conversations/{conversation}/messages/batch", json={"messages": bodies})
                assert answer.status_code == 200, answer.text
                ids += answer.json()["ids"]
        assert server.stop() == 0
    return Filled(url, key, conversation, ids, texts)


def place_of(path: Path, text: str) -> int:
    """Where in the file the text is: the offset of its middle."""
    data = path.read_bytes()
    place = data.index(text.encode())
    assert data.find(text.encode(), place + 1) < 0
    return place + len(text) // 2


def turn_over(path: Path, place: int, bit: int = 2) -> int:
    """Turn one bit over; the number of its page."""
    with path.open("r+b") as file:
        file.seek(place)
        (byte,) = file.read(1)
        file.seek(place)
        file.write(bytes([byte ^ 1 << bit]))
    return place // PAGE_BYTES + 1
