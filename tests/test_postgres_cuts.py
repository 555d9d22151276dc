"""P01 at the store's protocol: the way to the server is cut at every statement of every kind of write.

Whatever the server had done by then, the write has its right outcome, and nothing of it is there twice.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import pytest

from tests.proxy import Proxy
from turnlog.errors import AlreadyRecordedError, Error
from turnlog.model import ApiKey, NewAuthentication, NewConversation, NewMessage, Participant
from turnlog.store.connect import open_store
from turnlog.store.protocol import (
    AppendMessages,
    Idempotency,
    KeyRecord,
    PutConversation,
    RecordAuthentication,
    StoreUncertainError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

    from tests.proxy import Where
    from tests.stores import Stores
    from turnlog.store.protocol import Store, Write

pytestmark = pytest.mark.postgresql_only("only a store at the other end of a network can be cut off")

TTL_US = 10**12
MARKER = "here is the cut"
STATEMENT, COMMIT = MARKER.encode(), b"COMMIT"
"""What the packet holds that does a write: the one statement of messages, and the end of every other transaction."""


def _messages(number: int, *, key: bool = False, refuse_repeats: bool = False, prefix: str = "M") -> AppendMessages:
    """Two messages; their number is their time, so that no two writes have the same."""
    messages = [NewMessage(f"{prefix}{part} {MARKER}", "agent", "bob", number) for part in range(2)]
    ids = [f"{prefix}{number}/{part}" for part in range(2)]
    idempotency = Idempotency(f"key-{number}", b"print") if key else None
    return AppendMessages("a", "C", messages, ids, number, idempotency, refuse_repeats)


def _put(number: int, name: str, agent: str | None = None, *, account: str = "a") -> PutConversation:
    new = NewConversation(name, Participant("jane"), 5, agent=None if agent is None else Participant(agent))
    return PutConversation(account, new, f"NEW{number}", number)


def _fact(number: int, customer: str = "jane") -> RecordAuthentication:
    return RecordAuthentication("a", "C", NewAuthentication(customer, ("token",)), number)


WRITES: dict[str, Callable[[int], Sequence[Write]]] = {
    "plain": lambda n: [_messages(n)],
    "keyed": lambda n: [_messages(n, key=True)],
    "refusing repeats": lambda n: [_messages(n, refuse_repeats=True)],
    "new conversation": lambda n: [_put(n, f"conversation-{n}")],
    "changed conversation": lambda n: [_put(n, "external-C", f"agent-{n}")],
    "authentication": lambda n: [_fact(n), _fact(n)],
    "all at once": lambda n: [
        _messages(n),
        _messages(n, key=True, prefix="K"),
        _messages(n, refuse_repeats=True, prefix="R"),
        _put(n, f"conversation-{n}"),
        _put(n, "external-C", f"agent-{n}"),
        _fact(n),
        _fact(n, "john"),
    ],
}
_STORED = """
    SELECT (SELECT count(*) FROM turnlog.message WHERE created_at = $1),
        (SELECT count(*) FROM turnlog.idempotency WHERE created_at = $1),
        (SELECT count(*) FROM turnlog.conversation WHERE created_at = $1),
        (SELECT count(*) FROM turnlog.conversation_change WHERE changed_at = $1),
        (SELECT count(*) FROM turnlog.authentication WHERE created_at = $1)
"""
# How many entries the log has, and how many it says it has.
_LOG = """
    SELECT account, position,
        (SELECT count(*) FROM turnlog.message AS m WHERE m.account = log.account)
        + (SELECT count(*) FROM turnlog.conversation_change AS c WHERE c.account = log.account)
    FROM turnlog.log
"""


class Database:
    """A store's database with one account and the conversation C in it, looked at past any proxy."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.url)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *arguments)]
        finally:
            await connection.close()

    async def stored(self, number: int) -> tuple[int, ...]:
        """How many rows of each kind a write left."""
        return (await self.ask(_STORED, number))[0]

    @asynccontextmanager
    async def opened(self, url: str | None = None, deadline_s: float = 10) -> AsyncIterator[Store]:
        store = await open_store(url or self.url, idempotency_ttl_us=TTL_US, deadline_s=deadline_s)
        try:
            yield store
        finally:
            await store.close()

    async def prepare(self) -> None:
        async with self.opened() as store:
            await store.add_key(KeyRecord(ApiKey("key", "tests", "a", ("read",), 1), ()))
            create = NewConversation("external-C", Participant("jane"), 5, id="C")
            await store.append([PutConversation("a", create, "NEW", 1)])


@pytest.fixture
def database(new_store: Callable[[], str]) -> Database:
    made = Database(new_store())
    asyncio.run(made.prepare())
    return made


@pytest.fixture(scope="module")
def shared(stores: Stores) -> Iterator[Database]:
    """One database for the tests that ask about writes of their own only."""
    made = Database(stores.new())
    asyncio.run(made.prepare())
    yield made
    assert all(position == entries for _, position, entries in asyncio.run(made.ask(_LOG))), "the log has a gap"
    stores.drop(made.url)


_numbers = itertools.count(1000)


def _shape(outcomes: list[object], number: int) -> list[object]:
    """Outcomes without the write's number, to be compared with those of another write."""
    assert not any(isinstance(outcome, Error) for outcome in outcomes), outcomes
    return [str(outcome).replace(str(number), "…") for outcome in outcomes]


async def _cut_everywhere(database: Database, kind: str, where: Where) -> tuple[int, int]:
    """Cut the way of such a write at its first packet, at its second, …: the cuts, and outcomes that were unknown."""
    cuts = unknown = 0
    write = WRITES[kind]
    async with Proxy(database.url) as proxy, database.opened(proxy.url) as store:
        number = next(_numbers)
        whole = _shape(await store.append(write(number)), number)
        rows = await database.stored(number)
        assert sum(rows), "the write of the comparison left nothing"
        while unknown < 5:
            await store.append(write(next(_numbers)))  # warms up the connection that is to be cut
            number = next(_numbers)
            proxy.cut(where, cuts + 1)
            try:
                outcomes = await store.append(write(number))
            except StoreUncertainError:  # a slow machine, which has to try this cut again
                assert await database.stored(number) in (rows, (0,) * len(rows))
                unknown += 1
                continue
            assert _shape(outcomes, number) == whole, f"cut {where} packet {cuts + 1}"
            assert await database.stored(number) == rows, f"cut {where} packet {cuts + 1}"
            if proxy.spare():
                break
            cuts += 1
    return cuts, unknown


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", WRITES)
def test_a_write_is_done_once_wherever_the_way_is_cut(shared: Database, kind: str, where: Where) -> None:
    """Before or behind each packet that the write sends, on a connection that has been used before."""
    cuts, unknown = asyncio.run(_cut_everywhere(shared, kind, where))
    assert cuts >= 1, "invalid run: no cut hit the write"
    assert unknown < 5


@pytest.mark.parametrize("kind", ["plain", "keyed"])
def test_a_statement_that_arrives_after_its_own_retry_is_not_done_again(shared: Database, kind: str) -> None:
    """The network gave the connection up and delivered its last packet all the same."""

    async def scenario() -> None:
        async with Proxy(shared.url) as proxy, shared.opened(proxy.url) as store:
            number = next(_numbers)
            await store.append(WRITES[kind](number))
            rows = await shared.stored(number)
            number = next(_numbers)
            proxy.cut("late", marker=STATEMENT)
            outcomes = await store.append(WRITES[kind](number))
            assert proxy.cuts == 1, "invalid run: the cut did not hit the write"
            assert await shared.stored(number) == rows
            assert b"23505" in await proxy.deliver(), "invalid run: the server did not get the statement"
            assert await shared.stored(number) == rows
            assert _shape(outcomes, number) == ["['M…/0', 'M…/1']"]

    asyncio.run(scenario())


@pytest.mark.parametrize("kind", ["refusing repeats", "changed conversation"])
def test_a_commit_that_arrives_late_is_not_overtaken_by_its_retry(shared: Database, kind: str) -> None:
    """It still holds the account: the retry waits, and says in the end that it does not know."""

    async def scenario() -> None:
        async with Proxy(shared.url) as proxy, shared.opened(proxy.url) as store:
            number = next(_numbers)
            await store.append(WRITES[kind](number))
            rows = await shared.stored(number)
            for _ in range(5):
                number = next(_numbers)
                proxy.cut("late", marker=COMMIT)
                with pytest.raises(StoreUncertainError):
                    await store.append(WRITES[kind](number))
                in_time = COMMIT in await proxy.deliver()
                assert await shared.stored(number) == (rows if in_time else (0,) * len(rows))
                if in_time:
                    return
        raise AssertionError("invalid run: the server gave each connection up before its COMMIT arrived")

    asyncio.run(scenario())


# Two nodes: another one records between the cut and the retry.


async def _cut_off(
    database: Database, where: Where, marker: bytes, mine: Write, others: Write
) -> tuple[object, object]:
    """The outcomes of a write whose way is cut, and of another node's that comes between it and its retry."""
    got: list[object] = []
    async with Proxy(database.url) as proxy, database.opened(proxy.url) as store, database.opened() as other:

        async def between() -> None:
            got.extend(await other.append([others]))

        proxy.cut(where, marker=marker, then=between)
        (outcome,) = await store.append([mine])
        assert proxy.cuts == 1, "invalid run: the cut did not hit the write"
    return outcome, got[0]


@pytest.mark.parametrize("where", ["before", "after"])
def test_another_nodes_messages_between_a_write_and_its_retry_stay_between(database: Database, where: Where) -> None:
    others = _messages(300)
    outcome, _ = asyncio.run(_cut_off(database, where, STATEMENT, _messages(200), others))
    assert outcome == ["M200/0", "M200/1"]
    listed = [row[0] for row in asyncio.run(database.ask("SELECT id FROM turnlog.message ORDER BY position"))]
    assert listed == [f"M{n}/{part}" for n in ((200, 300) if where == "after" else (300, 200)) for part in range(2)]


@pytest.mark.parametrize("where", ["before", "after"])
def test_the_same_key_through_another_node_between_a_write_and_its_retry(database: Database, where: Where) -> None:
    """Whoever was first, both have the ids that are stored."""
    mine = _messages(200, key=True)
    twin = msgspec.structs.replace(mine, ids=["TWIN0", "TWIN1"])
    outcomes = asyncio.run(_cut_off(database, where, STATEMENT, mine, twin))
    assert outcomes == ((mine if where == "after" else twin).ids,) * 2
    assert asyncio.run(database.stored(200)) == (2, 1, 0, 0, 0)


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_repeat_through_another_node_between_a_write_and_its_retry(database: Database, where: Where) -> None:
    """The one that was first is recorded, the other is told so."""
    mine = _messages(200, refuse_repeats=True)
    twin = msgspec.structs.replace(mine, ids=["TWIN0", "TWIN1"])
    outcomes = asyncio.run(_cut_off(database, where, COMMIT, mine, twin))
    first, second = outcomes if where == "after" else outcomes[::-1]
    assert first == (mine if where == "after" else twin).ids
    assert isinstance(second, AlreadyRecordedError)
    assert asyncio.run(database.stored(200))[0] == 2


@pytest.mark.parametrize("where", ["before", "after"])
def test_another_nodes_change_between_a_change_and_its_retry(database: Database, where: Where) -> None:
    """Each is in the log once, and the later one is what stays."""
    mine, others = _put(200, "external-C", "mine"), _put(300, "external-C", "others")
    asyncio.run(_cut_off(database, where, COMMIT, mine, others))
    changes = "SELECT changed_at FROM turnlog.conversation_change ORDER BY position"
    order = [200, 300] if where == "after" else [300, 200]
    assert [at for (at,) in asyncio.run(database.ask(changes))] == [1, *order]
    ((agent,),) = asyncio.run(database.ask("SELECT agent FROM turnlog.conversation"))
    assert agent == ("others" if where == "after" else "mine")


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_creation_through_another_node_between_a_creation_and_its_retry(database: Database, where: Where) -> None:
    """One conversation, one id."""
    mine, others = _put(200, "new", "mine"), _put(300, "new", "others")
    outcomes = asyncio.run(_cut_off(database, where, COMMIT, mine, others))
    first, last = ("NEW200", "others") if where == "after" else ("NEW300", "mine")
    assert outcomes == (first, first)
    assert asyncio.run(database.ask("SELECT id, agent FROM turnlog.conversation WHERE id <> 'C'")) == [(first, last)]
    assert asyncio.run(database.ask("SELECT count(*) FROM turnlog.conversation_change")) == [(3,)]


@pytest.mark.parametrize("where", ["before", "after"])
def test_another_nodes_authentication_between_one_and_its_retry(database: Database, where: Where) -> None:
    asyncio.run(_cut_off(database, where, COMMIT, _fact(200), _fact(300)))
    facts = "SELECT created_at FROM turnlog.authentication ORDER BY number"
    assert asyncio.run(database.ask(facts)) == ([(200,), (300,)] if where == "after" else [(300,), (200,)])
