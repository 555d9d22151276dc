"""How the model's values come out of rows and go into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnlog.model import ROLES, Conversation, Message, Participant

if TYPE_CHECKING:
    import asyncpg

CONVERSATION_COLUMNS = "id, external_id, customer, customer_name, agent, agent_name, metadata"
MESSAGE_COLUMNS = "id, position, text, role, sender, client_at, created_at"

_metadata = msgspec.json.Decoder(dict[str, str]).decode


def conversation_of(row: asyncpg.Record) -> Conversation:
    """A conversation from a row that has CONVERSATION_COLUMNS."""
    agent, metadata = row["agent"], row["metadata"]
    return Conversation(
        row["id"],
        row["external_id"],
        Participant(row["customer"], row["customer_name"]),
        None if agent is None else Participant(agent, row["agent_name"]),
        None if metadata is None else _metadata(metadata),
    )


def conversation_values(conversation: Conversation) -> tuple[str, str | None, str | None, str | None, str | None]:
    """What may change of a conversation: customer, customer_name, agent, agent_name, metadata."""
    agent, metadata = conversation.agent, conversation.metadata
    return (
        conversation.customer.external_id,
        conversation.customer.name,
        None if agent is None else agent.external_id,
        None if agent is None else agent.name,
        None if metadata is None else msgspec.json.encode(metadata).decode(),
    )


def message_of(row: asyncpg.Record) -> Message:
    """A message from MESSAGE_COLUMNS."""
    message_id, position, text, role, sender, client_at, created_at = row
    return Message(message_id, position, text, ROLES[role], sender, client_at, created_at)
