"""Logs for the tests of reading them: filled in every order, and read part by part."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from turnlog.model import ApiKey, Entry, LogFilter, NewConversation, NewMessage, Participant
from turnlog.store.connect import open_store
from turnlog.store.protocol import AppendMessages, KeyRecord, PutConversation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from turnlog.store.protocol import LogReader, Store, Write

EVERYTHING = LogFilter()
CHARS = 10**9


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = await open_store(url, idempotency_ttl_us=1)
    try:
        yield store
    finally:
        await store.close()


def put(name: str, account: str = "a", **changes: Any) -> PutConversation:
    fields: dict[str, Any] = {"id": name, "external_id": f"external-{name}", "customer": Participant("jane")}
    return PutConversation(account, NewConversation(**(fields | {"client_at": 5} | changes)), f"NEW{name}", 7)


def append(texts: list[str], conversation: str = "C", account: str = "a", *, at: int = 9) -> AppendMessages:
    messages = [NewMessage(text, "agent", "bob", 5) for text in texts]
    return AppendMessages(account, conversation, messages, [f"M{account}{conversation}{text}" for text in texts], at)


async def make_accounts(store: Store) -> None:
    for account in ("a", "b"):
        await store.add_key(KeyRecord(ApiKey(f"key-{account}", "tests", account, ("read",), 1), ()))


async def fill_log(store: Store, rounds: int = 30) -> None:
    """Two accounts with the same ids; messages of two conversations and changes of three in every order."""
    await make_accounts(store)
    for account in ("a", "b"):
        await store.append([put(name, account) for name in "CDE"])
    order = random.Random(3)  # noqa: S311 - any order will do
    for n in range(rounds):
        writes: list[Write] = []
        for account in ("a", "b"):
            for _ in range(order.randrange(4)):
                name = order.choice("CCD")
                if order.random() < 0.4:
                    writes.append(put(name, account, metadata={"n": f"{n} {order.random()}"}))
                else:
                    texts = [f"{account} {n} {order.random()}" for _ in range(order.randrange(1, 4))]
                    writes.append(append(texts, name, account))
        await store.append(writes)


async def walk(
    reader: LogReader, wanted: LogFilter, *, limit: int = 7, after: int = 0, max_chars: int = CHARS, account: str = "a"
) -> list[Entry]:
    """The whole log, part by part."""
    up_to = await reader.last_position(account)
    found: list[Entry] = []
    while after < up_to:
        part = await reader.log(account, wanted, after=after, up_to=up_to, limit=limit, max_chars=max_chars)
        assert len(part.entries) <= limit
        assert after < part.reached <= up_to
        assert all(after < entry.position <= part.reached for entry in part.entries)
        found += part.entries
        after = part.reached
    assert all(one.position < other.position for one, other in pairwise(found))
    return found
