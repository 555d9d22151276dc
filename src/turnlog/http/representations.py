"""The model as it stands on the wire, names and capitals as published."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from turnlog.instants import render
from turnlog.model import EventType, Role

if TYPE_CHECKING:
    from turnlog.model import Conversation, Message, Participant
    from turnlog.sent import Sent
    from turnlog.webhooks import Failed, WebhookState

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


class SecretView(msgspec.Struct, rename="camel"):
    created_timestamp: str
    expires_timestamp: str | UnsetType = UNSET


class WebhookView(msgspec.Struct, rename="camel"):
    id: str
    url: str
    types: tuple[EventType, ...] | None
    description: str
    enabled: bool
    created_timestamp: str
    updated_timestamp: str
    cursor: str
    pending_conversations: int
    secrets: list[SecretView]
    last_error: str | UnsetType = UNSET
    next_attempt_timestamp: str | UnsetType = UNSET
    disabled_reason: str | UnsetType = UNSET
    secret: str | UnsetType = UNSET


class FailedEventView(msgspec.Struct, rename="camel"):
    id: str
    type: EventType
    conversation_id: str
    attempts: int
    first_failed_timestamp: str
    failed_timestamp: str
    error: str
    replayed: bool


class FailedView(msgspec.Struct, rename="camel"):
    items: list[FailedEventView]
    next_cursor: str | UnsetType = UNSET


class AttemptView(msgspec.Struct, rename="camel"):
    status: int | None
    error: str | None
    seconds: float
    body: str


def webhook_view(state: WebhookState, *, with_secret: bool = False) -> WebhookView:
    """A webhook with how far it has got; ``with_secret``, its newest secret is shown."""
    webhook = state.webhook
    return WebhookView(
        webhook.id,
        webhook.url,
        webhook.types,
        webhook.description,
        webhook.disabled is None,
        render(webhook.created_at),
        render(webhook.updated_at),
        state.cursor,
        state.blocked,
        [
            SecretView(render(one.created_at), UNSET if one.expires_at is None else render(one.expires_at))
            for one in webhook.secrets
        ],
        UNSET if state.error is None else state.error,
        UNSET if state.next_at is None else render(state.next_at),
        UNSET if webhook.disabled is None else webhook.disabled,
        webhook.secrets[-1].secret if with_secret else UNSET,
    )


def failed_view(page: Failed) -> FailedView:
    """A page of events that a webhook has given up."""
    items = [
        FailedEventView(
            event_id,
            letter.type,
            letter.conversation,
            letter.attempts,
            render(letter.first_failed_at),
            render(letter.dead_at),
            letter.error,
            letter.replayed,
        )
        for event_id, letter in page.items
    ]
    return FailedView(items, UNSET if page.next_cursor is None else page.next_cursor)


def attempt_view(sent: Sent) -> AttemptView:
    """What came of sending one event."""
    return AttemptView(sent.status, sent.error or None, round(sent.seconds, 3), sent.excerpt)
