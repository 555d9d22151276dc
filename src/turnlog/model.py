"""What exists: conversations, messages, those who speak in them, and the keys that open the door. No I/O.

Instants are microseconds since 1970-01-01 UTC (see instants.py); names on the wire are in http/representations.py.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

Role = Literal["agent", "customer", "system"]
ROLES: tuple[Role, ...] = get_args(Role)

Permission = Literal["conversations:write", "messages:write", "read", "feed", "admin"]
PERMISSIONS: tuple[Permission, ...] = get_args(Permission)
DEFAULT_PERMISSIONS: tuple[Permission, ...] = ("conversations:write", "messages:write", "read")

EventType = Literal["conversation.created", "conversation.updated", "message.created"]
EVENT_TYPES: tuple[EventType, ...] = get_args(EventType)

MAX_ID_CHARS = 255
"""External ids, conversation ids and names; the published documents name no limit, the index needs one."""
MAX_NAME_CHARS = 255
MAX_METADATA_ENTRIES = 100
MAX_METADATA_KEY_CHARS = 255
MAX_METADATA_VALUE_CHARS = 4096
MAX_BATCH_MESSAGES = 300
"""Published limit of one batch."""
MAX_PAGE_MESSAGES = 1000


class Participant(msgspec.Struct, frozen=True, omit_defaults=True):
    """A customer or an agent, by the id that the contact centre knows it by."""

    external_id: str
    name: str | None = None


class NewConversation(msgspec.Struct, frozen=True):
    """What a caller says of a conversation; ``None`` is "left out"."""

    external_id: str
    customer: Participant
    client_at: int
    agent: Participant | None = None
    metadata: dict[str, str] | None = None
    id: str | None = None


class Conversation(msgspec.Struct, frozen=True):
    """A conversation as it stands."""

    id: str
    external_id: str
    customer: Participant
    agent: Participant | None = None
    metadata: dict[str, str] | None = None


class NewMessage(msgspec.Struct, frozen=True, gc=False):
    """What somebody said, as the caller tells it."""

    text: str
    role: Role
    sender: str
    client_at: int


class Message(msgspec.Struct, frozen=True, gc=False):
    """A recorded message. ``position`` is its place in the account's log: gap-free, in commit order."""

    id: str
    position: int
    text: str
    role: Role
    sender: str
    client_at: int
    created_at: int


class Entry(msgspec.Struct, frozen=True):
    """One entry of an account's log: what happened, when (the server's time), and the object as it was then."""

    position: int
    type: EventType
    at: int
    conversation_id: str
    external_id: str
    subject: Message | Conversation


class LogFilter(msgspec.Struct, frozen=True):
    """Which entries of a log are wanted: of which types, of which conversation; ``None`` is "of all"."""

    types: frozenset[EventType] | None = None
    conversation_id: str | None = None
    external_id: str | None = None


EVERYTHING = LogFilter()


class NewAuthentication(msgspec.Struct, frozen=True):
    """The fact that a customer authenticated: who, and which parts were sent, never what was in them."""

    customer_external_id: str
    parts: tuple[str, ...]
    stream_id: str | None = None


class SecretHash(msgspec.Struct, frozen=True):
    """One live or past secret of a key; ``expires_at`` is set by a rotation."""

    digest: bytes
    created_at: int
    expires_at: int | None = None


class ApiKey(msgspec.Struct, frozen=True):
    """A key: what an integration holds. ``rate_per_s`` ``None`` is "no limit"."""

    id: str
    name: str
    account: str
    permissions: tuple[Permission, ...]
    created_at: int
    rate_per_s: float | None = None
    refuse_repeats: bool = False
    expires_at: int | None = None
    revoked_at: int | None = None


class SigningSecret(msgspec.Struct, frozen=True):
    """What a webhook's requests are signed with, ``whsec_…``; ``expires_at`` is set by a rotation."""

    secret: str
    created_at: int
    expires_at: int | None = None


class Webhook(msgspec.Struct, frozen=True):
    """A subscription to an account's log. ``types`` ``None`` is "all"; ``disabled`` says why, where it is."""

    id: str
    account: str
    url: str
    secrets: tuple[SigningSecret, ...]
    created_at: int
    updated_at: int
    types: tuple[EventType, ...] | None = None
    description: str = ""
    disabled: str | None = None


class Blocked(msgspec.Struct, frozen=True):
    """A conversation that a webhook could not deliver: its events from ``position`` on wait, up to the cursor."""

    conversation: str
    position: int
    attempts: int
    first_failed_at: int
    next_at: int
    error: str


class DeadLetter(msgspec.Struct, frozen=True):
    """An event that a webhook has given up. ``replayed`` once somebody has asked for it to be sent again."""

    position: int
    type: EventType
    conversation: str
    attempts: int
    first_failed_at: int
    dead_at: int
    error: str
    replayed: bool = False
