"""What the PostgreSQL store promises besides store/protocol.py: every statement goes along an index of one account."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.exercise import exercise
from turnlog.ids import Place
from turnlog.model import ApiKey, NewConversation, NewMessage, Participant
from turnlog.store.connect import open_store
from turnlog.store.postgres import PostgresStore, accounts, append, log, reads
from turnlog.store.postgres.store import READING, RECORDING
from turnlog.store.protocol import AppendMessages, KeyRecord, PutConversation

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.postgresql_only("the promises of this one store")

PLANNED = ("SELECT", "INSERT", "UPDATE", "DELETE", "WITH")
# What is the same for all accounts: small, read seldom, and copied to every node of an engine that distributes.
EVERYWHERE = {"account", "api_key", "keys_version", "schema_version", "copying", "log_name"}
# Each finds what it wants by its key alone, and reads nothing besides.
LOOK_UPS = (
    reads.CONVERSATION,
    reads.CONVERSATION_BY_EXTERNAL_ID,
    reads.MESSAGE,
    reads.PAGE,
    accounts.NUMBERS,
    append.BY_EXTERNAL_ID,
)
READ_ALONE = (
    log.NUMBER_BY_ID.one,
    log.NUMBER_BY_EXTERNAL_ID.one,
    log.PLACES,
    *log.OF_ALL.values(),
    *log.OF_MANY.values(),
)


async def _open(url: str) -> PostgresStore:
    store = await open_store(url, idempotency_ttl_us=1)
    assert isinstance(store, PostgresStore)
    return store


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for part in plan.get("Plans", ()) for node in _nodes(part))]


async def _together(store: PostgresStore) -> None:
    """Every kind of look-up for two at once, also of what is not known yet."""
    store._begin_anew()
    for _ in range(2):
        await asyncio.gather(
            *(store.message("a", name, "M1-1-0") for name in ("C", "NOWHERE", "ELSEWHERE")),
            *(store.conversation("a", name) for name in ("C", "NOWHERE")),
            *(store.conversation_by_external_id("a", name) for name in ("external", "nowhere")),
            *(store.messages("a", "C", after=None, limit=limit) for limit in (1, 2)),
        )
    puts = [PutConversation("a", NewConversation(name, Participant("jane"), 1), name, 1) for name in ("D", "E")]
    await store.append(puts)


async def _plans(url: str) -> dict[str, list[dict[str, Any]]]:
    """Every statement that recording and reading send, with the steps of PostgreSQL's plan for it in our sessions."""
    store = await _open(url)
    sent: dict[str, tuple[Any, ...]] = {}

    def remember(record: Any) -> None:
        sent.setdefault(record.query, record.args)

    async with AsyncExitStack() as all_of_them:
        for connections in [store._recording] * RECORDING + [store._reading] * READING:
            connection = await all_of_them.enter_async_context(connections.use(5))
            connection.add_query_logger(remember)
    await exercise(store)
    await _together(store)
    plans = {}
    async with store._recording.use(5) as connection:
        for query, arguments in list(sent.items()):
            if query.split()[0] in PLANNED and " turnlog." in query:
                (found,) = await connection.fetchrow(f"EXPLAIN (FORMAT JSON) {query}", *arguments)
                plans[query] = _nodes(json.loads(found)[0]["Plan"])
    await store.close()
    return plans


def test_every_look_up_is_an_index_search_within_one_account(new_store: Callable[[], str]) -> None:
    """Whatever the size of the tables: none is scanned, and what an account has is found without the others'."""
    plans = asyncio.run(_plans(new_store()))
    everything = " ".join(plans)
    for table in ("log", "conversation", "conversation_change", "message", "idempotency", "authentication"):
        assert f"turnlog.{table}" in everything, table
    steps = [(query, node) for query, nodes in plans.items() for node in nodes]
    for query, node in steps:
        table = node.get("Relation Name", "")
        if not table or node["Node Type"] == "ModifyTable" or table in EVERYWHERE:
            continue
        assert node["Node Type"] in ("Index Scan", "Index Only Scan"), (query, node)
        assert re.search(r"\baccount = ", node["Index Cond"]), (query, node)
    for query in [*(statement for each in LOOK_UPS for statement in (each.one, each.many)), *READ_ALONE]:
        assert not any("Filter" in node for node in plans[query] if "Index Name" in node), (query, plans[query])


def test_every_key_begins_with_the_account(new_store: Callable[[], str]) -> None:
    """What a distributed PostgreSQL asks for: it keeps an account's rows of all tables together."""
    url = new_store()

    async def look() -> list[tuple[str, str, str]]:
        await (await _open(url)).close()
        connection = await asyncpg.connect(url)
        try:
            return [
                tuple(row)
                for row in await connection.fetch(
                    "SELECT t.relname, i.relname, a.attname FROM pg_index AS x "
                    "JOIN pg_class AS i ON i.oid = x.indexrelid JOIN pg_class AS t ON t.oid = x.indrelid "
                    "JOIN pg_namespace AS n ON n.oid = t.relnamespace "
                    "JOIN pg_attribute AS a ON a.attrelid = t.oid AND a.attnum = x.indkey[0] "
                    "WHERE n.nspname = 'turnlog'"
                )
            ]
        finally:
            await connection.close()

    keys = asyncio.run(look())
    assert {table for table, _, _ in keys} > {"log", "message", "conversation", "idempotency", "account"}
    one_row = {"keys_version", "schema_version", "copying", "log_name", "webhooks_version"}
    assert [key for key in keys if key[2] != "account" and key[0] not in one_row] == []


@pytest.mark.parametrize("per_instant", [1, 7, 5000], ids=["spread", "sevens", "one-instant"])
def test_a_page_costs_the_same_at_any_depth(per_instant: int, new_store: Callable[[], str]) -> None:
    """Counted in pages of PostgreSQL's, which no other load can blur; also where all times are equal."""

    url = new_store()

    async def costs() -> list[int]:
        store = await _open(url)
        await store.add_key(KeyRecord(ApiKey("key-a", "tests", "a", ("read",), 1), ()))
        messages = [NewMessage(str(n), "agent", "bob", n // per_instant) for n in range(5000)]
        put = PutConversation("a", NewConversation("external", Participant("jane"), 1), "C", 1)
        await store.append([put, AppendMessages("a", "C", messages, [f"M{n}" for n in range(5000)], 1)])
        found = []
        async with store._reading.use(30) as connection:
            await connection.execute("ANALYZE turnlog.message")
            for depth in (1, 2500, 4900):  # the log begins with the conversation
                after = Place(depth // per_instant, depth + 2)
                page = await store.messages("a", "C", after=after, limit=10)
                assert [m.text for m in page or ()] == [str(n) for n in range(depth + 1, depth + 11)]
                query = f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {reads.PAGE.one}"
                (told,) = await connection.fetchrow(query, 0, 1, *after, 2**62, 10, 2**62)
                found.append(json.loads(told)[0]["Plan"]["Shared Hit Blocks"])
        await store.close()
        return found

    counted = asyncio.run(costs())
    assert max(counted) <= 2 * min(counted), counted


def test_a_connection_goes_to_whoever_asked_first(new_store: Callable[[], str]) -> None:
    """Also where somebody asks at the very moment at which it becomes free."""
    url = new_store()

    async def scenario() -> None:
        store = await _open(url)
        served: list[int] = []

        async def use(n: int) -> None:
            async with store._watching.use(30) as connection:
                served.append(n)
                await connection.fetchval("SELECT 1")
            if n < 100:
                await use(n + 100)

        await asyncio.gather(*(use(n) for n in range(20)))
        assert served == [*range(20), *range(100, 120)]
        await store.close()

    asyncio.run(scenario())
