"""What every store promises (store/protocol.py), asked of each store directly.

A store is added to the suite by a row in tests/stores.py; no test makes an exception for one.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from turnlog.errors import AlreadyRecordedError, Error, IdempotencyKeyReusedError, NotFoundError
from turnlog.ids import Place
from turnlog.model import ApiKey, NewAuthentication, NewConversation, NewMessage, Participant
from turnlog.store.connect import open_store
from turnlog.store.protocol import (
    AppendMessages,
    ForgetIdempotency,
    Idempotency,
    KeyRecord,
    PutConversation,
    RecordAuthentication,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from turnlog.store.protocol import Store, Write

    Scenario = Callable[[Store], Coroutine[Any, Any, None]]

TTL_US = 1000


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[Store]:
    store = await open_store(url, idempotency_ttl_us=TTL_US)
    try:
        yield store
    finally:
        await store.close()


@pytest.fixture
def play(new_store: Callable[[], str]) -> Callable[..., None]:
    """Runs scenarios one after another on one store, closed and opened again between them."""
    url = new_store()

    def run(*scenarios: Scenario) -> None:
        async def all_of_them() -> None:
            for number, scenario in enumerate(scenarios):
                async with _opened(url) as store:
                    if number == 0:
                        for account in ("a", "b"):
                            await store.add_key(KeyRecord(ApiKey(f"key-{account}", "tests", account, ("read",), 1), ()))
                        await store.append([_put("C"), _put("D"), _put("E", account="b")])
                    await scenario(store)

        asyncio.run(all_of_them())

    return run


def _put(name: str, account: str = "a", **changes: Any) -> PutConversation:
    fields: dict[str, Any] = {"id": name, "external_id": f"external-{name}", "customer": Participant("jane")}
    return PutConversation(account, NewConversation(**(fields | {"client_at": 5} | changes)), f"NEW{name}", 1)


def _new(text: str, client_at: int = 5) -> NewMessage:
    return NewMessage(text, "agent", "bob", client_at)


def _append(texts: str, conversation: str = "C", *, key: str | None = None, **changes: Any) -> AppendMessages:
    """A write with one message per character; a message's id says in which write it was sent."""
    fields: dict[str, Any] = {"account": "a", "created_at": 1, "refuse_repeats": False, "prefix": "M"} | changes
    ids = [f"{fields['prefix']}{conversation}{text}" for text in texts]
    idempotency = None if key is None else Idempotency(key, f"{conversation} {texts}".encode())
    return AppendMessages(
        fields["account"],
        conversation,
        [_new(text) for text in texts],
        ids,
        fields["created_at"],
        idempotency,
        fields["refuse_repeats"],
    )


async def _texts(store: Store, conversation: str = "C", account: str = "a") -> str:
    found = await store.messages(account, conversation, after=None, limit=1000)
    assert found is not None
    return "".join(message.text for message in found)


async def _one(store: Store, write: Write) -> object:
    outcomes = await store.append([write])
    assert len(outcomes) == 1
    return outcomes[0]


def test_each_write_has_its_outcome_and_a_refusal_leaves_the_others_untouched(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        fact = NewAuthentication("jane", ("token",))
        outcomes = await store.append(
            [
                _append("ab"),
                _append("c", "NOWHERE"),
                _append("d", account="nobody"),
                _append("e", "E"),
                RecordAuthentication("a", "C", fact, 1),
                RecordAuthentication("a", "NOWHERE", fact, 1),
                _append("f"),
            ]
        )
        refused = [isinstance(outcome, NotFoundError) for outcome in outcomes]
        assert refused == [False, True, True, True, False, True, False]
        assert (outcomes[0], outcomes[4], outcomes[6]) == (["MCa", "MCb"], None, ["MCf"])
        assert await _texts(store) == "abf"

    async def reopened(store: Store) -> None:
        assert await _texts(store) == "abf"

    play(scenario, reopened)


def test_a_batch_that_breaks_leaves_nothing_behind_and_the_next_one_goes_in(play: Callable[..., None]) -> None:
    """The id is taken: not a refusal but a bug or a fault. Whatever is raised, none of the batch is there."""

    async def scenario(store: Store) -> None:
        await store.append([_append("a")])
        position = await store.last_position("a")
        batches: list[list[Write]] = [[_append("b"), _append("ca", key="k")], [_put("F"), _append("a")]]
        for broken in batches:
            with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the store makes of a broken promise
                await store.append(broken)
        assert await _texts(store) == "a"
        assert await store.last_position("a") == position
        assert await store.conversation("a", "F") is None

    async def reopened(store: Store) -> None:
        assert await _one(store, _append("a", key="k", prefix="N")) == ["NCa"]
        assert await _texts(store) == "aa"

    play(scenario, reopened)


def test_positions_are_gap_free_in_the_order_of_the_writes_per_account(play: Callable[..., None]) -> None:
    """Refusals, keyed retries and updates that change nothing take no position."""

    async def scenario(store: Store) -> None:
        await store.append([_append("ab"), _append("x", "NOWHERE"), _append("c", "D"), _append("e", "E", account="b")])
        await store.append([_append("d", key="k"), _put("C"), _append("d", key="k"), _append("f", "E", account="b")])
        await store.append([_put("C", agent=Participant("bob")), _append("g")])

    async def reopened(store: Store) -> None:
        await store.append([_append("h")])
        found = [
            (message.position, message.text)
            for name in "CD"
            for message in await store.messages("a", name, after=None, limit=99) or ()
        ]
        assert sorted(found) == [(3, "a"), (4, "b"), (5, "c"), (6, "d"), (8, "g"), (9, "h")]  # 7: the agent
        assert await store.last_position("a") == 9
        assert [m.position for m in await store.messages("b", "E", after=None, limit=99) or ()] == [2, 3]
        assert await store.last_position("nobody") == 0

    play(scenario, reopened)


def test_a_listing_is_by_client_time_then_arrival_and_pages_meet_without_gap(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        times = [5, 3, 5, -7, 3, 5, 9]
        for n, client_at in enumerate(times):
            await store.append([AppendMessages("a", "C", [_new(str(n), client_at)], [f"M{n}"], 1)])
        whole = await store.messages("a", "C", after=None, limit=99)
        assert whole is not None
        assert "".join(m.text for m in whole) == "3140256"
        for size in (1, 2, 3):
            pages: list[str] = []
            after: Place | None = None
            while page := await store.messages("a", "C", after=after, limit=size):
                pages += [m.text for m in page]
                after = Place(page[-1].client_at, page[-1].position)
            assert "".join(pages) == "3140256"
        newest = max(m.position for m in whole)
        early = await store.messages("a", "C", after=None, limit=99, up_to=newest - 3)
        assert early is not None
        assert [m.text for m in early] == ["3", "1", "0", "2"]
        assert await store.messages("b", "C", after=None, limit=9) is None
        assert await store.messages("a", "NOWHERE", after=None, limit=9) is None
        assert await store.messages("a", "D", after=None, limit=9) == []

    play(scenario)


def test_a_message_is_read_only_where_it_is(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        text = "Grüße \x01\u202e\U0001f600 é e\u0301 \n"
        write = AppendMessages("a", "C", [NewMessage(text, "system", "bot", -62135596800000000)], ["M1"], 7)
        await store.append([write])
        found = await store.message("a", "C", "M1")
        assert found is not None
        assert (found.text, found.role, found.sender) == (text, "system", "bot")
        assert (found.client_at, found.created_at) == (-62135596800000000, 7)
        for place in (("b", "C"), ("a", "D"), ("a", "NOWHERE"), ("nobody", "C")):
            assert await store.message(*place, "M1") is None

    play(scenario)


def test_a_key_used_again_gets_the_first_ids_also_in_one_batch_and_after_a_restart(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        outcomes = await store.append([_append("ab", key="k"), _append("ab", key="k", prefix="N")])
        assert outcomes == [["MCa", "MCb"]] * 2
        assert await _one(store, _append("ab", key="k", prefix="O")) == ["MCa", "MCb"]

    async def reopened(store: Store) -> None:
        assert await _one(store, _append("ab", key="k", prefix="P")) == ["MCa", "MCb"]
        other = await store.append([_append("a", key="k"), _append("ab", "D", key="k"), _append("c", key="fresh")])
        assert [isinstance(o, IdempotencyKeyReusedError) for o in other] == [True, True, False]
        assert await _texts(store) == "abc"

    play(scenario, reopened)


def test_a_key_is_its_accounts_own_and_a_refused_write_does_not_use_it_up(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        await store.append([_append("a", key="k"), _append("e", "E", account="b", key="k")])
        assert await _texts(store, "E", "b") == "e"
        assert isinstance(await _one(store, _append("b", "NOWHERE", key="l")), Error)
        assert await _one(store, _append("b", key="l")) == ["MCb"]
        repeat = _append("b", key="m", refuse_repeats=True, prefix="N")
        assert isinstance(await _one(store, repeat), AlreadyRecordedError)
        assert await _one(store, _append("c", key="m")) == ["MCc"]

    play(scenario)


def test_a_key_ends_with_its_time(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        assert await _one(store, _append("a", key="k", created_at=10)) == ["MCa"]
        assert await _one(store, _append("a", key="k", prefix="N", created_at=10 + TTL_US - 1)) == ["MCa"]
        assert await _one(store, _append("b", key="k", created_at=10 + TTL_US)) == ["MCb"]
        assert await _one(store, _append("b", key="k", prefix="N", created_at=10 + TTL_US + 1)) == ["MCb"]
        assert await _texts(store) == "ab"

    play(scenario)


def test_old_keys_are_forgotten_a_few_at_a_time_the_oldest_first(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        for n, key in enumerate("abcde"):
            await store.append([_append(key, key=key, created_at=100 + n)])
        assert await _one(store, ForgetIdempotency(103, limit=2)) == 2
        assert await _one(store, _append("c", key="c", created_at=110, prefix="N")) == ["MCc"]
        assert await _one(store, ForgetIdempotency(103, limit=2)) == 1
        assert await _one(store, ForgetIdempotency(103, limit=2)) == 0
        again = await store.append([_append(key, key=key, created_at=110, prefix="N") for key in "acde"])
        assert again == [["NCa"], ["NCc"], ["MCd"], ["MCe"]]

    play(scenario)


def test_exact_repeats_are_refused_where_asked_and_only_there(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        await store.append([_append("ab")])
        refused = await _one(store, _append("a", refuse_repeats=True, prefix="N"))
        assert isinstance(refused, AlreadyRecordedError)
        assert "MCa" in refused.message
        assert await _one(store, _append("ac", refuse_repeats=True, prefix="N")) == ["MCa", "NCc"]
        assert isinstance(await _one(store, _append("ba", refuse_repeats=True, prefix="O")), AlreadyRecordedError)
        twice = await store.append([_append("d", refuse_repeats=True), _append("d", refuse_repeats=True, prefix="N")])
        assert twice[0] == ["MCd"]
        assert isinstance(twice[1], AlreadyRecordedError)
        assert await _one(store, _append("d", "D", refuse_repeats=True)) == ["MDd"]
        assert await _one(store, _append("a", prefix="P")) == ["PCa"]
        assert await _texts(store) == "abcda"

    play(scenario)


def test_a_repeat_within_one_write_is_recorded_once(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        write = AppendMessages("a", "C", [_new("a"), _new("a")], ["M1", "M2"], 1, refuse_repeats=True)
        assert await _one(store, write) == ["M1", "M1"]
        assert await _texts(store) == "a"

    play(scenario)


def test_a_conversation_put_again_is_updated_field_by_field(play: Callable[..., None]) -> None:
    async def scenario(store: Store) -> None:
        put = [
            _put("F", id=None, customer=Participant("jane", "Jane"), metadata={"a": "1", "b": "2"}),
            _put("F", id=None, agent=Participant("bob", "Bob")),
            _put("F", id="NEWF", metadata={"c": "3"}),
        ]
        assert await store.append([*put]) == ["NEWF"] * 3
        found = await store.conversation("a", "NEWF")
        assert found is not None
        assert found == await store.conversation_by_external_id("a", "external-F")
        assert (found.customer.name, found.agent, found.metadata) == ("Jane", Participant("bob", "Bob"), {"c": "3"})
        contradicting = await store.append([_put("F", id="OTHER"), _put("G", id="C")])
        assert all(isinstance(outcome, AlreadyRecordedError) for outcome in contradicting)
        assert await store.conversation_by_external_id("a", "external-G") is None
        assert await store.conversation("b", "NEWF") is None
        assert await _one(store, _put("F", account="b", id="NEWF")) == "NEWF"
        assert await store.last_position("a") == 5  # C, D, and three changes of F

    play(scenario)
