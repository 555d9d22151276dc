"""Creating and updating a conversation, inside the transaction of append.py; each change is an entry of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnlog.errors import AlreadyRecordedError
from turnlog.model import Conversation, Participant
from turnlog.store.sqlite.rows import CONVERSATION_COLUMNS, conversation_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

    from turnlog.model import NewConversation
    from turnlog.store.protocol import PutConversation

_FIND = f"SELECT number, {CONVERSATION_COLUMNS} FROM conversation WHERE account = ? AND external_id = ?"  # noqa: S608
_IS_TAKEN = "SELECT 1 FROM conversation WHERE account = ? AND id = ?"
_INSERT = """
    INSERT INTO conversation (account, id, external_id, customer, customer_name, agent, agent_name, metadata,
        client_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_UPDATE = """
    UPDATE conversation SET customer = ?, customer_name = ?, agent = ?, agent_name = ?, metadata = ? WHERE number = ?
"""
_LOG = "INSERT INTO conversation_change (entry, conversation, created, changed_at, state) VALUES (?, ?, ?, ?, ?)"


def put_conversation(
    connection: apsw.Connection, account: int, write: PutConversation, next_entry: Callable[[], int]
) -> tuple[str, int]:
    """Create or update; the conversation's id and number.

    Takes an entry of the log only where something changes. Raises AlreadyRecordedError where the id given contradicts
    what is stored.
    """
    row = connection.execute(_FIND, (account, write.conversation.external_id)).fetchone()
    if row is None:
        return _create(connection, account, write, next_entry)
    number, stored = int(row[0]), conversation_of(row[1:])
    if write.conversation.id not in (None, stored.id):
        raise AlreadyRecordedError(
            f"[Path '/id'] the conversation with this externalId has the id {stored.id}, and an id does not change"
        )
    updated = merged(stored, write.conversation)
    if updated != stored:
        connection.execute(_UPDATE, (*_columns(updated), number))
        connection.execute(_LOG, (next_entry(), number, 0, write.created_at, _json(updated)))
    return stored.id, number


def _create(
    connection: apsw.Connection, account: int, write: PutConversation, next_entry: Callable[[], int]
) -> tuple[str, int]:
    new = write.conversation
    conversation_id = write.id if new.id is None else new.id
    if connection.execute(_IS_TAKEN, (account, conversation_id)).fetchone() is not None:
        raise AlreadyRecordedError("[Path '/id'] the id belongs to another conversation")
    conversation = Conversation(conversation_id, new.external_id, new.customer, new.agent, new.metadata)
    connection.execute(
        _INSERT,
        (account, conversation_id, new.external_id, *_columns(conversation), new.client_at, write.created_at),
    )
    number = connection.last_insert_rowid()
    connection.execute(_LOG, (next_entry(), number, 1, write.created_at, _json(conversation)))
    return conversation_id, number


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _columns(conversation: Conversation) -> tuple[str, str | None, str | None, str | None, str | None]:
    agent = conversation.agent
    return (
        conversation.customer.external_id,
        conversation.customer.name,
        None if agent is None else agent.external_id,
        None if agent is None else agent.name,
        None if conversation.metadata is None else _json(conversation.metadata),
    )


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
