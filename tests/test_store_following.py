"""A store's log followed, read from another process, and in a copy."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.copying import copied, refusal
from tests.harness import run_cli
from tests.log_contents import CHARS, EVERYTHING, append, fill_log, make_accounts, opened, put, walk
from tests.stores import rows
from turnlog.errors import SettingError
from turnlog.model import Blocked, DeadLetter, Entry, SigningSecret, Webhook
from turnlog.store.connect import open_log
from turnlog.store.webhooks import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.store.protocol import LogPart, LogReader, Store, Write

WITHIN_S = 0.2 + 0.4
"""What is promised, and what a busy machine may add."""


class _Follower:
    """Follows a reader's logs for as long as it is entered."""

    def __init__(self, reader: LogReader) -> None:
        self.told: asyncio.Queue[str] = asyncio.Queue()
        self._reader = reader

    async def __aenter__(self) -> _Follower:
        self._task = asyncio.create_task(self._reader.follow(self.told.put_nowait))
        await asyncio.sleep(0.3)  # by then it hears
        self.forget()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert not self._task.done()
        self._task.cancel()
        await asyncio.wait([self._task])

    def forget(self) -> None:
        while not self.told.empty():
            self.told.get_nowait()

    async def hears(self, account: str, within_s: float = WITHIN_S) -> None:
        async with asyncio.timeout(within_s):
            while await self.told.get() != account:
                pass


def test_who_follows_is_told_at_once_of_what_the_own_process_records(new_store: Callable[[], str]) -> None:
    url = new_store()

    async def scenario(store: Store) -> None:
        await make_accounts(store)
        await store.append([put("C"), put("C", "b")])
        async with _Follower(store) as follower, _Follower(store) as other:
            for account in ("a", "b", "a"):
                await store.append([append([f"{random.random()}"], account=account)])  # noqa: S311
                for one in (follower, other):
                    assert account in [one.told.get_nowait() for _ in range(one.told.qsize())]
        await store.append([append(["unheard"])])

    async def run() -> None:
        async with opened(url) as store:
            await scenario(store)

    asyncio.run(run())


def test_who_follows_from_another_process_is_told_soon(new_store: Callable[[], str]) -> None:
    """`turnlog tail` and other nodes; on a store in a file, another connection stands for another process."""
    url = new_store()

    async def scenario() -> None:
        async with opened(url) as store:
            await make_accounts(store)
            await store.append([put("C"), put("C", "b")])
            async with open_log(url) as beside, _Follower(beside) as follower:
                for n in range(5):
                    for account in ("a", "b"):
                        await store.append([append([f"{n}"], account=account)])
                        await follower.hears(account)
                        assert await beside.last_position(account) == await store.last_position(account)
                assert await walk(beside, EVERYTHING) == await walk(store, EVERYTHING)
                assert await beside.log_name() == await store.log_name()
                assert await beside.log_start("a") == 0

    asyncio.run(scenario())


@pytest.mark.postgresql_only("one process alone records in a file")
@pytest.mark.parametrize("notified", [True, False], ids=["notified", "by-looking"])
def test_another_nodes_records_are_told_with_and_without_notifications(
    new_store: Callable[[], str], monkeypatch: pytest.MonkeyPatch, notified: bool
) -> None:
    monkeypatch.setattr("turnlog.store.postgres.following._LOOK_S", 3600 if notified else 0.15)
    url = new_store()

    async def scenario() -> None:
        async with opened(url) as one, opened(url) as other:
            await make_accounts(one)
            await one.append([put("C"), put("C", "b")])
            if not notified:
                monkeypatch.setattr("turnlog.store.postgres.following._TELL", "SELECT $1::text, $2::text")
            async with _Follower(other) as follower:
                if notified:  # who the accounts are was learned in the first look, and there is no second
                    assert other._logs._names == {0: "a", 1: "b"}  # type: ignore[attr-defined]
                for n in range(5):
                    for account in ("b", "a"):
                        await one.append([append([f"{n}"], account=account)])
                        await follower.hears(account)

    asyncio.run(scenario())


@pytest.mark.postgresql_only("only a server can be restarted")
def test_who_follows_goes_on_after_the_server_was_away(cluster: Any) -> None:
    url = cluster.create_database()

    async def scenario() -> None:
        async with opened(url) as one, opened(url) as other:
            await make_accounts(one)
            await one.append([put("C")])
            async with _Follower(other) as follower:
                await asyncio.to_thread(cluster.stop)
                await asyncio.to_thread(cluster.start)
                await asyncio.sleep(1.5)
                await one.append([append(["after"])])
                await follower.hears("a")

    asyncio.run(scenario())


@pytest.mark.postgresql_only("one process alone records in a file")
def test_a_reader_that_follows_two_nodes_misses_nothing_and_sees_nothing_twice(new_store: Callable[[], str]) -> None:
    url = new_store()
    count = 150

    async def record(store: Store, name: str) -> None:
        for n in range(count):
            writes: list[Write] = [append([f"{name} {n} {m}" for m in range(n % 3 + 1)])]
            await store.append([*writes, put("C", metadata={"n": f"{name} {n}"})] if n % 5 == 0 else writes)

    async def read(store: Store, done: asyncio.Event) -> list[Entry]:
        moved = asyncio.Event()
        following = asyncio.create_task(store.follow(lambda _: moved.set()))
        found: list[Entry] = []
        place = 0
        while True:
            moved.clear()
            ended = done.is_set()
            up_to = await store.last_position("a")
            part: LogPart = await store.log("a", EVERYTHING, after=place, up_to=up_to, limit=9, max_chars=CHARS)
            found += part.entries
            if part.reached == place:
                if ended:
                    break
                async with asyncio.timeout(10):
                    await moved.wait()
            place = part.reached
        following.cancel()
        return found

    async def scenario() -> None:
        async with opened(url) as one, opened(url) as other, opened(url) as third:
            await make_accounts(one)
            await one.append([put("C")])
            done = asyncio.Event()
            readers = [asyncio.create_task(read(store, done)) for store in (one, third)]
            await asyncio.gather(record(one, "one"), record(other, "other"))
            done.set()
            await one.append([append(["last"])])
            last = await one.last_position("a")
            for reader in readers:
                found = await reader
                positions = [entry.position for entry in found]
                assert positions == list(range(1, len(positions) + 1))
                assert len(positions) >= last - 1

    asyncio.run(scenario())


# From another process, and in a copy.


def test_a_log_that_is_not_there_is_refused_and_nothing_is_made(new_store: Callable[[], str]) -> None:
    url = new_store()

    async def look() -> None:
        async with open_log(url):
            pass

    with pytest.raises(SettingError, match="there is no store at"):
        asyncio.run(look())
    assert run_cli("keys", "create", "tests", "--store", url).returncode == 0
    asyncio.run(look())
    older = "PRAGMA user_version = 1" if url.startswith("sqlite") else "UPDATE schema_version SET version = 1"
    rows(url, older)
    with pytest.raises(SettingError, match="run `turnlog migrate"):
        asyncio.run(look())


async def _webhooks(store: Store) -> None:
    for number, account in enumerate(("a", "b", "a")):
        secret = (SigningSecret("whsec_x", 1),)
        webhook = Webhook(f"W{number}", account, f"https://example.com/{number}", secret, 1, 1, description="ü")
        await store.add_webhook(webhook, number)
    assert len(await store.claim_webhooks("worker", 60)) == 3
    for account, one in (("a", "W0"), ("b", "W1")):
        delivery = await store.delivery(account, one)
        assert delivery is not None
        blocked = [Blocked(f"C{n}", n, 2, 3, 4, "é") for n in range(1, 4)]
        dead = [DeadLetter(n, "message.created", "C1", 9, 3, 4, "gone") for n in (1, 3)]
        assert await store.save_progress("worker", Progress(account, one, delivery.revision, 5, blocked, (), dead))
    assert await store.replay_dead("b", "W1", [3]) == 1


async def _standing(store: Store) -> list[object]:
    found: list[object] = [await store.log_name()]
    for account in ("a", "b"):
        for webhook in await store.webhooks(account):
            found.append(await store.delivery(account, webhook.id))
            found.append(await store.dead_letters(account, webhook.id, after=0, limit=99))
    return found


def test_a_copy_keeps_the_logs_name_and_the_webhooks(
    new_store: Callable[[], str], tmp_path: Any, store_kind: str
) -> None:
    """There and back, over one that had other webhooks; nobody works for those that arrive."""
    first, other, back = new_store(), f"sqlite:///{tmp_path / 'other.db'}", new_store()

    async def fill() -> list[object]:
        async with opened(first) as store:
            await fill_log(store)
            await _webhooks(store)
            return await _standing(store)

    async def look(url: str) -> tuple[list[object], list[tuple[str, str]]]:
        async with opened(url) as store:
            return await _standing(store), await store.claim_webhooks("another", 60)

    before = asyncio.run(fill())
    for source, target in ((first, other), (other, back), (first, back)):
        counts = {check["kind"]: check["target"]["count"] for check in copied(source, target)["checks"]}
        assert counts["webhooks"] == 3 + 2 * 3 + 2 * 2
        assert rows(target, "SELECT count(*) FROM webhook WHERE owner IS NOT NULL") == [(0,)]
    for url in (other, back):
        standing, claimed = asyncio.run(look(url))
        assert _without_revisions(standing) == _without_revisions(before)
        assert sorted(claimed) == [("a", "W0"), ("a", "W2"), ("b", "W1")]


def _without_revisions(standing: list[object]) -> list[object]:
    return [str(one).partition(" revision=") if "revision" in str(one) else one for one in standing]


def test_a_half_copied_log_is_refused(new_store: Callable[[], str]) -> None:
    url = new_store()
    assert run_cli("keys", "create", "tests", "--store", url).returncode == 0
    rows(url, "INSERT INTO copying VALUES (1, 'sqlite:///x.db', 1)")
    assert "was not finished" in refusal(run_cli("keys", "list", "--store", url))

    async def look() -> None:
        async with open_log(url):
            pass

    with pytest.raises(SettingError, match="was not finished"):
        asyncio.run(look())
