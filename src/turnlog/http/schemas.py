"""The reusable parts of the OpenAPI description: schemas, parameters, headers and refusals.

What these schemas call valid, the server accepts: its own limits (limits.py) are part of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnlog.errors import Error
from turnlog.http.bodies import MAX_DEPTH
from turnlog.http.operations import DEFAULT_PAGE_MESSAGES
from turnlog.model import (
    MAX_BATCH_MESSAGES,
    MAX_ID_CHARS,
    MAX_METADATA_ENTRIES,
    MAX_METADATA_KEY_CHARS,
    MAX_METADATA_VALUE_CHARS,
    MAX_NAME_CHARS,
    MAX_PAGE_MESSAGES,
    ROLES,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnlog.config import Config

Json = dict[str, Any]

CONVERSATION_ID = "01KA8Z5T7Q9W3N6R2C4V0XJHME"
MESSAGE_ID = "01KA8Z6B1M5D8F2G7K9P3S4TVY"
CURSOR = "AAXReM8wvngAAAAAAAAAKtOzbrLXQ1c4"

NO_NUL = r"^[^\u0000]*$"
ULID = {"type": "string", "pattern": "^[0-7][0-9A-HJKMNP-TV-Z]{25}$"}
_PATH_ID = {"type": "string", "pattern": f"^[A-Z0-9]{{1,{MAX_ID_CHARS}}}$"}
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
# The lookahead leaves out what is beyond the years 0001 to 9999 once it is UTC. The calendar is for `format` to know.
_INSTANT = (
    r"^(?!0000|0001-01-01.*\+|9999-12-31.*-[0-9]{2}:)[0-9]{4}-[0-9]{2}-[0-9]{2}"
    rf"[Tt]{_CLOCK}:[0-5][0-9](?:\.[0-9]{{1,15}})?(?:[Zz]|[+-]{_CLOCK})?$"
)
INSTANT_OUT = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.(?:[0-9]{3}|[0-9]{6})Z$"
_IDEMPOTENCY_KEY = r'^(?:[!#-~](?:[ -~]{0,253}[!-~])?|"(?:[ !#-\[\]-~]|\\["\\]){1,255}")$'


def ref(kind: str, name: str) -> Json:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def object_schema(required: Iterable[str], properties: Json, **more: Any) -> Json:
    """An object, to which fields may be added that are not described."""
    return {"type": "object", "required": list(required), "properties": properties, **more}


def text_schema(limit: int, description: str) -> Json:
    """A text as it can be stored."""
    return {"type": "string", "maxLength": limit, "pattern": NO_NUL, "description": description}


def schemas(config: Config) -> dict[str, Json]:
    """The component schemas, as the settings make them."""
    return {**_request_schemas(config), **_answer_schemas(), **_error_schemas()}


def _request_schemas(config: Config) -> dict[str, Json]:
    return {
        "ExternalId": _external_id(config),
        "Timestamp": _timestamp(),
        "ParticipantInput": object_schema(
            ["externalId"],
            {
                "externalId": ref("schemas", "ExternalId"),
                "name": text_schema(MAX_NAME_CHARS, "How to call them; for people to read."),
            },
            description="A customer or an agent, by the id that your own systems know them by.",
        ),
        "ConversationInput": _conversation_input(),
        "MessageInput": object_schema(
            ["text", "sender", "timestamp"],
            {
                "text": {
                    "type": "string",
                    "minLength": 1,
                    "pattern": NO_NUL,
                    "description": "What was said: stored and returned as it is, never trimmed or normalised. "
                    "Its length is bounded by that of the body only.",
                },
                "sender": ref("schemas", "SenderInput"),
                "timestamp": ref("schemas", "Timestamp"),
            },
            description="One message of a conversation.",
        ),
        "SenderInput": object_schema(
            ["role", "externalId"],
            {"role": ref("schemas", "Role"), "externalId": ref("schemas", "ExternalId")},
            description="Who said it. It need not be the customer or the agent that the conversation names.",
        ),
        "Role": {
            "type": "string",
            "enum": list(ROLES),
            "description": "`system` is a bot or a notice: it sends messages and takes no part.",
        },
        "MessagesInput": object_schema(
            ["messages"],
            {
                "messages": {
                    "type": "array",
                    "minItems": 1,
                    "maxItems": MAX_BATCH_MESSAGES,
                    "items": ref("schemas", "MessageInput"),
                    "description": "In the order in which they arrived.",
                }
            },
        ),
        "AuthenticationInput": _authentication_input(config),
        "Credentials": _credentials(),
    }


def _external_id(config: Config) -> Json:
    described = "An id of your own systems' making: any text without U+0000."
    if not config.lenient:
        return text_schema(MAX_ID_CHARS, described)
    more = f" A JSON integer is taken as its decimal text, which may have up to {MAX_ID_CHARS} characters too."
    return {**text_schema(MAX_ID_CHARS, described + more), "type": ["string", "integer"]}


def _timestamp() -> Json:
    return {
        "type": "string",
        "format": "date-time",
        "pattern": _INSTANT,
        "description": "An RFC 3339 timestamp: `T` and `Z` in either case, any offset, 1 to 15 fraction digits, of "
        "which those beyond the microsecond are dropped. Without a zone, UTC is assumed. It has to lie in the "
        "years 0001 to 9999 once converted to UTC. A second `60` is accepted where there was a leap second.",
        "examples": ["2021-11-23T12:13:14.555Z"],
    }


def _conversation_input() -> Json:
    return object_schema(
        ["externalId", "customer", "timestamp"],
        {
            "externalId": ref("schemas", "ExternalId"),
            "customer": ref("schemas", "ParticipantInput"),
            "timestamp": ref("schemas", "Timestamp"),
            "agent": ref("schemas", "ParticipantInput"),
            "metadata": {
                "type": "object",
                "maxProperties": MAX_METADATA_ENTRIES,
                "propertyNames": {"maxLength": MAX_METADATA_KEY_CHARS, "pattern": NO_NUL},
                "additionalProperties": text_schema(MAX_METADATA_VALUE_CHARS, "Any text."),
                "description": "Names and values to keep beside the conversation. Sent again, it replaces the whole "
                "of what was stored.",
            },
            "id": {
                **_PATH_ID,
                "description": "The id that a new conversation is to have; left out, it gets one. An id is never "
                "changed: another than the stored one is refused.",
            },
        },
        description="A conversation to create, or what to change of one that exists.",
    )


def _authentication_input(config: Config) -> Json:
    properties: Json = {
        "customerExternalId": ref("schemas", "ExternalId"),
        "auth": ref("schemas", "Credentials"),
        "streamId": text_schema(MAX_ID_CHARS, "The stream that the customer is spoken to on."),
    }
    if not config.lenient:
        return object_schema(["customerExternalId", "auth"], properties)
    properties["token"] = {
        "type": "string",
        "description": "A token by itself: what `auth.token` says, for callers that send no `auth`.",
    }
    return object_schema(["customerExternalId"], properties, anyOf=[{"required": ["auth"]}, {"required": ["token"]}])


def _credentials() -> Json:
    parts = ("body", "cookies", "headers", "token")
    return {
        "type": "object",
        "properties": {
            "body": {"type": "object", "description": "The body that the customer authenticated with."},
            "cookies": {"type": "object", "description": "The cookies that they authenticated with."},
            "headers": {"type": "object", "description": "The headers that they authenticated with."},
            "token": {"type": "string", "description": "The token that they authenticated with."},
        },
        "anyOf": [{"required": [part]} for part in parts],
        "description": "How the customer authenticated: at least one part. Which parts came is recorded; what is in "
        "them never reaches a disk or a log.",
    }


def _answer_schemas() -> dict[str, Json]:
    stored_id = {"type": "string", "maxLength": MAX_ID_CHARS}
    instant = {"type": "string", "format": "date-time", "pattern": INSTANT_OUT}
    return {
        "Participant": object_schema(["externalId"], {"externalId": stored_id, "name": {"type": "string"}}),
        "Conversation": object_schema(
            ["id", "externalId", "customer"],
            {
                "id": _PATH_ID,
                "externalId": stored_id,
                "customer": ref("schemas", "Participant"),
                "agent": ref("schemas", "Participant"),
                "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            description="A conversation as it stands; `agent` and `metadata` where they are known.",
        ),
        "Conversations": object_schema(
            ["items"], {"items": {"type": "array", "maxItems": 1, "items": ref("schemas", "Conversation")}}
        ),
        "ConversationId": object_schema(["id"], {"id": _PATH_ID}),
        "Message": object_schema(
            ["messageId", "text", "sender", "createdTimestamp", "clientTimestamp"],
            {
                "messageId": ULID,
                "text": {"type": "string", "minLength": 1},
                "sender": ref("schemas", "Sender"),
                "createdTimestamp": {**instant, "description": "When this server recorded it, in UTC."},
                "clientTimestamp": {**instant, "description": "The timestamp that it was sent with, in UTC."},
            },
            description="A recorded message.",
        ),
        "Sender": object_schema(["role", "externalId"], {"role": ref("schemas", "Role"), "externalId": stored_id}),
        "Messages": object_schema(
            ["items"],
            {
                "items": {"type": "array", "items": ref("schemas", "Message")},
                "nextCursor": {
                    **_cursor(),
                    "description": "Send it as `after` for the next page. Absent where there is nothing more.",
                },
            },
        ),
        "MessageId": object_schema(["id"], {"id": ULID}),
        "MessageIds": object_schema(
            ["ids"],
            {"ids": {"type": "array", "minItems": 1, "maxItems": MAX_BATCH_MESSAGES, "items": ULID}},
            description="The ids of the messages, in the order in which they were sent.",
        ),
        "Health": object_schema(["healthCheck"], {"healthCheck": {"type": "string", "enum": ["SUCCESS", "FAILED"]}}),
    }


def _cursor() -> Json:
    return {"type": "string", "pattern": "^[A-Za-z0-9_-]{32}$"}


CODES = {
    "400-01": "The body is not JSON: empty, cut off, followed by more, with `NaN`, with a name twice in one object, "
    f"nested deeper than {MAX_DEPTH}, not UTF-8, or with half of a surrogate pair.",
    "400-02": "A query parameter or a header is missing or malformed, or the request is not well-formed HTTP.",
    "400-03": "The body is JSON but does not have the documented fields and types.",
    "401-01": "The credentials are missing, unknown, wrong, revoked or expired. It is not said which.",
    "403-01": "The key is good and lacks the permission that the operation needs.",
    "404-01": "There is no such path, conversation, message or webhook in this account.",
    "405-01": "The path does not offer the method; `Allow` lists those it does.",
    "408-01": "The request did not arrive in time.",
    "409-01": "It is recorded already, durably, and this request adds nothing; or a conversation `id` is another's. "
    "Never sent for something that is still under way.",
    "410-01": "What comes behind the cursor is not kept any more, or the log was restored to an earlier time.",
    "413-01": "The body is over the limit.",
    "414-01": "The request's target, path and query, is over the limit.",
    "415-01": "The body is not `application/json`, or has a content encoding.",
    "422-01": "It is well formed, and this server still does not take it: U+0000 in a string, an instant outside the "
    "years 0001 to 9999 UTC, or more than a documented limit.",
    "422-02": "The `Idempotency-Key` was used before with another request.",
    "429-01": "The key is over its rate; `Retry-After` says when to go on.",
    "431-01": "The request's headers are over the limits.",
    "500-01": "A fault of this server, which its log has under the request id.",
    "503-01": "Refused before it was taken: certainly not stored. Retry after `Retry-After`.",
    "503-02": "The outcome is unknown: it may or may not be stored. Retry with the same `Idempotency-Key`.",
}
"""What each code means, for callers."""


def known_codes() -> set[str]:
    """The codes of errors.py."""
    return {kind.code for kind in Error.__subclasses__()}


def _error_schemas() -> dict[str, Json]:
    return {
        "Error": object_schema(
            ["error"],
            {
                "error": object_schema(
                    ["requestId", "code", "message"],
                    {
                        "requestId": {"type": "string", "description": "The same as in `x-request-id`."},
                        "code": ref("schemas", "ErrorCode"),
                        "message": {
                            "type": "string",
                            "minLength": 1,
                            "description": "For people: what is wrong, where, and what would be right.",
                        },
                    },
                    additionalProperties=False,
                )
            },
            description="The form of every answer that is not a success.",
            additionalProperties=False,
        ),
        "ErrorCode": {
            "type": "string",
            "enum": list(CODES),
            "x-enum-descriptions": list(CODES.values()),
            "description": "What went wrong, for programs. The first three digits are the status.",
        },
    }


def parameters(config: Config) -> dict[str, Json]:
    """The component parameters."""
    return {
        "conversationId": path_parameter("conversationId", "The id that the conversation got, or was given."),
        "messageId": path_parameter("messageId", "The id that the message got.", MESSAGE_ID),
        "externalId": {
            "name": "externalId",
            "in": "query",
            "required": True,
            "description": "The conversation's `externalId`, whole and exactly as it was sent.",
            "schema": {"type": "string", "pattern": NO_NUL},
            "example": "chat-2021-0042",
        },
        "limit": {
            "name": "limit",
            "in": "query",
            "description": "The size of a page. Without `limit` and `after` the whole conversation comes at once.",
            "schema": {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_MESSAGES},
            "example": 100,
        },
        "after": {
            "name": "after",
            "in": "query",
            "description": "The `nextCursor` of the page before, as it came. It is good for its own conversation only. "
            f"Without `limit`, a page has up to {DEFAULT_PAGE_MESSAGES} messages.",
            "schema": _cursor(),
        },
        "idempotencyKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Makes retries safe. The same key with the same request answers with the first ids and "
            "records nothing again, even while the first attempt is still running or after a restart; with another "
            f"request it is 422-02. A refused request does not use it up. Kept for {config.idempotency_hours} hours, "
            "per account. 1 to 255 printable ASCII characters, bare or as a quoted string.",
            "schema": {"type": "string", "pattern": _IDEMPOTENCY_KEY},
        },
    }


def path_parameter(name: str, description: str, example: str = CONVERSATION_ID) -> Json:
    """An id in a path."""
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": f"{description} One of another shape is simply unknown.",
        "schema": _PATH_ID,
        "example": example,
    }


def headers() -> dict[str, Json]:
    """The component headers."""
    return {
        "RequestId": _header(
            ULID, "Names this answer in the server's log; quote it when you ask for help.", required=True
        ),
        "RetryAfter": _header(
            {"type": "integer", "minimum": 1}, "Seconds to wait before the next attempt.", required=True
        ),
        "RateLimit": _header(
            {"type": "string", "pattern": '^"default";r=[0-9]+;t=[0-9]+$'},
            "What is left: `r` requests now, all of them again in `t` seconds. Only where the key has a rate.",
        ),
        "RateLimitPolicy": _header(
            {"type": "string", "pattern": '^"default";q=[0-9]+;w=[0-9]+$'},
            "The key's rate: `q` requests in `w` seconds. Only where the key has a rate.",
        ),
        "Allow": _header({"type": "string", "minLength": 1}, "The methods that the path offers.", required=True),
        "WwwAuthenticate": _header(
            {"type": "string", "minLength": 1}, "The two headers to authenticate with.", required=True
        ),
    }


def _header(schema: Json, description: str, *, required: bool = False) -> Json:
    return {"description": description, "required": required, "schema": schema}
