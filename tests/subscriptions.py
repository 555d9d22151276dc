"""Webhooks for the tests of stores: what is kept of them, and scenarios on one store."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from turnlog.model import ApiKey, Blocked, DeadLetter, SigningSecret, Webhook
from turnlog.store.connect import open_store
from turnlog.store.protocol import KeyRecord
from turnlog.store.webhooks import Delivery, Progress

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from turnlog.store.protocol import Store

LONG_S = 3600.0


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Store]:
    store = await open_store(url, idempotency_ttl_us=1)
    try:
        yield store
    finally:
        await store.close()


def play(url: str, *scenarios: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
    """Scenarios one after another on one store with accounts a and b, closed and opened again between them."""

    async def all_of_them() -> None:
        for number, scenario in enumerate(scenarios):
            async with opened(url) as store:
                if number == 0:
                    for account in ("a", "b"):
                        await store.add_key(KeyRecord(ApiKey(f"key-{account}", "tests", account, ("read",), 1), ()))
                await scenario(store)

    asyncio.run(all_of_them())


def a_webhook(name: str = "W", account: str = "a", **changes: Any) -> Webhook:
    secrets = (SigningSecret("whsec_old", 1, 50), SigningSecret("whsec_new", 2))
    fields: dict[str, Any] = {"url": f"https://example.com/{name}", "secrets": secrets, "created_at": 10}
    return Webhook(name, account, **(fields | {"updated_at": 10} | changes))


def a_blocked(conversation: str, position: int = 1, **changes: Any) -> Blocked:
    fields: dict[str, Any] = {"attempts": 1, "first_failed_at": 20, "next_at": 30, "error": "500 “no” ✗"}
    return Blocked(conversation, position, **(fields | changes))


def a_dead(position: int, **changes: Any) -> DeadLetter:
    fields: dict[str, Any] = {"type": "message.created", "conversation": "C", "attempts": 9, "first_failed_at": 20}
    return DeadLetter(position, **(fields | {"dead_at": 40, "error": "timeout"} | changes))


async def delivery_of(store: Store, name: str = "W", account: str = "a") -> Delivery:
    found = await store.delivery(account, name)
    assert found is not None
    return found


async def owned(store: Store, owner: str = "me", **changes: Any) -> Progress:
    """A new webhook that is the owner's, as progress that says nothing new."""
    await store.add_webhook(a_webhook(**changes), 5)
    assert ("a", "W") in await store.claim_webhooks(owner, LONG_S)
    delivery = await delivery_of(store)
    return Progress("a", "W", delivery.revision, delivery.position)


async def until_claimed(store: Store, owner: str) -> None:
    async with asyncio.timeout(30):
        while not await store.claim_webhooks(owner, LONG_S):  # noqa: ASYNC110 - nobody tells of a claim that ends
            await asyncio.sleep(0.01)


def saying(progress: Progress, **changes: Any) -> Progress:
    return msgspec.structs.replace(progress, **changes)


async def letters_of(store: Store, after: int = 0, limit: int = 1000) -> list[DeadLetter]:
    return await store.dead_letters("a", "W", after=after, limit=limit)
