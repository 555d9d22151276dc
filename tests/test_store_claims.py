"""Which process works for a webhook (store/webhooks.py), and who else may change it meanwhile."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.subscriptions import (
    LONG_S,
    a_blocked,
    a_dead,
    a_webhook,
    delivery_of,
    opened,
    owned,
    play,
    saying,
    until_claimed,
)
from turnlog.store.webhooks import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.store.protocol import Store


@pytest.fixture
def url(new_store: Callable[[], str]) -> str:
    return new_store()


def test_a_claim_is_for_all_and_stays_with_who_makes_it(url: str) -> None:
    async def scenario(store: Store) -> None:
        assert await store.claim_webhooks("me", LONG_S) == []
        await store.add_webhook(a_webhook("V", account="b", disabled="so"), 0)
        progress = await owned(store)
        version = await store.webhooks_version()
        assert set(await store.claim_webhooks("me", LONG_S)) == {("a", "W"), ("b", "V")}
        assert (await delivery_of(store)).revision == progress.revision  # what is under way is not disturbed
        assert await store.save_progress("me", progress)
        assert not await store.save_progress("other", progress)
        await store.release_webhooks("other")
        assert await store.save_progress("me", progress)
        await store.release_webhooks("me")
        assert not await store.save_progress("me", progress)
        assert set(await store.claim_webhooks("other", LONG_S)) == {("a", "W"), ("b", "V")}
        assert await store.webhooks_version() == version

    play(url, scenario)


def test_who_owned_it_before_can_save_nothing_even_as_the_owner_again(url: str) -> None:
    """Another one has gone on meanwhile: what the first one remembers is old."""

    async def scenario(store: Store) -> None:
        old = await owned(store)
        await store.release_webhooks("me")
        await store.claim_webhooks("other", LONG_S)
        theirs = await delivery_of(store)
        assert await store.save_progress("other", Progress("a", "W", theirs.revision, 50, [a_blocked("C", 40)]))
        await store.release_webhooks("other")
        assert await store.claim_webhooks("me", LONG_S) == [("a", "W")]
        assert not await store.save_progress("me", saying(old, position=6))
        found = await delivery_of(store)
        assert (found.position, found.blocked) == (50, (a_blocked("C", 40),))
        assert await store.save_progress("me", Progress("a", "W", found.revision, 60))

    play(url, scenario)


@pytest.mark.sqlite_only("one process records in a file: it never waits for the claims of the one before")
def test_the_next_process_works_at_once(url: str) -> None:
    async def first(store: Store) -> None:
        await owned(store, "killed")

    async def second(store: Store) -> None:
        assert await store.claim_webhooks("me", LONG_S) == [("a", "W")]
        found = await delivery_of(store)
        assert not await store.save_progress("killed", Progress("a", "W", found.revision, 6))
        assert await store.save_progress("me", Progress("a", "W", found.revision, 6))

    play(url, first, second)


@pytest.mark.postgresql_only("a database has many processes: a claim keeps the others away until it ends")
def test_a_webhook_goes_over_once_its_claim_has_ended(url: str) -> None:
    async def scenario(store: Store) -> None:
        async with opened(url) as other:
            mine = await owned(store)
            assert await other.claim_webhooks("other", LONG_S) == []
            assert await store.claim_webhooks("me", 0.3) == [("a", "W")]
            await until_claimed(other, "other")
            assert await store.claim_webhooks("me", LONG_S) == []
            assert not await store.save_progress("me", saying(mine, position=99))
            theirs = await delivery_of(other)
            assert (theirs.position, theirs.revision) == (5, mine.revision + 1)
            assert await other.save_progress("other", Progress("a", "W", theirs.revision, 6))

    play(url, scenario)


@pytest.mark.postgresql_only("a database has many processes: a claim that has ended is nobody's")
def test_a_claim_that_has_ended_saves_nothing_until_it_is_made_again(url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        await store.claim_webhooks("me", 0.0)
        assert not await store.save_progress("me", progress)
        assert await store.claim_webhooks("me", LONG_S) == [("a", "W")]
        assert await store.save_progress("me", progress)  # nobody else had it: what it remembers is true

    play(url, scenario)


@pytest.mark.postgresql_only("only a database has several processes that claim at once")
def test_a_webhook_is_claimed_by_one_of_many_at_once(url: str) -> None:
    names = [f"W{number}" for number in range(20)]

    async def scenario(store: Store) -> None:
        for name in names:
            await store.add_webhook(a_webhook(name), 0)
        async with AsyncExitStack() as open_ones:
            nodes = [store, *[await open_ones.enter_async_context(opened(url)) for _ in range(4)]]
            for ttl_s in (0.0, LONG_S):  # taken over from one that has ended, then from nobody
                claims = [node.claim_webhooks(f"node-{n}", LONG_S) for n, node in enumerate(nodes)]
                claimed = [name for claim in await asyncio.gather(*claims) for _, name in claim]
                assert sorted(claimed) == sorted(names)
                for n, node in enumerate(nodes):
                    await node.claim_webhooks(f"node-{n}", ttl_s)

    play(url, scenario)


@pytest.mark.postgresql_only("only a database is changed from several places at once")
def test_webhooks_that_are_added_at_once_have_an_order(url: str) -> None:
    async def scenario(store: Store) -> None:
        async with opened(url) as other:
            await asyncio.gather(*(one.add_webhook(a_webhook(f"{n}{one is store}"), 0) for n in range(10)
                                   for one in (store, other)))  # fmt: skip
            assert await store.webhooks("a") == await other.webhooks("a")
            assert await store.webhooks_version() == await other.webhooks_version() == 20

    play(url, scenario)


_FROM_OUTSIDE = """
import asyncio, sys
from turnlog.model import SigningSecret, Webhook
from turnlog.store.connect import open_keys

async def run(url):
    async with open_keys(url) as store:
        before = await store.webhooks_version()
        (there,) = await store.webhooks("a")
        await store.add_webhook(Webhook("new", "a", "https://x", (SigningSecret("whsec_x", 1),), 3, 3), 2)
        assert await store.change_webhook(there)
        assert await store.replay_dead("a", "W", None) == 2
        assert [one.position for one in (await store.delivery("a", "W")).replays] == [1, 2]
        assert await store.replay_from("a", "W", 1, 70)
        assert [one.position for one in await store.dead_letters("a", "W", after=0, limit=9)] == [1]
        assert await store.delete_webhook("a", "new")
        assert await store.webhooks_version() == before + 5

asyncio.run(run(sys.argv[1]))
"""


def test_another_process_changes_webhooks_beside_the_one_that_records(url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        assert await store.save_progress("me", saying(progress, dead=[a_dead(1), a_dead(2)]))
        version = await store.webhooks_version()
        other = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", _FROM_OUTSIDE, url], capture_output=True, text=True, check=False
        )
        assert other.returncode == 0, other.stderr
        assert await store.webhooks_version() == version + 5
        found = await delivery_of(store)
        assert (found.position, found.retry_from_at) == (1, 70)
        assert not await store.save_progress("me", saying(progress, position=9))
        assert await store.claim_webhooks("me", LONG_S) == [("a", "W")]
        assert await store.save_progress("me", Progress("a", "W", found.revision, 9, replayed=[1]))

    play(url, scenario)
