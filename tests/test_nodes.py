"""Several servers on one store: what one promises, all keep together."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import asyncpg
import httpx
import pytest

from tests.failover import run
from tests.harness import V1, Server, conversation, create_conversation, error_of, message, run_cli, wait_for
from tests.history import log_problems
from turnlog.ids import Place
from turnlog.model import ApiKey, NewConversation, NewMessage, Participant
from turnlog.store.connect import open_store
from turnlog.store.protocol import AppendMessages, KeyRecord, PutConversation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.postgres import Cluster
    from turnlog.store.protocol import Store

pytestmark = pytest.mark.postgresql_only("an SQLite file has one server")

SEED = 20211123


@pytest.fixture
def nodes(start: Callable[..., Server]) -> tuple[Server, Server]:
    """Two servers on one store."""
    return start(), start()


@pytest.fixture
def clients(nodes: tuple[Server, Server]) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    """One for each node, with a key of one account."""
    key = nodes[0].create_key("tests")
    with nodes[0].client(key) as first, nodes[1].client(key) as second:
        yield first, second


def _texts(client: httpx.Client, path: str) -> list[str]:
    return [item["text"] for item in client.get(path).json()["items"]]


def test_fifty_parallel_retries_of_one_key_through_two_nodes_are_one_row(
    nodes: tuple[Server, Server], clients: tuple[httpx.Client, ...]
) -> None:
    path = f"{V1}/conversations/{create_conversation(clients[0], 'c')}/messages"
    together = threading.Barrier(50)

    def send(number: int) -> httpx.Response:
        with httpx.Client(base_url=nodes[number % 2].base, headers=clients[0].headers, timeout=30) as client:
            client.get("/livez")
            together.wait()
            return client.post(path, json=message("once"), headers={"idempotency-key": "k"})

    for _ in range(3):  # the first round stores it; the later ones find it
        with ThreadPoolExecutor(50) as pool:
            answers = list(pool.map(send, range(50)))
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        assert len({answer.json()["id"] for answer in answers}) == 1
    assert _texts(clients[1], path) == ["once"]
    for client in clients:
        other = client.post(path, json=message("other"), headers={"idempotency-key": "k"})
        assert error_of(other, "422-02")


def test_a_thousand_upserts_of_ten_external_ids_through_two_nodes_are_ten_conversations(
    nodes: tuple[Server, Server], clients: tuple[httpx.Client, ...]
) -> None:
    def put(number: int) -> tuple[str, str]:
        name = f"chat-{number % 10}"
        body = conversation(name, metadata={"number": str(number)})
        answer = clients[number // 10 % 2].post(f"{V1}/conversations", json=body)
        assert answer.status_code == 200, answer.text
        return name, answer.json()["id"]

    with ThreadPoolExecutor(32) as pool:
        made = set(pool.map(put, range(1000)))
    assert len(made) == 10
    assert len({name for name, _ in made}) == 10
    assert log_problems(nodes[0].url) == []


def test_an_exact_repeat_is_refused_whichever_node_it_comes_through(
    nodes: tuple[Server, Server], clients: tuple[httpx.Client, ...]
) -> None:
    key = nodes[1].create_key("strict", "--refuse-repeats")
    path = f"{V1}/conversations/{create_conversation(clients[0], 'c')}/messages"
    together = threading.Barrier(20)
    with nodes[0].client(key) as first, nodes[1].client(key) as second:

        def send(number: int) -> httpx.Response:
            together.wait()
            return (first, second)[number % 2].post(path, json=message("once"))

        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(send, range(20)))
    stored = [answer for answer in answers if answer.status_code == 200]
    assert len(stored) == 1
    assert all(stored[0].json()["id"] in error_of(a, "409-01") for a in answers if a is not stored[0])


def test_a_revoked_key_is_refused_by_every_node_within_a_second(
    nodes: tuple[Server, Server], clients: tuple[httpx.Client, ...]
) -> None:
    made = nodes[0].create_key("short-lived")
    with nodes[0].client(made) as first, nodes[1].client(made) as second:
        assert run_cli("keys", "revoke", made.id, "--store", nodes[0].url).returncode == 0
        revoked_at = time.monotonic()
        for client in (first, second):
            wait_for(lambda: client.get("/v1/health").status_code == 401)  # noqa: B023 - called within the round
        assert time.monotonic() - revoked_at < 1


def test_a_cursor_of_one_node_goes_on_at_another(clients: tuple[httpx.Client, ...]) -> None:
    path = f"{V1}/conversations/{create_conversation(clients[0], 'c')}/messages"
    for n in range(7):
        assert clients[n % 2].post(path, json=message(str(n))).status_code == 200
    found, after = [], ""
    for client in itertools.cycle(clients):
        page = client.get(f"{path}?limit=2{after}").json()
        found += [item["text"] for item in page["items"]]
        if "nextCursor" not in page:
            break
        after = f"&after={page['nextCursor']}"
    assert found == [str(n) for n in range(7)]


def test_nodes_that_start_at_once_on_an_empty_database_make_its_tables_once(new_store: Callable[[], str]) -> None:
    url = new_store()
    servers = [Server(url) for _ in range(4)]
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(Server.start, servers))
        key = servers[0].create_key("tests")
        for server in servers:
            with server.client(key) as client:
                assert client.get("/readyz").status_code == 200
        assert sum(event["event"] == "migrated" for server in servers for event in server.log) == 1
    finally:
        for server in servers:
            server.kill()


@pytest.mark.parametrize("victim", ["database", "node", "both"])
def test_what_was_acknowledged_survives_kill_9_under_load(cluster: Cluster, victim: str) -> None:
    """INV of the fault list, and a log without gaps."""
    url = cluster.create_database()
    with Server(url) as first, Server(url) as second:
        key = first.create_key("load")
        for server in (first, second):
            with server.client(key):
                pass  # waits until the key is known

        def fail() -> float:
            if victim != "database":
                second.kill()
            if victim != "node":
                cluster.kill()
            dead_at = time.perf_counter()
            if victim != "node":
                cluster.start()
            if victim != "database":
                second.start()
            return dead_at

        figures = asyncio.run(run((first, second), key, fail, rounds=3))
        assert [server.stop() for server in (first, second)] == [0, 0]
        resolved = sum(event["event"] == "outcome_resolved" for server in (first, second) for event in server.log)
    print(  # noqa: T201 - the figures of the run
        f"\n{victim}: {figures.acknowledged} messages acknowledged, {figures.lost} lost, {figures.duplicated} twice; "
        f"{figures.retried} requests sent again, {resolved} batches resolved; {dict(figures.codes)}; "
        f"seconds to a write on both: {[round(s, 2) for s in figures.all_s]}"
    )
    assert figures.problems == []
    assert log_problems(url) == []
    doubted = figures.codes["503-02"] + figures.cut  # also of requests without a key, which are not sent again
    assert figures.retried or resolved or doubted, "invalid run: no kill hit a busy moment"


# P10: the log is gap-free and in commit order for whoever reads it, wherever.


async def _made(url: str, *accounts: str) -> Store:
    store = await open_store(url, idempotency_ttl_us=10**9)
    for account in accounts:
        await store.add_key(KeyRecord(ApiKey(f"key-{account}", "tests", account, ("read",), 1), ()))
        new = NewConversation("external", Participant("jane"), 1)
        await store.append([PutConversation(account, new, "C", 1)])
    return store


def _write(account: str, text: str) -> AppendMessages:
    return AppendMessages(account, "C", [NewMessage(text, "agent", "bob", 1)], [f"M{text}"], 1)


async def _log(store: Store, account: str) -> list[tuple[int, str]]:
    found = await store.messages(account, "C", after=None, limit=10_000)
    return [(one.position, one.text) for one in found or ()]


def test_a_transaction_held_open_is_never_overtaken_in_its_account(new_store: Callable[[], str]) -> None:
    """Position 2 is given, and position 3 is not visible before it is; other accounts go on meanwhile."""
    url = new_store()

    async def scenario() -> None:
        first, second = await _made(url, "a", "b"), await open_store(url, idempotency_ttl_us=10**9)
        held = await asyncpg.connect(url)
        transaction = held.transaction()
        await transaction.start()
        # What a node does that has recorded and not committed: its row of the log, then its message.
        position = await held.fetchval(
            "UPDATE turnlog.log SET position = position + 1 "
            "WHERE account = (SELECT account FROM turnlog.account WHERE name = 'a') RETURNING position"
        )
        await held.execute(
            "INSERT INTO turnlog.message (account, position, conversation, client_at, created_at, role, id, sender, "
            "text) SELECT c.account, $1, c.number, 1, 1, 0, 'MHELD', 'bob', 'held' FROM turnlog.conversation AS c "
            "JOIN turnlog.account AS a USING (account) WHERE a.name = 'a' AND c.id = 'C'",
            position,
        )
        behind = [
            asyncio.ensure_future(store.append([_write("a", f"late{n}")])) for n, store in enumerate((first, second))
        ]
        for n in range(20):
            await (first, second)[n % 2].append([_write("b", f"b{n}")])
            for reader in (first, second):
                assert await _log(reader, "a") == []
                assert await reader.last_position("a") == 1
        assert not any(one.done() for one in behind)
        await transaction.commit()
        await asyncio.gather(*behind)
        for reader in (first, second):
            found = await _log(reader, "a")
            assert found[0] == (2, "held")
            assert [place for place, _ in found] == [2, 3, 4]
            assert len(await _log(reader, "b")) == 20
        await asyncio.gather(held.close(), first.close(), second.close())

    asyncio.run(scenario())


def test_readers_on_every_node_see_the_log_without_gaps_while_all_write(new_store: Callable[[], str]) -> None:
    """Each look at the log of an account finds 2 to n, whoever is in the middle of what."""
    url = new_store()

    async def writer(store: Store, name: str, done: list[int]) -> None:
        chance = random.Random(f"{SEED}{name}")  # noqa: S311 - a repeatable run, not a secret
        for n in range(40):
            account = chance.choice("ab")
            await store.append([_write(account, f"{name}-{n}-{m}") for m in range(chance.choice((1, 2, 5)))])
            done[0] += 1

    async def reader(store: Store, writing: asyncio.Future[Any]) -> int:
        looks = 0
        place = {"a": 1, "b": 1}
        while not writing.done():
            for account in "ab":
                found = await store.messages(account, "C", after=Place(1, place[account]), limit=10_000)
                positions = [one.position for one in found or ()]
                assert positions == list(range(place[account] + 1, place[account] + 1 + len(positions)))
                place[account] += len(positions)
                looks += bool(positions)
        return looks

    async def scenario() -> None:
        stores = [await _made(url, "a", "b"), *[await open_store(url, idempotency_ttl_us=10**9) for _ in range(2)]]
        done = [0]
        writing = asyncio.gather(*(writer(stores[n % 3], f"w{n}", done) for n in range(9)))
        looks = await asyncio.gather(*(reader(store, writing) for store in stores))
        await writing
        assert done[0] == 360
        assert all(count > 10 for count in looks), f"invalid run: hardly anything was seen being written: {looks}"
        for store in stores:
            await store.close()

    asyncio.run(scenario())
    assert log_problems(url) == []
