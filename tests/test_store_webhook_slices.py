"""What goes through many dead letters in a file: in slices, between which others record, and which may be the last."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.subscriptions import a_blocked, a_dead, a_webhook, delivery_of, letters_of, owned, play, saying
from turnlog.store.protocol import StoreFailedError
from turnlog.store.sqlite import webhooks
from turnlog.store.sqlite.store import SqliteStore
from turnlog.store.webhooks import BEING_DELETED, Delivery, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from turnlog.store.protocol import Store

pytestmark = pytest.mark.sqlite_only("only a file has one writer, which recording waits for")

SLICE = 3
MANY = 10


@pytest.fixture
def play_with_many(
    new_store: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[SqliteStore, Progress], Coroutine[Any, Any, None]]], None]:
    """A webhook with the dead letters 1 to MANY, and one that the others are beside."""
    monkeypatch.setattr(webhooks, "SLICE", SLICE)

    def run(scenario: Callable[[SqliteStore, Progress], Coroutine[Any, Any, None]]) -> None:
        async def prepared(store: Store) -> None:
            assert isinstance(store, SqliteStore)
            progress = await owned(store)
            dead = [a_dead(n) for n in range(1, MANY + 1)]
            assert await store.save_progress("me", saying(progress, blocked=[a_blocked("C")], dead=dead))
            await scenario(store, progress)

        play(new_store(), prepared)

    return run


def _cut_behind(store: SqliteStore, transactions: int) -> Callable[[], None]:
    """Let so many changes through; then none, until what is returned is called."""
    carrying_out, left = store._carry_out, transactions

    def carry_out(work: Any, given: Any) -> Any:
        nonlocal left
        if not left:
            raise StoreFailedError("cut")
        left -= 1
        return carrying_out(work, given)

    store._carry_out = carry_out  # type: ignore[method-assign]

    def go_on() -> None:
        nonlocal left
        left = -1

    return go_on


def test_all_are_marked_once(play_with_many: Any) -> None:
    async def scenario(store: SqliteStore, _progress: Progress) -> None:
        assert await store.replay_dead("a", "W", [5]) == 1
        go_on = _cut_behind(store, 2)
        with pytest.raises(StoreFailedError):
            await store.replay_dead("a", "W", None)
        assert [one.position for one in (await delivery_of(store)).replays] == [1, 2, 3, 4, 5, 6]
        go_on()
        assert await store.replay_dead("a", "W", None) == 4
        assert len((await delivery_of(store)).replays) == MANY
        assert await store.replay_dead("a", "W", None) == 0

    play_with_many(scenario)


def test_a_deletion_that_was_cut_short_delivers_nothing_more_and_is_repeated(play_with_many: Any) -> None:
    async def scenario(store: SqliteStore, progress: Progress) -> None:
        version = await store.webhooks_version()
        go_on = _cut_behind(store, 2)
        with pytest.raises(StoreFailedError):
            await store.delete_webhook("a", "W")
        assert await store.webhooks_version() > version
        assert (await delivery_of(store)).webhook.disabled == BEING_DELETED
        assert len(await letters_of(store)) == MANY - 2 * SLICE
        go_on()
        assert not await store.save_progress("me", progress)
        assert await store.delete_webhook("a", "W")
        assert await store.delivery("a", "W") is None
        assert not await store.delete_webhook("a", "W")
        await store.add_webhook(a_webhook(), 1)
        assert await delivery_of(store) == Delivery(a_webhook(), 1, 10, 1)
        assert await letters_of(store) == []

    play_with_many(scenario)


@pytest.mark.parametrize("transactions", range(7))
def test_a_cursor_is_put_back_before_anything_is_forgotten(play_with_many: Any, transactions: int) -> None:
    async def scenario(store: SqliteStore, _progress: Progress) -> None:
        assert await store.replay_dead("a", "W", None) == MANY
        before = await delivery_of(store)
        go_on = _cut_behind(store, transactions)
        try:
            assert await store.replay_from("a", "W", 1, 777)
        except StoreFailedError:
            found, left = await delivery_of(store), await letters_of(store)
            assert found.position == 1 or len(left) == MANY
            assert found.position == before.position or [one.position for one in found.replays] == [1]
        go_on()
        assert await store.replay_from("a", "W", 1, 778)
        found = await delivery_of(store)
        assert (found.position, found.retry_from_at, found.blocked) == (1, 778, ())
        assert [one.position for one in await letters_of(store)] == [1]

    play_with_many(scenario)
