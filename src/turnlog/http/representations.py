"""The model as it stands on the wire, names and capitals as published."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec

from turnlog.instants import render
from turnlog.model import Role

if TYPE_CHECKING:
    from turnlog.model import Conversation, Message, Participant

encode = msgspec.json.encode


class ParticipantView(msgspec.Struct, rename="camel", omit_defaults=True):
    external_id: str
    name: str | None = None


class ConversationView(msgspec.Struct, rename="camel", omit_defaults=True):
    id: str
    external_id: str
    customer: ParticipantView
    agent: ParticipantView | None = None
    metadata: dict[str, str] | None = None


class SenderView(msgspec.Struct, rename="camel", frozen=True, gc=False):
    role: Role
    external_id: str


class MessageView(msgspec.Struct, rename="camel", gc=False):
    message_id: str
    text: str
    sender: SenderView
    created_timestamp: str
    client_timestamp: str


def _participant_view(participant: Participant) -> ParticipantView:
    return ParticipantView(participant.external_id, participant.name)


def conversation_view(conversation: Conversation) -> ConversationView:
    """A conversation as the read operations give it."""
    agent = conversation.agent
    return ConversationView(
        conversation.id,
        conversation.external_id,
        _participant_view(conversation.customer),
        None if agent is None else _participant_view(agent),
        conversation.metadata,
    )


@lru_cache(maxsize=4096)
def _sender_view(role: Role, external_id: str) -> SenderView:
    """The same few speak again and again."""
    return SenderView(role, external_id)


def message_view(message: Message) -> MessageView:
    """A message as the read operations give it."""
    return MessageView(
        message.id,
        message.text,
        _sender_view(message.role, message.sender),
        render(message.created_at),
        render(message.client_at),
    )
