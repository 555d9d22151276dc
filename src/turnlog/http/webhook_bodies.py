"""Request bodies about webhooks. They are short, so each is read twice: by msgspec, and strictly (see bodies.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from turnlog.errors import SchemaMismatchError
from turnlog.feed import NOW
from turnlog.http.bodies import check_json, decode, instant
from turnlog.model import EventType
from turnlog.webhooks import MAX_OLD_SECRET_S, OLD_SECRET_ENDS_S, NewWebhook, Replay, WebhookChange

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
MAX_REPLAYED_EVENTS = 1000
"""Of one request that names them."""

Types = Annotated[list[EventType], Meta(min_length=1)]


class WebhookBody(msgspec.Struct):
    """Of ``create_webhook``."""

    url: str
    types: Types | None = None
    description: str = ""
    after: str = NOW
    secret: str | UnsetType = UNSET


class WebhookChangeBody(msgspec.Struct):
    """Of ``change_webhook``."""

    url: str | UnsetType = UNSET
    types: Types | UnsetType | None = UNSET
    description: str | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class RotationBody(msgspec.Struct, rename="camel"):
    """Of ``rotate_webhook``."""

    secret: str | UnsetType = UNSET
    old_ends_in_seconds: Annotated[float, Meta(ge=0, le=MAX_OLD_SECRET_S)] = OLD_SECRET_ENDS_S
    """A whole number, which JSON lets one write as 60.0."""


class ReplayBody(msgspec.Struct):
    """Of ``replay_webhook``."""

    failed: bool | UnsetType = UNSET
    events: Annotated[list[str], Meta(min_length=1, max_length=MAX_REPLAYED_EVENTS)] | UnsetType = UNSET
    after: str | UnsetType = UNSET
    since: str | UnsetType = UNSET


_decode_webhook = msgspec.json.Decoder(WebhookBody).decode
_decode_change = msgspec.json.Decoder(WebhookChangeBody).decode
_decode_rotation = msgspec.json.Decoder(RotationBody).decode
_decode_replay = msgspec.json.Decoder(ReplayBody).decode


def webhook_body(raw: bytes) -> NewWebhook:
    """Raises MalformedBodyError, SchemaMismatchError, as all of these."""
    body = _read(raw, _decode_webhook)
    types = None if body.types is None else tuple(body.types)
    return NewWebhook(body.url, types, body.description, body.after, None if body.secret is UNSET else body.secret)


def webhook_change_body(raw: bytes) -> WebhookChange:
    """See ``webhook_body``."""
    body = _read(raw, _decode_change)
    types = tuple(body.types) if isinstance(body.types, list) else body.types
    return WebhookChange(body.url, types, body.description, body.enabled)


def rotation_body(raw: bytes) -> tuple[str | None, int]:
    """The new secret, where one is given, and in how many seconds the old one ends. See ``webhook_body``."""
    body = _read(raw, _decode_rotation)
    if body.old_ends_in_seconds % 1:
        raise SchemaMismatchError("[Path '/oldEndsInSeconds'] Expected a whole number")
    return None if body.secret is UNSET else body.secret, int(body.old_ends_in_seconds)


def replay_body(raw: bytes) -> Replay:
    """See ``webhook_body``; UnprocessableError for an instant beyond the calendar."""
    body = _read(raw, _decode_replay)
    given = [name for name in body.__struct_fields__ if getattr(body, name) is not UNSET]
    if len(given) != 1:
        raise SchemaMismatchError("[Path ''] expected exactly one of failed, events, after, since")
    if body.failed is False:
        raise SchemaMismatchError("[Path '/failed'] Expected true")
    return Replay(
        body.failed is True,
        None if body.events is UNSET else tuple(body.events),
        None if body.after is UNSET else body.after,
        None if body.since is UNSET else instant(body.since, "/since"),
    )


def _read(raw: bytes, decoder: Callable[[bytes], T]) -> T:
    body = decode(raw, decoder)
    check_json(raw)
    return body
