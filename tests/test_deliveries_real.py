"""Deliveries over the real stores, to a real receiver, by the real sender."""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from typing import TYPE_CHECKING

from tests.receiver import Receiver, status
from tests.subscriptions import a_webhook, play
from turnlog.deliveries.claims import Deliveries
from turnlog.deliveries.means import Means
from turnlog.feed import Feed
from turnlog.http.events import event_json
from turnlog.model import NewConversation, NewMessage, Participant, SigningSecret
from turnlog.sending import HttpSender
from turnlog.signing import new_secret
from turnlog.store.protocol import AppendMessages, PutConversation

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.store.protocol import Store

SECRET = new_secret(secrets.randbits)
MESSAGES = 100


def now_us() -> int:
    return time.time_ns() // 1000


async def _record(store: Store) -> None:
    for name in ("C", "D"):
        new = NewConversation(name, Participant("jane"), 5, id=name)
        await store.append([PutConversation("a", new, name, now_us())])
    for number in range(MESSAGES):
        message = NewMessage(f"text {number}", "agent", "x", 5)
        await store.append([AppendMessages("a", "CD"[number % 2], [message], [f"M{number:03}"], now_us())])


def test_a_receiver_that_stumbles_gets_everything_in_order(new_store: Callable[[], str]) -> None:
    with Receiver(SECRET) as receiver:
        receiver.next.extend([status(500)] * 2)

        async def scenario(store: Store) -> None:
            signing = (SigningSecret(SECRET, 0),)
            await store.add_webhook(a_webhook(url=receiver.url, secrets=signing, created_at=now_us()), 0)
            feed, sender = Feed(store), HttpSender(now_us, allow_private=True)
            deliveries = Deliveries(
                Means(
                    store, feed, sender, event_json, "me", now_us, time.monotonic, asyncio.sleep, random.random,
                    lambda: asyncio.sleep(0), lambda _webhook, _outcome: None,
                )
            )  # fmt: skip
            works = [asyncio.create_task(deliveries.run()), asyncio.create_task(store.follow(feed.moved))]
            await _record(store)
            await asyncio.to_thread(receiver.wait, MESSAGES + 4, 30)
            await deliveries.stop()
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            await sender.close()
            delivery = await store.delivery("a", "W")
            assert delivery is not None
            assert delivery.position == MESSAGES + 2
            assert not delivery.blocked

        play(new_store(), scenario)
        received = receiver.received
    ids = list(dict.fromkeys(one.id for one in received))
    assert len(ids) == MESSAGES + 2
    for name in "CD":
        events = [one.event for one in received if one.event["conversationId"] == name]
        texts = [event["message"]["text"] for event in events if "message" in event]
        assert texts == sorted(texts, key=lambda text: int(text.split()[1]))
        assert len(set(texts)) == MESSAGES // 2
