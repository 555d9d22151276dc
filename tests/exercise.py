"""Everything that a store is asked in its life, once: for tests that look at how it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from msgspec import structs

from turnlog.ids import Place
from turnlog.model import ApiKey, NewAuthentication, NewConversation, NewMessage, Participant
from turnlog.store.protocol import (
    AppendMessages,
    ForgetIdempotency,
    Idempotency,
    KeyRecord,
    PutConversation,
    RecordAuthentication,
)

if TYPE_CHECKING:
    from turnlog.store.protocol import Store


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
    assert await store.append([ForgetIdempotency(100)]) == [3]  # a repeat was refused, and used up no key
