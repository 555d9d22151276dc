"""What is asked of webhooks goes along indexes, however much one of them has given up; and what an outage comes to."""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

import apsw
import pytest

from tests.stores import path_of
from tests.subscriptions import LONG_S, a_blocked, a_dead, a_webhook, delivery_of, opened, owned, play, saying
from turnlog.store.postgres import PostgresStore, webhooks
from turnlog.store.protocol import StoreUnavailableError
from turnlog.store.sqlite import SqliteStore
from turnlog.store.webhooks import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.postgres import Cluster
    from turnlog.store.protocol import Store

# Walked as a whole, in which nothing is kept per event: every webhook there is, and one row.
SMALL = {"webhook", "w", "webhooks_version", "account", "a"}


async def _everything(store: Store) -> None:
    progress = await owned(store)
    full = saying(progress, blocked=[a_blocked("C"), a_blocked("D")], dead=[a_dead(n) for n in range(1, 9)])
    assert await store.save_progress("me", full)
    assert await store.save_progress("me", saying(progress, unblocked=["C"], replayed=[1], disabled="why"))
    assert await store.change_webhook(a_webhook(url="https://example.org"))
    assert await store.replay_dead("a", "W", [2, 3]) == 2
    assert await store.replay_dead("a", "W", None) == 5
    assert len(await store.webhooks("a")) == 1
    assert (await delivery_of(store)).replays
    assert len(await store.dead_letters("a", "W", after=2, limit=2)) == 2
    assert await store.replay_from("a", "W", 4, 9)
    await store.release_webhooks("me")
    assert await store.delete_webhook("a", "W")
    await store.webhooks_version()


@pytest.mark.sqlite_only("SQLite tells of each step what it scans")
def test_every_statement_is_a_search_in_a_file(new_store: Callable[[], str]) -> None:
    url = new_store()
    executed: dict[str, int] = {}

    def remember(_cursor: object, sql: str, bindings: Any) -> bool:
        executed.setdefault(sql, len(bindings or ()))
        return True

    async def scenario(store: Store) -> None:
        assert isinstance(store, SqliteStore)
        for connection in (store._writer, store._reader):
            connection.set_exec_trace(remember)
        await _everything(store)

    play(url, scenario)
    connection = apsw.Connection(str(path_of(url)))
    plans = {
        sql: [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", [0] * count)]
        for sql, count in executed.items()
        if sql.split()[0] in ("SELECT", "INSERT", "REPLACE", "UPDATE", "DELETE")
    }
    connection.close()
    assert len(plans) > 20
    for sql, plan in plans.items():
        for step in plan:
            found = re.match(r"SCAN (\w+)", step)
            assert found is None or found[1] in SMALL | {"CONSTANT", "json_each"}, (sql, plan)
            assert "TEMP B-TREE" not in step, (sql, plan)
        if "position IN" in sql or ("position = ?" in sql and "DELETE" in sql):
            assert any("(webhook=? AND position=?)" in step for step in plan), (sql, plan)
    (replays,) = [plan for sql, plan in plans.items() if "AND replayed ORDER BY" in sql]
    assert "webhook_dead_replayed" in replays[0], replays


@pytest.mark.postgresql_only("PostgreSQL tells of each step which index it goes along")
@pytest.mark.parametrize("analyzed", [False, True], ids=["young", "analyzed"])
def test_every_statement_goes_along_an_index_of_one_webhook(new_store: Callable[[], str], analyzed: bool) -> None:
    """With and without statistics, of a webhook that has given up much, and of which nothing is to be sent again."""
    sent: dict[str, tuple[Any, ...]] = {}

    async def scenario(store: Store) -> None:
        assert isinstance(store, PostgresStore)
        async with store._delivering.use(5) as one, store._delivering.use(5) as another:
            for connection in (one, another):
                connection.add_query_logger(lambda record: sent.setdefault(record.query, record.args))
        await _everything(store)
        progress = await owned(store)
        many = [a_dead(n) for n in range(1, 5000)]
        assert await store.save_progress("me", saying(progress, dead=many))
        async with store._delivering.use(30) as connection:
            if analyzed:
                await connection.execute("ANALYZE turnlog.webhook_dead")
            for query, arguments in list(sent.items()):
                if "turnlog.webhook_" not in query or query.startswith("EXPLAIN"):
                    continue
                given = arguments[0] if arguments and isinstance(arguments[0], tuple) else arguments
                (found,) = await connection.fetchrow(f"EXPLAIN (FORMAT JSON) {query}", *given)
                _look(query, json.loads(found)[0]["Plan"])

    play(new_store(), scenario)
    ours = {sql for name, sql in vars(webhooks).items() if isinstance(sql, str) and "turnlog.webhook_" in sql}
    assert len(ours) > 8
    assert ours <= sent.keys()


def _look(query: str, node: dict[str, Any]) -> None:
    if "Scan" in node["Node Type"] and "Relation Name" in node:
        assert node["Node Type"] == "Index Scan", (query, node)
        condition = node["Index Cond"]
        assert "account = " in condition, (query, node)
        assert "webhook = " in condition, (query, node)
        replays = "AND replayed ORDER BY" in query
        assert (node["Index Name"] == "webhook_dead_replayed") == replays, (query, node)
        for column in ("position", "conversation"):
            if re.search(rf"AND {column} [=>] ", query):
                assert column in condition, (query, node)
    for part in node.get("Plans", ()):
        _look(query, part)


@pytest.mark.postgresql_only("only a database can be away while this process is not")
def test_a_database_that_was_away(cluster: Cluster) -> None:
    """Every call is refused meanwhile, and answered afterwards; what was claimed and saved before is still there."""
    url = cluster.create_database()

    async def scenario(store: Store) -> None:
        progress = await owned(store)
        await asyncio.to_thread(cluster.stop)
        calls: tuple[Callable[[], Any], ...] = (
            store.webhooks_version,
            lambda: store.webhooks("a"),
            lambda: store.delivery("a", "W"),
            lambda: store.replay_from("a", "W", 0, 1),
            lambda: store.claim_webhooks("me", LONG_S),
            lambda: store.save_progress("me", saying(progress, position=50)),
        )
        for call in calls:
            with pytest.raises(StoreUnavailableError):
                await call()
        await asyncio.to_thread(cluster.start)
        async with asyncio.timeout(30):
            while not await _answers(store):  # noqa: ASYNC110 - nobody tells of a server that is back
                await asyncio.sleep(0.05)
        assert (await delivery_of(store)).position == progress.position
        assert await store.save_progress("me", saying(progress, position=50))
        async with opened(url) as other:
            assert await other.claim_webhooks("other", LONG_S) == []
            assert (await delivery_of(other)).position == 50

    play(url, scenario)


async def _answers(store: Store) -> bool:
    try:
        await store.webhooks_version()
    except StoreUnavailableError:
        return False
    return True


@pytest.mark.postgresql_only("only this store's calls use what needs a task")
def test_a_caller_need_not_be_a_task(new_store: Callable[[], str]) -> None:
    """As http/steps.py carries out an answer: it awaits futures, and nothing else."""

    async def scenario(store: Store) -> None:
        progress = await owned(store)
        done = asyncio.get_running_loop().create_future()

        async def all_of_it() -> None:
            await store.claim_webhooks("me", LONG_S)
            await store.delivery("a", "W")
            saved = await store.save_progress("me", Progress("a", "W", progress.revision, 8))
            done.set_result(saved and await store.replay_from("a", "W", 1, 1))

        steps = all_of_it().__await__()

        def step(_future: object = None) -> None:
            try:
                waits_for = next(steps)
            except StopIteration:
                return
            assert waits_for is not None
            waits_for._asyncio_future_blocking = False
            waits_for.add_done_callback(step)

        asyncio.get_running_loop().call_soon(step)
        assert await asyncio.wait_for(done, 10)

    play(new_store(), scenario)
