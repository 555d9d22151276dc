"""How the model's values come out of rows."""

from __future__ import annotations

from typing import Any

import msgspec

from turnlog.model import ROLES, Conversation, Message, Participant
from turnlog.store.sqlite import entries

CONVERSATION_COLUMNS = "id, external_id, customer, customer_name, agent, agent_name, metadata"
MESSAGE_COLUMNS = "m.entry, m.id, m.role, m.sender, m.client_at, m.created_at, m.text"

_metadata = msgspec.json.Decoder(dict[str, str]).decode


def conversation_of(row: tuple[Any, ...]) -> Conversation:
    """A conversation from CONVERSATION_COLUMNS."""
    conversation_id, external_id, customer, customer_name, agent, agent_name, metadata = row
    return Conversation(
        conversation_id,
        external_id,
        Participant(customer, customer_name),
        None if agent is None else Participant(agent, agent_name),
        None if metadata is None else _metadata(metadata),
    )


def message_of(row: tuple[Any, ...]) -> Message:
    """A message from MESSAGE_COLUMNS."""
    entry, message_id, role, sender, client_at, created_at, text = row
    return Message(message_id, entries.position(entry), text, ROLES[role], sender, client_at, created_at)
