"""Everything that a store is asked in its life, once: for tests that look at how it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from turnlog.ids import Place
from turnlog.model import ApiKey, LogFilter, NewAuthentication, NewConversation, NewMessage, Participant
from turnlog.store.protocol import (
    AppendMessages,
    ForgetIdempotency,
    Idempotency,
    KeyRecord,
    PutConversation,
    RecordAuthentication,
)

if TYPE_CHECKING:
    from turnlog.model import EventType
    from turnlog.store.protocol import Store

_TYPES: tuple[frozenset[EventType] | None, ...] = (
    None,
    frozenset({"message.created"}),
    frozenset({"conversation.created"}),
)


async def exercise(store: Store) -> None:
    """Every kind of write, in every way that makes it look something up, and every kind of read."""
    await store.add_key(KeyRecord(ApiKey("key-a", "tests", "a", ("read",), 1), ()))
    new = NewConversation("external", Participant("jane"), 1)
    message = NewMessage("Hello", "agent", "bob", 1)
    for client_at in (1, 2):
        await store.append([PutConversation("a", new, "C", 1)])
        new = structs.replace(new, agent=Participant("bob"))
        for count, refuse_repeats in ((1, True), (2, False)):
            messages = [structs.replace(message, client_at=client_at + n) for n in range(count)]
            ids = [f"M{client_at}-{count}-{n}" for n in range(count)]
            idempotency = Idempotency(ids[0], b"")
            await store.append([AppendMessages("a", "C", messages, ids, 1, idempotency, refuse_repeats)])
    await store.append([RecordAuthentication("a", "C", NewAuthentication("jane", ("token",)), 1)])
    await store.conversation("a", "C")
    await store.conversation_by_external_id("a", "external")
    assert await store.message("a", "C", "M1-1-0") is not None
    assert await store.last_position("a") > 0
    for after in (None, Place(1, 2)):
        assert await store.messages("a", "C", after=after, limit=2, up_to=100)
    await _read_the_log(store)
    assert await store.append([ForgetIdempotency(100)]) == [3]  # a repeat was refused, and used up no key


async def _read_the_log(store: Store) -> None:
    """From the beginning of all that is kept, near and far, whole and by every filter."""
    assert await store.log_name()
    assert await store.log_start("a") == 0
    filters = [LogFilter(types, *names) for types in _TYPES for names in ((), ("C",), ("C", "external"))]
    for wanted in [*filters, LogFilter(external_id="external")]:
        for up_to in (4, 1_000_000):
            part = await store.log("a", wanted, after=0, up_to=up_to, limit=2, max_chars=1000)
            assert part.entries, (wanted, up_to)
