"""A store's log as every store promises it (protocol.LogReader): read in order, whole and filtered."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.log_contents import CHARS, EVERYTHING, append, fill_log, make_accounts, opened, put, walk
from tests.stores import rows
from turnlog.model import Conversation, Entry, LogFilter, Message, Participant
from turnlog.store import log as store_log
from turnlog.store.postgres import log as postgres_log
from turnlog.store.sqlite import log as sqlite_log

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from turnlog.store.protocol import Store


def _of(entries: list[Entry], wanted: LogFilter) -> list[Entry]:
    return [
        entry
        for entry in entries
        if (wanted.types is None or entry.type in wanted.types)
        and wanted.conversation_id in (None, entry.conversation_id)
        and wanted.external_id in (None, entry.external_id)
    ]


@pytest.fixture
def play(new_store: Callable[[], str]) -> Callable[..., None]:
    """Runs a scenario on a new store."""
    url = new_store()

    def run(scenario: Callable[[Store], Coroutine[Any, Any, None]]) -> None:
        async def all_of_it() -> None:
            async with opened(url) as store:
                await scenario(store)

        asyncio.run(all_of_it())

    return run


def test_an_entry_says_what_happened_and_the_object_as_it_was_then(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        await make_accounts(store)
        jane, bob = Participant("jane"), Participant("bob", "Bob")
        await store.append([put("C"), append(["Grüße \x01\U0001f600"]), put("C", agent=bob, metadata={"ä": "1"})])
        part = await store.log("a", EVERYTHING, after=0, up_to=3, limit=99, max_chars=CHARS)
        message = Message("MaCGrüße \x01\U0001f600", 2, "Grüße \x01\U0001f600", "agent", "bob", 5, 9)
        later = Conversation("C", "external-C", jane, bob, {"ä": "1"})
        assert part.entries == [
            Entry(1, "conversation.created", 7, "C", "external-C", Conversation("C", "external-C", jane)),
            Entry(2, "message.created", 9, "C", "external-C", message),
            Entry(3, "conversation.updated", 7, "C", "external-C", later),
        ]
        assert part.reached == 3
        for account in ("b", "nobody"):
            assert await store.last_position(account) == 0
            assert await store.log(account, EVERYTHING, after=0, up_to=0, limit=9, max_chars=9) == ([], 0)

    play(scenario)


def test_from_every_position_and_with_every_limit_the_log_is_the_same(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        await fill_log(store)
        last = await store.last_position("a")
        whole = await walk(store, EVERYTHING, limit=10_000)
        assert [entry.position for entry in whole] == list(range(1, last + 1))
        assert {entry.type for entry in whole} == {"message.created", "conversation.created", "conversation.updated"}
        for limit in (1, 2, 3, 50):
            assert await walk(store, EVERYTHING, limit=limit) == whole
        for after in range(last):
            assert await walk(store, EVERYTHING, after=after) == whole[after:]
            part = await store.log("a", EVERYTHING, after=after, up_to=after + 1, limit=9, max_chars=CHARS)
            assert part == (whole[after : after + 1], after + 1)
        assert await store.log("a", EVERYTHING, after=last, up_to=last, limit=9, max_chars=9) == ([], last)

    play(scenario)


TYPES: list[frozenset[Any] | None] = [
    None,
    frozenset(),
    frozenset({"message.created"}),
    frozenset({"conversation.created"}),
    frozenset({"conversation.updated"}),
    frozenset({"conversation.updated", "message.created"}),
    frozenset({"conversation.updated", "conversation.created", "message.created"}),
]
NAMES: list[dict[str, str]] = [
    {},
    {"conversation_id": "C"},
    {"external_id": "external-D"},
    {"conversation_id": "E", "external_id": "external-E"},
    {"conversation_id": "C", "external_id": "external-D"},
    {"conversation_id": "NOWHERE"},
    {"external_id": "NOWHERE"},
    {"conversation_id": "ONLY-B"},
]


@pytest.fixture(params=["near", "few", "many"])
def distance(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the end is near, or far with few or with many messages in a conversation: small numbers do for large."""
    for module in (store_log, sqlite_log):
        if request.param != "near":
            monkeypatch.setattr(module, "SCAN_ENTRIES", 5)
        if request.param == "many":
            monkeypatch.setattr(module, "LISTED_MESSAGES", 3)
    if request.param != "near":
        monkeypatch.setattr(postgres_log, "SCAN_ENTRIES", 5)
    if request.param == "many":
        monkeypatch.setattr(postgres_log, "LISTED_MESSAGES", 3)
    return str(request.param)


def test_every_filter_gives_what_it_lets_through_and_nothing_else(play: Callable[..., None], distance: str) -> None:
    async def scenario(store: Store) -> None:
        await fill_log(store)
        await store.append([put("ONLY-B", "b"), append(["there"], "ONLY-B", "b")])
        whole = await walk(store, EVERYTHING)
        for types in TYPES:
            for names in NAMES:
                wanted = LogFilter(types, **names)
                for limit in (1, 6, 1000):
                    assert await walk(store, wanted, limit=limit) == _of(whole, wanted), (distance, wanted, limit)

    play(scenario)


def test_no_entry_comes_behind_the_one_that_takes_the_text_over_its_bound(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        await make_accounts(store)
        await store.append([put("C"), append([f"{n}{'ß' * 99}" for n in range(10)])])
        messages = LogFilter(frozenset({"message.created"}))
        for wanted in (messages, LogFilter(frozenset({"message.created"}), "C")):
            for max_chars, count in ((0, 1), (99, 1), (100, 2), (250, 3), (10_000, 10)):
                part = await store.log("a", wanted, after=0, up_to=11, limit=20, max_chars=max_chars)
                assert len(part.entries) == count
                assert part.reached == (11 if count == 10 else part.entries[-1].position)
                assert await walk(store, wanted, max_chars=max_chars) == await walk(store, wanted)
        await store.append([put("C", metadata={"n": f"{n}" * 300}) for n in range(5)])
        whole = await walk(store, EVERYTHING)
        assert await walk(store, EVERYTHING, max_chars=500) == whole
        changes = await store.log("a", EVERYTHING, after=11, up_to=16, limit=20, max_chars=500)
        assert len(changes.entries) == 2

    play(scenario)


def test_a_small_conversation_far_apart_is_found_without_all_between(play: Callable[..., None]) -> None:
    """With the bounds as they are: one part for few messages, several for a conversation that has many."""

    async def scenario(store: Store) -> None:
        await make_accounts(store)
        await store.append([put("C"), put("D"), append(["first"], "D")])
        for n in range(11):
            await store.append([append([f"{n}-{m}" for m in range(1000)])])
        await store.append([append(["last"], "D"), put("D", agent=Participant("bob"))])
        last = await store.last_position("a")
        found = await store.log("a", LogFilter(None, "D"), after=0, up_to=last, limit=99, max_chars=CHARS)
        assert ([entry.position for entry in found.entries], found.reached) == ([2, 3, last - 1, last], last)
        few = await store.log("a", LogFilter(None, "D"), after=0, up_to=last, limit=2, max_chars=CHARS)
        assert ([entry.position for entry in few.entries], few.reached) == ([2, 3], 3)
        many = LogFilter(frozenset({"message.created"}), "C")
        part = await store.log("a", many, after=last - 5000, up_to=last, limit=9000, max_chars=CHARS)
        assert part.reached == last - 5000 + store_log.SCAN_ENTRIES
        assert len(part.entries) == store_log.SCAN_ENTRIES
        assert len(await walk(store, many, limit=1000)) == 11_000

    play(scenario)


def test_the_log_starts_where_what_is_kept_starts(new_store: Callable[[], str], store_kind: str) -> None:
    url = new_store()

    async def starts() -> list[int]:
        async with opened(url) as store:
            return [await store.log_start(account) for account in ("a", "b", "nobody")]

    async def fill() -> None:
        async with opened(url) as store:
            await make_accounts(store)
            assert await store.log_start("a") == 0
            await store.append([put("C"), put("C", "b"), append(list("xyz")), put("D")])

    asyncio.run(fill())
    assert asyncio.run(starts()) == [0, 0, 0]
    place = "entry & 0xFFFFFFFFFF" if store_kind == "sqlite" else "position"
    account = "entry >> 40" if store_kind == "sqlite" else "account"
    for table in ("message", "conversation_change"):
        rows(url, f"DELETE FROM {table} WHERE {place} <= 3 AND {account} = 0")  # noqa: S608
    assert asyncio.run(starts()) == [3, 0, 0]
    rows(url, f"DELETE FROM message WHERE {account} = 0")  # noqa: S608
    assert asyncio.run(starts()) == [4, 0, 0]


def test_a_log_has_a_name_of_its_own_which_stays(new_store: Callable[[], str]) -> None:
    async def name(url: str) -> str:
        async with opened(url) as store:
            return await store.log_name()

    urls = [new_store(), new_store()]
    names = [asyncio.run(name(url)) for url in urls]
    assert [asyncio.run(name(url)) for url in urls] == names
    assert len({*names}) == 2
    assert all(len(one) == 32 for one in names)
