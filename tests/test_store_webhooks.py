"""What every store promises of webhooks (store/webhooks.py), asked of each store directly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.subscriptions import (
    LONG_S,
    a_blocked,
    a_dead,
    a_webhook,
    delivery_of,
    letters_of,
    owned,
    play,
    saying,
)
from turnlog.errors import SettingError
from turnlog.store.webhooks import MOST_REPLAYS, Delivery, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from turnlog.store.protocol import Store


@pytest.fixture
def url(new_store: Callable[[], str]) -> str:
    return new_store()


def test_a_webhook_is_kept_as_it_was_given(url: str) -> None:
    first = a_webhook("Z", types=("message.created",), description="ours: “first” ✗")
    second = a_webhook("A", disabled="by its owner")

    async def scenario(store: Store) -> None:
        version = await store.webhooks_version()
        await store.add_webhook(first, 0)
        assert await store.webhooks_version() > version
        await store.add_webhook(second, 7)
        await store.add_webhook(a_webhook("B", account="b"), 3)

    async def reopened(store: Store) -> None:
        assert await store.webhooks("a") == [first, second]  # in the order of creation
        found = await delivery_of(store, "A")
        assert found == Delivery(second, 7, second.created_at, found.revision)
        assert [one.id for one in await store.webhooks("b")] == ["B"]
        assert await store.webhooks("nobody") == []

    play(url, scenario, reopened)


def test_a_webhook_needs_its_account(url: str) -> None:
    async def scenario(store: Store) -> None:
        version = await store.webhooks_version()
        with pytest.raises(SettingError, match="nobody"):
            await store.add_webhook(a_webhook(account="nobody"), 0)
        assert await store.webhooks_version() == version
        await store.add_webhook(a_webhook(), 0)  # and the store goes on

    play(url, scenario)


def test_a_change_replaces_all_but_the_cursor_and_creation(url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        held = saying(progress, position=6, blocked=[a_blocked("C")], hold_until=88)
        assert await store.save_progress("me", held)
        assert await store.change_webhook(a_webhook(description="other"))
        before, version = await delivery_of(store), await store.webhooks_version()
        assert (before.hold_until, before.blocked) == (88, (a_blocked("C"),))
        changed = a_webhook(url="https://example.org", types=("conversation.created",), disabled="why", updated_at=99)
        assert await store.change_webhook(msgspec.structs.replace(changed, created_at=77))
        found = await delivery_of(store)
        due = (a_blocked("C", next_at=0),)  # another receiver
        assert found == msgspec.structs.replace(
            before, webhook=changed, revision=found.revision, hold_until=0, blocked=due
        )
        assert found.revision > before.revision
        assert await store.webhooks_version() > version
        assert await store.change_webhook(changed, retry_from_at=500)
        assert (await delivery_of(store)).retry_from_at == 500
        assert not await store.change_webhook(a_webhook("nothing"))
        assert not await store.change_webhook(a_webhook(account="b"))

    play(url, scenario)


def test_a_deleted_webhook_is_gone_with_all_that_belonged_to_it(url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        full = saying(progress, blocked=[a_blocked("C")], dead=[a_dead(1), a_dead(2, replayed=True)])
        assert await store.save_progress("me", full)
        version = await store.webhooks_version()
        assert await store.delete_webhook("a", "W")
        assert await store.webhooks_version() > version
        assert not await store.delete_webhook("a", "W")
        assert await store.delivery("a", "W") is None
        assert (await store.webhooks("a"), await letters_of(store)) == ([], [])
        assert not await store.save_progress("me", full)
        assert await store.claim_webhooks("me", LONG_S) == []
        await store.add_webhook(a_webhook(), 1)
        assert await delivery_of(store) == Delivery(a_webhook(), 1, 10, 1)
        assert await letters_of(store) == []

    play(url, scenario)


def test_progress_is_stored_as_it_was_achieved(url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        version = await store.webhooks_version()
        first = saying(
            progress, position=9, blocked=[a_blocked("D", 7), a_blocked("C", 8)], dead=[a_dead(6), a_dead(3)]
        )
        for _ in range(2):  # a worker that does not know says it again
            assert await store.save_progress("me", first)
        found = await delivery_of(store)
        assert (found.position, found.revision, found.replays) == (9, progress.revision, ())
        assert set(found.blocked) == {a_blocked("C", 8), a_blocked("D", 7)}
        assert await letters_of(store) == [a_dead(3), a_dead(6)]
        later = a_blocked("C", 8, attempts=2, next_at=99, error="503")
        second = saying(progress, position=11, blocked=[later, a_blocked("E", 10)], unblocked=["D", "unheard of"])
        assert await store.save_progress("me", second)
        assert set((await delivery_of(store)).blocked) == {later, a_blocked("E", 10)}
        assert await store.save_progress("me", saying(progress, position=12, disabled="410 Gone"))
        found = await delivery_of(store)
        assert (found.position, found.webhook) == (12, a_webhook(disabled="410 Gone"))
        assert found.revision == progress.revision
        assert await store.webhooks_version() == version

    async def reopened(store: Store) -> None:
        found = await delivery_of(store)
        assert (found.position, len(found.blocked), found.webhook.disabled) == (12, 2, "410 Gone")

    play(url, scenario, reopened)


def test_every_change_from_outside_makes_progress_void(url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        assert await store.save_progress("me", saying(progress, dead=[a_dead(1), a_dead(2)]))
        changes: tuple[Callable[[], Coroutine[Any, Any, object]], ...] = (
            lambda: store.change_webhook(a_webhook(description="changed")),
            lambda: store.replay_from("a", "W", 2, 50),
            lambda: store.replay_dead("a", "W", None),
        )
        for change in changes:
            before, version = await delivery_of(store), await store.webhooks_version()
            assert await change()
            after = await delivery_of(store)
            assert after.revision > before.revision
            assert await store.webhooks_version() > version
            late = Progress(
                "a", "W", before.revision, 100, [a_blocked("C")], ["D"], [a_dead(90)], [1, 2], disabled="too late"
            )
            assert not await store.save_progress("me", late)
            assert await delivery_of(store) == after
            assert [letter.position for letter in await letters_of(store)] == [1, 2]
            assert await store.save_progress("me", Progress("a", "W", after.revision, after.position))

    play(url, scenario)


def test_progress_that_breaks_leaves_nothing_behind(url: str) -> None:
    """No kind of store can keep the last dead letter. What it raises is its own."""

    async def scenario(store: Store) -> None:
        progress = await owned(store)
        before = await delivery_of(store)
        broken = a_dead(1, error=None)
        with pytest.raises(Exception):  # noqa: B017, PT011 - a broken promise
            await store.save_progress(
                "me", saying(progress, position=9, blocked=[a_blocked("C")], dead=[a_dead(2), broken], disabled="why")
            )
        assert await delivery_of(store) == before
        assert await letters_of(store) == []

    play(url, scenario)


def test_dead_letters_come_in_pages_in_the_order_of_the_log(url: str) -> None:
    letters = [a_dead(n, type="conversation.updated", conversation=f"C{n}", error=f"error {n}") for n in range(1, 8)]

    async def scenario(store: Store) -> None:
        progress = await owned(store)
        assert await store.save_progress("me", saying(progress, dead=letters[::-1]))
        assert await letters_of(store, 0, 3) == letters[:3]
        assert await letters_of(store, 3, 3) == letters[3:6]
        assert await letters_of(store, 6, 3) == letters[6:]
        assert await letters_of(store, 7, 3) == []
        assert await store.dead_letters("a", "nothing", after=0, limit=9) == []

    play(url, scenario)


def test_dead_letters_that_are_to_be_sent_again(url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        assert await store.save_progress("me", saying(progress, dead=[a_dead(n) for n in range(1, 7)]))
        assert await store.replay_dead("a", "W", [2, 4, 4, 99]) == 2
        found = await delivery_of(store)
        assert found.replays == (a_dead(2, replayed=True), a_dead(4, replayed=True))
        version = await store.webhooks_version()
        assert await store.replay_dead("a", "W", [2, 99]) == 0  # nothing is changed, and nobody told
        assert await store.replay_dead("a", "W", []) == 0
        assert (await delivery_of(store), await store.webhooks_version()) == (found, version)
        # One was delivered, the other failed again, another one is new.
        again = a_dead(4, attempts=10, dead_at=60, error="still")
        settled = Progress("a", "W", found.revision, found.position, dead=[again, a_dead(8)], replayed=[2, 98])
        assert await store.save_progress("me", settled)
        assert (await delivery_of(store)).replays == ()
        assert await letters_of(store) == [a_dead(1), a_dead(3), again, a_dead(5), a_dead(6), a_dead(8)]
        assert await store.replay_dead("a", "W", None) == 6
        assert [letter.position for letter in (await delivery_of(store)).replays] == [1, 3, 4, 5, 6, 8]
        assert await store.replay_dead("a", "nothing", None) == 0
        assert await store.replay_dead("a", "nothing", [1]) == 0

    play(url, scenario)


def test_many_replays_come_with_one_delivery_after_another(url: str) -> None:
    many = range(1, MOST_REPLAYS + 6)

    async def scenario(store: Store) -> None:
        progress = await owned(store)
        assert await store.save_progress("me", saying(progress, dead=[a_dead(n) for n in many]))
        assert await store.replay_dead("a", "W", None) == len(many)
        found = await delivery_of(store)
        first = [letter.position for letter in found.replays]
        assert first == list(many[:MOST_REPLAYS])
        assert await store.save_progress("me", Progress("a", "W", found.revision, found.position, replayed=first))
        assert [letter.position for letter in (await delivery_of(store)).replays] == list(many[MOST_REPLAYS:])

    play(url, scenario)


@pytest.mark.parametrize("to", [4, 9, 20], ids=["back", "to-where-it-stands", "ahead"])
def test_the_cursor_is_put_back(to: int, url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        dead = [a_dead(n) for n in (3, 4, 5, 21)]
        assert await store.save_progress("me", saying(progress, position=9, blocked=[a_blocked("C", 7)], dead=dead))
        before = await delivery_of(store)
        assert await store.replay_from("a", "W", to, 777)
        assert await delivery_of(store) == Delivery(a_webhook(), to, 777, before.revision + 1)
        assert await letters_of(store) == [letter for letter in dead if letter.position <= to]
        assert not await store.replay_from("a", "nothing", 1, 1)
        assert await store.claim_webhooks("me", LONG_S) == [("a", "W")]

    play(url, scenario)


def test_another_account_sees_and_changes_nothing(url: str) -> None:
    async def scenario(store: Store) -> None:
        progress = await owned(store)
        assert await store.save_progress("me", saying(progress, blocked=[a_blocked("C")], dead=[a_dead(1)]))
        await store.add_webhook(a_webhook("V", account="b"), 1)
        before, version = await delivery_of(store), await store.webhooks_version()
        for account in ("b", "nobody"):
            assert await store.delivery(account, "W") is None
            assert await store.dead_letters(account, "W", after=0, limit=9) == []
            assert not await store.change_webhook(a_webhook(account=account))
            assert not await store.replay_from(account, "W", 1, 1)
            assert await store.replay_dead(account, "W", None) == 0
            assert not await store.delete_webhook(account, "W")
            assert not await store.save_progress("me", saying(progress, account=account, position=99))
            assert "W" not in [one.id for one in await store.webhooks(account)]
        assert (await delivery_of(store), await store.webhooks_version()) == (before, version)
        assert await letters_of(store) == [a_dead(1)]

    play(url, scenario)
