"""What a batch of writes comes to: outcomes and rows, from what is stored already. One set of rules for every store.

A store looks up what the batch asks about (``Known``), lets a ``Plan`` take the writes in their order, and stores what
the plan has collected, all in one transaction that nobody else's can come between. Nothing here does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from turnlog.errors import AlreadyRecordedError, Error, IdempotencyKeyReusedError, NotFoundError
from turnlog.model import ROLES, Conversation, NewAuthentication, NewConversation, Participant
from turnlog.store.protocol import AppendMessages, ForgetIdempotency, PutConversation, RecordAuthentication, Write

ROLE_NUMBER = {role: number for number, role in enumerate(ROLES)}

Planned = AppendMessages | PutConversation | RecordAuthentication

Identity = tuple[int, int, int, str, str]
"""What makes a message an exact repeat: conversation number, ``client_at``, role number, sender, text."""

MessageRow = tuple[int, int, str, int, str, int, int, str]
"""Position, conversation number, id, role number, sender, ``client_at``, ``created_at``, text."""

ChangeRow = tuple[int, int, bool, int, str]
"""Position, conversation number, whether it was created, ``changed_at``, the conversation after the change as JSON."""

AuthenticationRow = tuple[int, NewAuthentication, int]
"""Conversation number, the fact, ``created_at``."""


class UsedKey(msgspec.Struct, frozen=True):
    """An idempotency key as recorded, or about to be."""

    fingerprint: bytes
    ids: Sequence[str]
    created_at: int


class ConversationRow(NamedTuple):
    """A conversation as it stands after the batch; ``is_new`` where the batch created it."""

    conversation: Conversation
    client_at: int
    created_at: int
    is_new: bool


class Known(msgspec.Struct):
    """What is stored, of what a batch of one account asks about."""

    head: int
    """The last position of the account's log."""
    numbers: Mapping[str, int]
    """Numbers of conversations by id, as far as they were known before."""
    found: Mapping[str, int] = {}
    """And those looked up for this batch. A conversation that is in neither does not exist."""
    conversations: Mapping[str, tuple[int, Conversation]] = {}
    """By external id, those that the batch puts: number and state."""
    keys: Mapping[str, UsedKey] = {}
    recorded: Mapping[Identity, str] = {}
    """Of the messages whose repeats are refused, those recorded: the earliest id."""
    mine: frozenset[str] = frozenset()
    """Ids of the batch's own messages that are stored: it was recorded, and its answer lost on the way."""


class Plan:
    """Collects what writes of one account add. ``new_number`` numbers a new conversation by its position."""

    def __init__(self, known: Known, *, idempotency_ttl_us: int, new_number: Callable[[int], int]) -> None:
        self.known = known
        self._ttl_us = idempotency_ttl_us
        self._new_number = new_number
        self._external: dict[str, tuple[int, Conversation]] = {}
        self._recorded: dict[Identity, str] | None = None
        self.head = known.head
        self.numbers: dict[str, int] = {}
        self.messages: list[MessageRow] = []
        self.keys: dict[str, UsedKey] = {}
        self.conversations: dict[int, ConversationRow] = {}
        self.changes: list[ChangeRow] = []
        self.authentications: list[AuthenticationRow] = []

    def take(self, write: Planned) -> object:
        """The outcome of ``write`` after those before it; an Error where it is refused, which adds nothing."""
        try:
            if isinstance(write, AppendMessages):
                return self._append_messages(write)
            if isinstance(write, PutConversation):
                return self._put_conversation(write)
            number = self._number(write.conversation)
            self.authentications.append((number, write.authentication, write.created_at))
        except Error as refusal:
            return refusal
        return None

    def _number(self, conversation_id: str) -> int:
        number = self._find(conversation_id)
        if number is None:
            raise NotFoundError("no such conversation in this account")
        return number

    def _find(self, conversation_id: str) -> int | None:
        known = self.known
        return (
            known.numbers.get(conversation_id) or known.found.get(conversation_id) or self.numbers.get(conversation_id)
        )

    # Messages.

    def _append_messages(self, write: AppendMessages) -> Sequence[str]:
        conversation = self._number(write.conversation)
        if write.idempotency is None:
            return self._record(write, conversation)
        key, fingerprint = write.idempotency.key, write.idempotency.fingerprint
        used = self.keys.get(key) or self.known.keys.get(key)
        if used is not None and used.created_at > write.created_at - self._ttl_us:
            if used.fingerprint != fingerprint:
                raise IdempotencyKeyReusedError(
                    "the Idempotency-Key was used before with a different request: use a new key for a new request"
                )
            return used.ids
        ids = self._record(write, conversation)
        self.keys[key] = UsedKey(fingerprint, ids, write.created_at)
        return ids

    def _record(self, write: AppendMessages, conversation: int) -> Sequence[str]:
        earlier: Mapping[int, str] = {}
        if write.refuse_repeats:
            earlier = self._repeats(write, conversation)
        elif self.known.mine and write.ids[0] in self.known.mine:
            return write.ids
        if not earlier:
            self._add(write, conversation)
            return write.ids
        ids = []
        for index, message_id in enumerate(write.ids):
            repeated = earlier.get(index)
            if repeated is None:
                self._add_one(write, index, conversation)
            ids.append(message_id if repeated is None else repeated)
        return ids

    def _add(self, write: AppendMessages, conversation: int) -> None:
        for index in range(len(write.messages)):
            self._add_one(write, index, conversation)

    def _add_one(self, write: AppendMessages, index: int, conversation: int) -> None:
        message, message_id = write.messages[index], write.ids[index]
        self.head += 1
        row = (
            self.head,
            conversation,
            message_id,
            ROLE_NUMBER[message.role],
            message.sender,
            message.client_at,
            write.created_at,
            message.text,
        )
        self.messages.append(row)
        if self._recorded is not None:
            self._recorded.setdefault(_identity_of(row), message_id)

    def _repeats(self, write: AppendMessages, conversation: int) -> dict[int, str]:
        """Which messages of the write are recorded already, and under which id.

        Raises AlreadyRecordedError where there is nothing left to record.
        """
        if self._recorded is None:
            self._recorded = dict(self.known.recorded)
            for row in self.messages:
                self._recorded.setdefault(_identity_of(row), row[2])
        found: dict[int, str] = {}
        within: dict[Identity, str] = {}
        recorded = 0
        for index, identity in enumerate(identities(write, conversation)):
            earlier = self._recorded.get(identity)
            recorded += earlier is not None
            earlier = earlier or within.get(identity)
            if earlier is not None:
                found[index] = earlier
            else:
                within[identity] = write.ids[index]
        mine = not self.known.mine.isdisjoint(write.ids)
        if recorded == len(write.messages) and not mine:
            raise AlreadyRecordedError(f"already recorded, as {', '.join(dict.fromkeys(found.values()))}")
        return found

    # Conversations.

    def _put_conversation(self, write: PutConversation) -> str:
        new = write.conversation
        stored = self._external.get(new.external_id) or self.known.conversations.get(new.external_id)
        if stored is None:
            return self._create(write)
        number, conversation = stored
        if new.id not in (None, conversation.id):
            raise AlreadyRecordedError(
                f"[Path '/id'] the conversation with this externalId has the id {conversation.id}, "
                "and an id does not change"
            )
        updated = merged(conversation, new)
        if updated != conversation:
            before = self.conversations.get(number)
            row = ConversationRow(updated, new.client_at, write.created_at, is_new=False)
            self.conversations[number] = row if before is None else before._replace(conversation=updated)
            self._change(number, updated, write.created_at, created=False)
        return conversation.id

    def _create(self, write: PutConversation) -> str:
        new = write.conversation
        conversation_id = write.id if new.id is None else new.id
        if self._find(conversation_id) is not None:
            raise AlreadyRecordedError("[Path '/id'] the id belongs to another conversation")
        conversation = Conversation(conversation_id, new.external_id, new.customer, new.agent, new.metadata)
        number = self.numbers[conversation_id] = self._new_number(self.head + 1)
        self.conversations[number] = ConversationRow(conversation, new.client_at, write.created_at, is_new=True)
        self._change(number, conversation, write.created_at, created=True)
        return conversation_id

    def _change(self, number: int, conversation: Conversation, changed_at: int, *, created: bool) -> None:
        self.head += 1
        self._external[conversation.external_id] = (number, conversation)
        state = msgspec.json.encode(conversation).decode()
        self.changes.append((self.head, number, created, changed_at, state))


def identities(write: AppendMessages, conversation: int) -> list[Identity]:
    """What to look for where repeats of the write's messages are refused."""
    return [(conversation, m.client_at, ROLE_NUMBER[m.role], m.sender, m.text) for m in write.messages]


def _identity_of(row: MessageRow) -> Identity:
    _, conversation, _, role, sender, client_at, _, text = row
    return (conversation, client_at, role, sender, text)


def merged(stored: Conversation, given: NewConversation) -> Conversation:
    """The rule for updates: a field given replaces the stored one, a field left out stays.

    A name is a field of its participant: left out it stays as long as the participant is the same, and goes with them.
    """
    return Conversation(
        stored.id,
        stored.external_id,
        _participant(stored.customer, given.customer),
        stored.agent if given.agent is None else _participant(stored.agent, given.agent),
        stored.metadata if given.metadata is None else given.metadata,
    )


def _participant(stored: Participant | None, given: Participant) -> Participant:
    if stored is not None and given.name is None and stored.external_id == given.external_id:
        return stored
    return given


def by_account(writes: Sequence[Write]) -> dict[str, list[tuple[int, Planned]]]:
    """The writes of each account, with their places in the batch; those of no account are left out."""
    groups: dict[str, list[tuple[int, Planned]]] = {}
    for place, write in enumerate(writes):
        if not isinstance(write, ForgetIdempotency):
            groups.setdefault(write.account, []).append((place, write))
    return groups


def no_such_account(write: Planned) -> NotFoundError:
    """The outcome of a write of an account that has never had a key."""
    what = "account" if isinstance(write, PutConversation) else "conversation in this account"
    return NotFoundError(f"no such {what}")


class Wanted:
    """What has to be looked up for some writes of one account."""

    def __init__(self, writes: Sequence[Planned], known_numbers: Mapping[str, int]) -> None:
        self.ids: set[str] = set()
        """Conversations whose numbers are not known yet."""
        self.external_ids: list[str] = []
        self.keys: list[str] = []
        self.repeats: list[AppendMessages] = []
        for write in writes:
            if isinstance(write, PutConversation):
                self.ids.add(write.conversation.id or write.id)
                self.external_ids.append(write.conversation.external_id)
                continue
            if write.conversation not in known_numbers:
                self.ids.add(write.conversation)
            if isinstance(write, AppendMessages):
                if write.idempotency is not None:
                    self.keys.append(write.idempotency.key)
                if write.refuse_repeats:
                    self.repeats.append(write)

    @property
    def nothing(self) -> bool:
        """Whether the writes can be planned without a look at the store."""
        return not (self.ids or self.external_ids or self.keys or self.repeats)
