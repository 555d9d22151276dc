"""The reusable parts of the OpenAPI description that changes and webhooks need."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnlog.addresses import MAX_URL_CHARS
from turnlog.feed import BEGINNING, NOW
from turnlog.http.changes import DEFAULT_PAGE_EVENTS
from turnlog.http.parameters import MAX_WAIT_S
from turnlog.http.schemas import (
    CONVERSATION_ID,
    INSTANT_OUT,
    MESSAGE_ID,
    NO_NUL,
    ULID,
    Json,
    object_schema,
    path_parameter,
    ref,
    text_schema,
)
from turnlog.http.webhook_bodies import MAX_REPLAYED_EVENTS
from turnlog.http.webhook_operations import DEFAULT_PAGE_FAILED
from turnlog.model import EVENT_TYPES, MAX_PAGE_MESSAGES
from turnlog.webhooks import MAX_DESCRIPTION_CHARS, MAX_OLD_SECRET_S, OLD_SECRET_ENDS_S

if TYPE_CHECKING:
    from turnlog.config import Config

WEBHOOK_ID = "01KA8Z7P4B0H6T3XQ5VNC8MDRJ"
EVENT_ID = "AAAAAAAAACoJaq16TaIGAg"
EVENT: Json = {
    "id": EVENT_ID,
    "type": "message.created",
    "time": "2025-11-17T09:30:21.004Z",
    "conversationId": CONVERSATION_ID,
    "externalId": "chat-2021-0042",
    "message": {
        "messageId": MESSAGE_ID,
        "text": "Hello, I would like to upgrade my internet plan to GOLD.",
        "sender": {"role": "customer", "externalId": "customer-7"},
        "createdTimestamp": "2025-11-17T09:30:21.004Z",
        "clientTimestamp": "2021-11-23T12:13:14.555Z",
    },
}

_CURSOR = "[A-Za-z0-9_-]{21}[AQgw]"
_INSTANT = {"type": "string", "format": "date-time", "pattern": INSTANT_OUT}
_WHSEC = (
    "^whsec_(?:(?:[A-Za-z0-9+/]{4}){8,21}|(?:[A-Za-z0-9+/]{4}){8,20}[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]="
    "|(?:[A-Za-z0-9+/]{4}){8,21}[A-Za-z0-9+/][AQgw]==)$"
)
_REST = "(?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PORT = "(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
# As addresses.py reads it, but for addresses in numbers, and labels that begin with a digit at the end of a host.
_BEHIND_SCHEME = (
    rf"(?:[A-Za-z0-9_]{_REST}\.){{0,3}}[A-Za-z_]{_REST}\.?(?::{_PORT}?)?"
    r"(?:[/?](?:[A-Za-z0-9\-._~:/?\[\]@!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)?$"
)


def schemas(config: Config) -> dict[str, Json]:
    """The component schemas, as the settings make them."""
    return {**_event_schemas(), **_webhook_inputs(config), **_webhook_answers(), **_failed_events()}


def _event_schemas() -> dict[str, Json]:
    return {
        "EventType": {"type": "string", "enum": list(EVENT_TYPES), "description": "What happened."},
        "EventId": _cursor("The event's id, which is the cursor behind it."),
        "Event": object_schema(
            ["id", "type", "time", "conversationId", "externalId"],
            {
                "id": ref("schemas", "EventId"),
                "type": ref("schemas", "EventType"),
                "time": {**_INSTANT, "description": "When this server recorded it, in UTC."},
                "conversationId": {"type": "string", "description": "The conversation's id."},
                "externalId": {"type": "string", "description": "The conversation's external id."},
                "message": ref("schemas", "Message"),
                "conversation": ref("schemas", "Conversation"),
            },
            oneOf=[{"required": ["message"]}, {"required": ["conversation"]}],
            description="Something that was recorded, with the object as it was then: the `message` of "
            "`message.created`, the `conversation` of the others.",
        ),
        "Changes": object_schema(
            ["items", "nextCursor"],
            {
                "items": {"type": "array", "items": ref("schemas", "Event")},
                "nextCursor": _cursor("Send it as `after` for what comes next, now or later."),
            },
        ),
    }


def _cursor(description: str) -> Json:
    return {"type": "string", "pattern": f"^{_CURSOR}$", "description": description}


def _types(*, nullable: bool) -> Json:
    kind = {"type": ["array", "null"]} if nullable else {"type": "array"}
    return {**kind, "minItems": 1, "items": ref("schemas", "EventType")}


def _webhook_inputs(config: Config) -> dict[str, Json]:
    scheme, where = "https", "a host on the internet"
    if config.allow_private_webhooks:
        scheme, where = "https?", "a host that this server can reach"
    url = {
        "type": "string",
        "maxLength": MAX_URL_CHARS,
        "pattern": f"^{scheme}://{_BEHIND_SCHEME}",
        "description": f"Where to send events: `{scheme.replace('?', '` or `http')}`, {where}, no credentials, no "
        "fragment. An address in numbers is accepted, too.",
    }
    types = {**_types(nullable=True), "description": "The types of events to send; null for all."}
    description = text_schema(MAX_DESCRIPTION_CHARS, "Whatever helps you to tell it from the others.")
    secret = {
        "type": "string",
        "pattern": _WHSEC,
        "description": "A signing secret of your own: `whsec_` and 24 to 64 bytes in base64.",
    }
    return {
        "WebhookInput": object_schema(
            ["url"],
            {
                "url": url,
                "types": types,
                "description": description,
                "after": {
                    "type": "string",
                    "pattern": f"^(?:{NOW}|{BEGINNING}|{_CURSOR})$",
                    "default": NOW,
                    "description": f"The place to begin behind: a cursor of the change feed, `{NOW}`, or "
                    f"`{BEGINNING}` for everything that is there.",
                },
                "secret": secret,
            },
            description="A webhook to create.",
        ),
        "WebhookChange": object_schema(
            [],
            {
                "url": url,
                "types": types,
                "description": description,
                "enabled": {"type": "boolean", "description": "Whether events are to be sent."},
            },
            description="What to change of a webhook.",
        ),
        "Rotation": _rotation(secret),
        "Replay": _replay(),
    }


def _rotation(secret: Json) -> Json:
    return object_schema(
        [],
        {
            "secret": secret,
            "oldEndsInSeconds": {
                "type": "integer",
                "minimum": 0,
                "maximum": MAX_OLD_SECRET_S,
                "default": OLD_SECRET_ENDS_S,
                "description": "How long the secret before goes on signing; 0 ends it now.",
            },
        },
        description="How to rotate a secret.",
    )


def _replay() -> Json:
    properties: Json = {
        "failed": {"type": "boolean", "const": True, "description": "Everything that was given up."},
        "events": {
            "type": "array",
            "minItems": 1,
            "maxItems": MAX_REPLAYED_EVENTS,
            "items": ref("schemas", "EventId"),
            "description": "Of what was given up, these. An id that is not among it is passed over.",
        },
        "after": {
            "type": "string",
            "pattern": f"^(?:{NOW}|{BEGINNING}|{_CURSOR})$",
            "description": f"Everything behind a cursor, or from the `{BEGINNING}`.",
        },
        "since": {
            "allOf": [ref("schemas", "Timestamp")],
            "type": "string",
            "description": "Everything that was recorded at this time or later.",
        },
    }
    return object_schema(
        [],
        properties,
        oneOf=[{"required": [name]} for name in properties],
        description="What to send again: one of these.",
    )


def _webhook_answers() -> dict[str, Json]:
    properties: Json = {
        "id": ULID,
        "url": {"type": "string"},
        "types": {**_types(nullable=True), "description": "The types of events that are sent; null for all."},
        "description": {"type": "string"},
        "enabled": {"type": "boolean"},
        "disabledReason": {"type": "string", "description": "Why nothing is sent, where it is not enabled."},
        "createdTimestamp": _INSTANT,
        "updatedTimestamp": _INSTANT,
        "cursor": _cursor("How far it has got in the change feed."),
        "pendingConversations": {
            "type": "integer",
            "minimum": 0,
            "description": "Conversations whose events could not be delivered and wait for their next attempt.",
        },
        "lastError": {"type": "string", "description": "What the last attempt came to, where something waits."},
        "nextAttemptTimestamp": {**_INSTANT, "description": "When what waits is tried again, at the earliest."},
        "secrets": {
            "type": "array",
            "description": "The secrets that sign, oldest first, without the secrets themselves.",
            "items": object_schema(["createdTimestamp"], {"createdTimestamp": _INSTANT, "expiresTimestamp": _INSTANT}),
        },
    }
    optional = ("disabledReason", "lastError", "nextAttemptTimestamp")
    required = [name for name in properties if name not in optional]
    secret = {"type": "string", "pattern": _WHSEC, "description": "The newest secret. Keep it: it is not shown again."}
    return {
        "Webhook": object_schema(required, properties, description="A webhook, and how far it has got."),
        "WebhookWithSecret": object_schema([*required, "secret"], {**properties, "secret": secret}),
        "Webhooks": object_schema(["items"], {"items": {"type": "array", "items": ref("schemas", "Webhook")}}),
        "Attempt": object_schema(
            ["status", "error", "seconds", "body"],
            {
                "status": {
                    "type": ["integer", "null"],
                    "description": "The receiver's status; null without an answer.",
                },
                "error": {"type": ["string", "null"], "description": "Why there was no answer."},
                "seconds": {"type": "number", "minimum": 0, "description": "How long it took."},
                "body": {"type": "string", "description": "The beginning of the receiver's answer."},
            },
            description="What came of sending one event.",
        ),
        "Replayed": object_schema(
            [],
            {
                "replayed": {"type": "integer", "minimum": 0, "description": "How many were not marked before."},
                "cursor": _cursor("The webhook's cursor now."),
            },
            oneOf=[{"required": ["replayed"]}, {"required": ["cursor"]}],
        ),
    }


def _failed_events() -> dict[str, Json]:
    failed = {
        "id": ref("schemas", "EventId"),
        "type": ref("schemas", "EventType"),
        "conversationId": {"type": "string"},
        "attempts": {"type": "integer", "minimum": 0},
        "firstFailedTimestamp": _INSTANT,
        "failedTimestamp": {**_INSTANT, "description": "When it was given up."},
        "error": {"type": "string", "description": "What went wrong the last time."},
        "replayed": {"type": "boolean", "description": "Whether it is to be sent again, and was not yet."},
    }
    more = _cursor("Send it as `after` for the next page. Absent where there is nothing more.")
    return {
        "FailedEvent": object_schema(failed, failed, description="An event that was given up."),
        "FailedEvents": object_schema(
            ["items"], {"items": {"type": "array", "items": ref("schemas", "FailedEvent")}, "nextCursor": more}
        ),
    }


def parameters() -> dict[str, Json]:
    """The component parameters."""
    limit = {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_MESSAGES}
    page = "The size of a page, {} where it is left out."
    return {
        "webhookId": path_parameter("webhookId", "The id that the webhook got.", WEBHOOK_ID),
        "changesAfter": _query(
            "after",
            {"type": "string", "pattern": f"^(?:{NOW}|{BEGINNING}|{_CURSOR})$"},
            f"The `nextCursor` of a page or the `id` of an event; `{NOW}` for what will come. Left out, it begins with "
            "the first event that is kept.",
        ),
        "changesLimit": _query("limit", limit, f"{page.format(DEFAULT_PAGE_EVENTS)} A stream takes no notice of it."),
        "changesWait": _query(
            "wait",
            {"type": "string", "pattern": r"^(?:[0-2]?[0-9](?:\.[0-9]{1,6})?|30(?:\.0{1,6})?)$"},
            f"How many seconds to wait for something to come, where there is nothing: 0 to {MAX_WAIT_S}.",
        ),
        "changesTypes": {
            **_query("types", _types(nullable=False), "Only events of these types."),
            "style": "form",
            "explode": False,
        },
        "changesConversationId": _query(
            "conversationId", {"type": "string", "pattern": NO_NUL}, "Only events of the conversation with this id."
        ),
        "changesExternalId": _query(
            "externalId",
            {"type": "string", "pattern": NO_NUL},
            "Only events of the conversation with this external id.",
        ),
        "lastEventId": {
            "name": "Last-Event-ID",
            "in": "header",
            "description": "For streams: the place to go on behind, instead of `after`.",
            "schema": {"type": "string"},
        },
        "failedLimit": _query("limit", limit, page.format(DEFAULT_PAGE_FAILED)),
        "failedAfter": _query(
            "after",
            {"type": "string", "pattern": f"^{_CURSOR}$"},
            "The `nextCursor` of the page before, or the `id` of an event.",
        ),
    }


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def webhooks() -> dict[str, Json]:
    """What receivers of webhooks are sent."""
    headers = {
        "webhook-id": "The event's id: the same whenever it is sent again.",
        "webhook-timestamp": "When the request was sent, in seconds since 1970. Refuse one that is minutes old.",
        "webhook-signature": "`v1,` and the HMAC-SHA256, in base64, of `id.timestamp.body`; with two live secrets two "
        "of these, with a space between.",
    }
    return {
        "event": {
            "post": {
                "operationId": "receiveEvent",
                "tags": ["Webhooks"],
                "summary": "An event, sent to a webhook's url",
                "description": "Answer with any 2xx, soon, and do the work afterwards. Anything else, and silence, "
                "has it sent again, later and later.",
                "security": [],
                "parameters": [
                    {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
                    for name, text in headers.items()
                ],
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": ref("schemas", "Event"), "example": EVENT}},
                },
                "responses": {"2XX": {"description": "It is taken."}},
            }
        }
    }
