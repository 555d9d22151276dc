"""What the product does: each operation once, under the name that HTTP, OpenAPI, the CLI and the metrics use too.

Permissions are checked before (keyring.py); here are ids, time, limits, idempotency and what counts as existing.
"""

from __future__ import annotations

import contextlib
import hashlib
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from turnlog import limits
from turnlog.errors import Error, MalformedParameterError, NotFoundError, OverloadedError
from turnlog.ids import NotACursorError, Place, cursor, place
from turnlog.store.protocol import (
    AppendMessages,
    ForgetIdempotency,
    Idempotency,
    PutConversation,
    RecordAuthentication,
    StoreFailedError,
    StoreUnavailableError,
    StoreUncertainError,
)
from turnlog.writer import RETRY_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from turnlog.ids import Ulids
    from turnlog.model import ApiKey, Conversation, Message, NewAuthentication, NewConversation, NewMessage
    from turnlog.store.protocol import Reader
    from turnlog.writer import Writer

PART_MESSAGES = 100
PART_CHARS = 1024 * 1024
"""What a listing reads at a time: bounds its memory, and how long it keeps others waiting."""
FORGET_INTERVAL_S = 60.0


class Part(NamedTuple):
    """Some messages of a listing in order; behind the ``last`` part of a page, the cursor where there is more."""

    items: list[Message]
    next_cursor: str | None
    last: bool


def no_such_conversation() -> NotFoundError:
    """The same for a conversation that never was and for another account's."""
    return NotFoundError("no such conversation in this account")


def no_such_message() -> NotFoundError:
    """The same for a message that never was and for one of another conversation or account."""
    return NotFoundError("no such message in this conversation")


class _AskingTheStore:
    """A store that does not answer is no bug of ours, and asking again is safe."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, (StoreUnavailableError, StoreUncertainError, StoreFailedError)):
            raise OverloadedError("the store does not answer now", retry_after_s=RETRY_AFTER_S) from error


asking_the_store = _AskingTheStore()


class Listing:
    """A conversation, or a page of it, in parts.

    A part is bounded in messages and characters: a listing of any length takes little memory, and nobody waits long.
    Not an asynchronous generator: one that is not read to its end costs a task of its own to be closed.
    """

    def __init__(
        self, reader: Reader, account: str, conversation: str, start: Place | None, limit: int | None, newest: int
    ) -> None:
        self._reader = reader
        self._account = account
        self._conversation = conversation
        self._after = start
        self._left = limit
        self._newest = newest

    async def part(self) -> Part:
        """The next part, up to the ``last``. Raises NotFoundError."""
        left = self._left
        wanted = PART_MESSAGES if left is None else min(PART_MESSAGES, left + 1)
        with asking_the_store:
            found = await self._reader.messages(
                self._account,
                self._conversation,
                after=self._after,
                limit=wanted,
                up_to=self._newest,
                max_chars=PART_CHARS,
            )
        if found is None:
            raise no_such_conversation()
        if left is not None and len(found) > left:
            found = found[:left]  # the one more shows that there is more
            end = Place(found[-1].client_at, found[-1].position) if found else self._after
            scope = f"{self._account}/{self._conversation}"
            return Part(found, cursor(end, scope) if end is not None else None, last=True)
        last = len(found) < wanted and sum([len(message.text) for message in found]) <= PART_CHARS
        if not last:
            self._after = Place(found[-1].client_at, found[-1].position)
            self._left = None if left is None else left - len(found)
        return Part(found, None, last=last)


class Service:
    """The operations. Methods that record return when what they recorded is durable.

    They raise the refusals of errors.py, and OverloadedError or OutcomeUnknownError as Writer.submit says; those that
    read, OverloadedError while the store does not answer.
    """

    def __init__(
        self, reader: Reader, writer: Writer, ids: Ulids, now_us: Callable[[], int], *, refuse_repeats: bool
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._ids = ids
        self._now_us = now_us
        self._refuse_repeats = refuse_repeats

    def _created_at(self) -> int:
        return self._now_us() // 1000 * 1000  # as precise as the time in an id

    def check_room(self, key: ApiKey) -> None:
        """Raises OverloadedError where whatever this key records would be refused, so that it need not be read."""
        self._writer.check_room(key.account)

    # Conversations.

    async def create_conversation(self, key: ApiKey, new: NewConversation) -> str:
        """Create the conversation, or update the one with this external id; its id."""
        limits.check_conversation(new)
        put = PutConversation(key.account, new, self._ids.new(), self._created_at())
        return str(await self._writer.submit(put))

    async def find_conversations(self, key: ApiKey, external_id: str) -> list[Conversation]:
        """The conversation with this external id, if there is one."""
        with asking_the_store:
            found = await self._reader.conversation_by_external_id(key.account, external_id)
        return [] if found is None else [found]

    async def read_conversation(self, key: ApiKey, conversation_id: str) -> Conversation:
        """The conversation. Raises NotFoundError."""
        with asking_the_store:
            found = await self._reader.conversation(key.account, conversation_id)
        if found is None:
            raise no_such_conversation()
        return found

    async def authenticate(self, key: ApiKey, conversation_id: str, fact: NewAuthentication) -> None:
        """Record that a customer authenticated. Raises NotFoundError."""
        limits.check_authentication(fact)
        await self._writer.submit(RecordAuthentication(key.account, conversation_id, fact, self._created_at()))

    # Recording messages.

    async def create_message(
        self, key: ApiKey, conversation_id: str, message: NewMessage, idempotency_key: str | None
    ) -> str:
        """Record one message; its id. Raises NotFoundError, AlreadyRecordedError, IdempotencyKeyReusedError."""
        limits.check_message(message)
        ids = await self._append(key, conversation_id, "create_message", (message,), idempotency_key)
        return ids[0]

    async def create_messages(
        self, key: ApiKey, conversation_id: str, messages: Sequence[NewMessage], idempotency_key: str | None
    ) -> list[str]:
        """Record messages, all or none, in their order; their ids in that order. Raises as ``create_message``."""
        for index, message in enumerate(messages):
            limits.check_message(message, f"/messages/{index}")
        return await self._append(key, conversation_id, "create_messages", messages, idempotency_key)

    def _append(
        self,
        key: ApiKey,
        conversation_id: str,
        operation: str,
        messages: Sequence[NewMessage],
        idempotency_key: str | None,
    ) -> Awaitable[list[str]]:
        idempotency = None
        if idempotency_key is not None:
            idempotency = Idempotency(idempotency_key, _fingerprint(operation, conversation_id, messages))
        write = AppendMessages(
            key.account,
            conversation_id,
            messages,
            [self._ids.new() for _ in messages],
            self._created_at(),
            idempotency,
            self._refuse_repeats or key.refuse_repeats,
        )
        return self._writer.submit(write)  # type: ignore[return-value] # an append's outcome is its ids

    async def forget_idempotency(self, older_than_us: int, sleep: Callable[[float], Awaitable[object]]) -> None:
        """For ever: drop idempotency keys that are past their time, a few at a time."""
        while True:
            write = ForgetIdempotency(self._now_us() - older_than_us)
            with contextlib.suppress(Error):  # a full queue or a failed store: there is no hurry
                while await self._writer.submit(write) == write.limit:
                    pass
            await sleep(FORGET_INTERVAL_S)

    # Reading messages.

    async def read_message(self, key: ApiKey, conversation_id: str, message_id: str) -> Message:
        """The message. Raises NotFoundError where it is not in that conversation."""
        with asking_the_store:
            found = await self._reader.message(key.account, conversation_id, message_id)
        if found is None:
            raise no_such_message()
        return found

    async def list_messages(
        self, key: ApiKey, conversation_id: str, *, limit: int | None = None, after: str | None = None
    ) -> Listing:
        """The conversation as it was at the call, by ``client_at``, then in order of arrival; in parts, at least one.

        With ``limit`` a page, whose last part has the cursor behind it where there is more. Raises NotFoundError where
        the first part is read, MalformedParameterError where ``after`` is no cursor of this conversation.
        """
        scope = f"{key.account}/{conversation_id}"
        start = None if after is None else _place(after, scope)
        with asking_the_store:
            newest = await self._reader.last_position(key.account)
        return Listing(self._reader, key.account, conversation_id, start, limit, newest)

    async def conversation_id_of(self, key: ApiKey, external_id: str) -> str:
        """The id of the conversation with this external id. Raises NotFoundError."""
        with asking_the_store:
            found = await self._reader.conversation_by_external_id(key.account, external_id)
        if found is None:
            raise no_such_conversation()
        return found.id

    # Health.

    async def is_healthy(self) -> bool:
        """Whether the store answers and can record."""
        if self._writer.failed:
            return False
        try:
            await self._reader.check()
        except Exception:  # noqa: BLE001 - the question is whether it answers, not why it does not
            return False
        return True


def _place(after: str, scope: str) -> Place:
    try:
        return place(after, scope)
    except NotACursorError:
        raise MalformedParameterError(
            "[Query 'after'] not a cursor of this conversation: send a nextCursor as it was given"
        ) from None


def _fingerprint(operation: str, conversation_id: str, messages: Sequence[NewMessage]) -> bytes:
    """What makes a request "the same": its meaning, not the bytes of its body."""
    parts = (operation, conversation_id, [(m.role, m.sender, m.client_at, m.text) for m in messages])
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).digest()
