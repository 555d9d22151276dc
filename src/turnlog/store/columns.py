"""The columns of a conversation, the same in every store: what goes into them and what comes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from turnlog.model import Conversation, Participant

if TYPE_CHECKING:
    from collections.abc import Iterable

CONVERSATION_COLUMNS = "id, external_id, customer, customer_name, agent, agent_name, metadata"

_metadata = msgspec.json.Decoder(dict[str, str]).decode


def conversation_of(row: Iterable[Any]) -> Conversation:
    """A conversation from CONVERSATION_COLUMNS."""
    conversation_id, external_id, customer, customer_name, agent, agent_name, metadata = row
    return Conversation(
        conversation_id,
        external_id,
        Participant(customer, customer_name),
        None if agent is None else Participant(agent, agent_name),
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
