"""The OpenAPI 3.1 description: derived from the operations table, with what a table cannot say about each of them.

Which refusals an operation may answer with follows from its row; an operation without a description is an error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from turnlog import __version__
from turnlog.http import schemas
from turnlog.http.bodies import MAX_DEPTH
from turnlog.http.schemas import CODES, CONVERSATION_ID, CURSOR, MESSAGE_ID, Json, ref
from turnlog.model import MAX_BATCH_MESSAGES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnlog.config import Config
    from turnlog.http.operations import Operation


class Described(msgspec.Struct, frozen=True):
    """What is said of an operation beside its row in the table; ``body`` and ``answer`` are names of schemas."""

    tag: str
    summary: str
    text: str
    answers: str
    answer: str | None = None
    answer_example: Any = None
    body: str | None = None
    examples: dict[str, Any] = {}
    lenient_examples: dict[str, Any] = {}
    parameters: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    links: dict[str, tuple[str, dict[str, str]]] = {}


_AT = "2021-11-23T12:13:14.555Z"
_MESSAGE = {
    "text": "Hello, I would like to upgrade my internet plan to GOLD.",
    "sender": {"role": "customer", "externalId": "customer-7"},
    "timestamp": _AT,
}
_REPLY = {
    "text": "Gladly. One moment, please.",
    "sender": {"role": "agent", "externalId": "agent-3"},
    "timestamp": "2021-11-23T12:13:40.02Z",
}
_CONVERSATION = {
    "externalId": "chat-2021-0042",
    "customer": {"externalId": "customer-7", "name": "Jane Doe"},
    "agent": {"externalId": "agent-3", "name": "Sam"},
    "metadata": {"channel": "web"},
}
_RECORDED = {
    "messageId": MESSAGE_ID,
    **_MESSAGE,
    "createdTimestamp": "2025-11-17T09:30:21.004Z",
    "clientTimestamp": _AT,
}
del _RECORDED["timestamp"]
_SAME_CONVERSATION = {"conversationId": "$request.path.conversationId"}
_NEW_CONVERSATION = {"conversationId": "$response.body#/id"}

_DURABLE = "The answer comes when it is committed and synced to disk: a 200 is never lost."
_READ_LINKS = {
    "aMessage": ("read_message", {**_SAME_CONVERSATION, "messageId": "$response.body#/items/0/messageId"}),
    "nextPage": ("list_messages", {**_SAME_CONVERSATION, "after": "$response.body#/nextCursor"}),
}

DESCRIBED = {
    "create_conversation": Described(
        "Conversations",
        "Create or update a conversation",
        "An `externalId` that is new to the account creates a conversation; a known one updates it. In an update, a "
        "field that is given replaces the stored one and a field left out stays. The answer is the same, so this can "
        "be sent again at any time.",
        "The conversation's id, new or not.",
        answer="ConversationId",
        answer_example={"id": CONVERSATION_ID},
        body="ConversationInput",
        examples={
            "whole": {**_CONVERSATION, "timestamp": _AT},
            "least": {"externalId": "chat-2021-0043", "customer": {"externalId": "customer-8"}, "timestamp": _AT},
        },
        lenient_examples={"integerId": {"externalId": 123, "customer": {"externalId": 124}, "timestamp": _AT}},
        codes=("409-01", "503-02"),
        links={
            "read": ("read_conversation", _NEW_CONVERSATION),
            "find": ("find_conversations", {"externalId": "$request.body#/externalId"}),
            "createMessage": ("create_message", _NEW_CONVERSATION),
            "createMessages": ("create_messages", _NEW_CONVERSATION),
            "listMessages": ("list_messages", _NEW_CONVERSATION),
            "listMessagesByExternalId": (
                "list_messages_by_external_id",
                {"externalId": "$request.body#/externalId"},
            ),
            "authenticate": ("authenticate", _NEW_CONVERSATION),
        },
    ),
    "find_conversations": Described(
        "Conversations",
        "Find a conversation by its external id",
        "A list of the one conversation with this `externalId`, or an empty one.",
        "What was found.",
        answer="Conversations",
        answer_example={"items": [{"id": CONVERSATION_ID, **_CONVERSATION}]},
        parameters=("externalId",),
        codes=("422-01",),
        links={"read": ("read_conversation", {"conversationId": "$response.body#/items/0/id"})},
    ),
    "read_conversation": Described(
        "Conversations",
        "Read a conversation",
        "The conversation with what is known of its customer, its agent and its metadata.",
        "The conversation.",
        answer="Conversation",
        answer_example={"id": CONVERSATION_ID, **_CONVERSATION},
    ),
    "create_message": Described(
        "Messages",
        "Record a message",
        f"Records one message in a conversation that exists. {_DURABLE}\n\nTimestamps may be equal, out of order or "
        "long past. Without an `Idempotency-Key` every request is a message of its own, so send one if you retry.",
        "The message's id.",
        answer="MessageId",
        answer_example={"id": MESSAGE_ID},
        body="MessageInput",
        examples={"customer": _MESSAGE, "agent": _REPLY},
        lenient_examples={"integerId": {**_REPLY, "sender": {"role": "agent", "externalId": 123}}},
        parameters=("idempotencyKey",),
        codes=("409-01", "422-02", "503-02"),
        links={
            "read": ("read_message", {**_SAME_CONVERSATION, "messageId": "$response.body#/id"}),
            "list": ("list_messages", _SAME_CONVERSATION),
        },
    ),
    "list_messages": Described(
        "Messages",
        "List a conversation's messages",
        "In order: by the timestamp that they were sent with, then by arrival. Without parameters the whole "
        "conversation comes in one answer, streamed; with `limit` or `after` it comes in pages, and paging neither "
        "skips nor repeats a message that was there when it began.",
        "The messages.",
        answer="Messages",
        answer_example={"items": [_RECORDED], "nextCursor": CURSOR},
        parameters=("limit", "after"),
        links=_READ_LINKS,
    ),
    "read_message": Described(
        "Messages",
        "Read a message",
        "One message of this conversation, word for word.",
        "The message.",
        answer="Message",
        answer_example=_RECORDED,
    ),
    "create_messages": Described(
        "Messages",
        "Record several messages",
        f"Records up to {MAX_BATCH_MESSAGES} messages of one conversation, all or none; their order in the "
        f"list is their order of arrival. {_DURABLE}",
        "The messages' ids.",
        answer="MessageIds",
        answer_example={"ids": [MESSAGE_ID, "01KA8Z6B1M5D8F2G7K9P3S4TVZ"]},
        body="MessagesInput",
        examples={"two": {"messages": [_MESSAGE, _REPLY]}},
        parameters=("idempotencyKey",),
        codes=("409-01", "422-02", "503-02"),
        links={
            "readFirst": ("read_message", {**_SAME_CONVERSATION, "messageId": "$response.body#/ids/0"}),
            "list": ("list_messages", _SAME_CONVERSATION),
        },
    ),
    "list_messages_by_external_id": Described(
        "Messages",
        "List messages by the conversation's external id",
        "As listMessages, for callers that keep only their own id. The path says `conversation`, without an s.",
        "The messages.",
        answer="Messages",
        answer_example={"items": [_RECORDED]},
        parameters=("externalId", "limit", "after"),
        codes=("404-01", "422-01"),
    ),
    "authenticate": Described(
        "Conversations",
        "Record that a customer authenticated",
        "Who authenticated, when, and which parts were sent is recorded; what is in them is not kept anywhere.",
        "It is recorded.",
        body="AuthenticationInput",
        examples={"token": {"customerExternalId": "customer-7", "auth": {"token": "an-opaque-token"}}},
        lenient_examples={"topLevelToken": {"customerExternalId": "customer-7", "token": "an-opaque-token"}},
        codes=("503-02",),
    ),
    "health": Described(
        "Health",
        "Ask whether the service works",
        "Any good key may ask. `FAILED` means that the store does not answer or cannot record.",
        "The state of the service.",
        answer="Health",
        answer_example={"healthCheck": "SUCCESS"},
    ),
}

_ALWAYS = ("400-02", "401-01", "405-01", "408-01", "413-01", "414-01", "429-01", "431-01", "500-01", "503-01")
"""What any request may be answered with: it may be late, too long, ill-formed or without a key."""
_WITH_BODY = ("400-01", "400-03", "415-01", "422-01")
_SECURITY = {"apiId": "asapp-api-id", "apiSecret": "asapp-api-secret"}
_STANDING_HEADERS = {"x-request-id": "RequestId", "RateLimit": "RateLimit", "RateLimit-Policy": "RateLimitPolicy"}
_REFUSAL_HEADERS = {
    "401": {"WWW-Authenticate": "WwwAuthenticate"},
    "405": {"Allow": "Allow"},
    "429": {"Retry-After": "RetryAfter"},
    "503": {"Retry-After": "RetryAfter"},
}


def document(operations: Sequence[Operation], config: Config) -> Json:
    """The description, ready to be encoded. Raises LookupError for an operation that is not described here."""
    paths: dict[str, Json] = {}
    refusals: dict[str, Json] = {}
    for operation in operations:
        described = DESCRIBED.get(operation.name)
        if described is None:
            raise LookupError(f"http/openapi.py does not describe the operation {operation.name}")
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(
            operation, described, config, refusals
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Turnlog",
            "version": __version__,
            "summary": "Durable records of customer conversations",
            "description": _introduction(config),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "this server"}],
        "security": [{name: [] for name in _SECURITY}],
        "tags": [
            {"name": "Conversations", "description": "Who talks with whom."},
            {"name": "Messages", "description": "What was said."},
            {"name": "Health", "description": "Whether the service works."},
        ],
        "paths": paths,
        "components": {
            "schemas": schemas.schemas(config),
            "parameters": schemas.parameters(config),
            "headers": schemas.headers(),
            "responses": refusals,
            "securitySchemes": {
                name: {"type": "apiKey", "in": "header", "name": header} for name, header in _SECURITY.items()
            },
        },
    }


def operation_id(name: str) -> str:
    """``create_message`` as ``createMessage``."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def _introduction(config: Config) -> str:
    lenient = (
        "An external id may also come as a JSON integer, which becomes its decimal text.\n\n" if config.lenient else ""
    )
    repeats = (
        "An exact repeat of a recorded message is refused with 409-01.\n\n"
        if config.refuse_repeats
        else "A key may be set to refuse exact repeats of recorded messages, with 409-01.\n\n"
    )
    return (
        "A self-hosted server of the Conversations API. What got a 200 is on disk.\n\n"
        "Every request carries the headers `asapp-api-id` and `asapp-api-secret`, both, once each. What belongs to "
        "another account is not there: 404-01.\n\n"
        "Bodies are JSON in UTF-8 (`application/json`) of up to "
        f"{config.max_body_bytes:,} bytes, {config.max_batch_body_bytes:,} for a batch, nested no deeper than "
        f"{MAX_DEPTH}. A field that is not described is ignored. {lenient}"
        f"A request's target may have {config.max_target_bytes:,} bytes, its headers {config.max_header_bytes:,} "
        f"bytes and {config.max_headers} fields.\n\n"
        "Every answer names its request in `x-request-id`. Whatever is not a success is an `Error` with a stable "
        "code. Retry 429 and 503 after `Retry-After`, and what was answered 500 or not at all; writes with the same "
        "`Idempotency-Key`. Nothing else is worth sending again unchanged. "
        f"{repeats}"
        "Where `GET` is offered, so is `HEAD`; `OPTIONS` answers 204 with `Allow`."
    )


def _operation(operation: Operation, described: Described, config: Config, refusals: dict[str, Json]) -> Json:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    codes = {*_ALWAYS, *described.codes}
    codes |= set(_WITH_BODY) if described.body is not None else set()
    codes |= {"403-01"} if operation.permission is not None else set()
    codes |= {"404-01"} if names else set()
    text = described.text
    if operation.permission is not None:
        text += f"\n\nThe key needs the permission `{operation.permission}`."
    made = {
        "operationId": operation_id(operation.name),
        "tags": [described.tag],
        "summary": described.summary,
        "description": text,
        "parameters": [ref("parameters", name) for name in (*names, *described.parameters)],
        "responses": {**_success(described), **_refusals(codes, refusals)},
    }
    if described.body is not None:
        made["requestBody"] = _request_body(described, operation.max_body_bytes(config), lenient=config.lenient)
    return made


def _request_body(described: Described, max_bytes: int, *, lenient: bool) -> Json:
    examples = described.examples | (described.lenient_examples if lenient else {})
    return {
        "required": True,
        "description": f"At most {max_bytes:,} bytes.",
        "content": {
            "application/json": {
                "schema": ref("schemas", str(described.body)),
                "examples": {name: {"value": value} for name, value in examples.items()},
            }
        },
    }


def _headers(status: str) -> Json:
    named = _STANDING_HEADERS | _REFUSAL_HEADERS.get(status, {})
    return {name: ref("headers", component) for name, component in named.items()}


def _success(described: Described) -> Json:
    status = "204" if described.answer is None else "200"
    made: Json = {"description": described.answers, "headers": _headers(status)}
    if described.answer is not None:
        made["content"] = {
            "application/json": {"schema": ref("schemas", described.answer), "example": described.answer_example}
        }
    if described.links:
        made["links"] = {
            name: {"operationId": operation_id(target), "parameters": parameters}
            for name, (target, parameters) in described.links.items()
        }
    return {status: made}


def _refusals(codes: set[str], components: dict[str, Json]) -> Json:
    """Responses by status, each a component that names exactly the codes which the operation may answer with."""
    by_status: dict[str, list[str]] = {}
    for code in sorted(codes):
        by_status.setdefault(code[:3], []).append(code)
    made = {}
    for status, same in by_status.items():
        name = "-".join((status, *(code[4:] for code in same)))
        components.setdefault(name, _refusal(status, same))
        made[status] = ref("responses", name)
    return made


def _refusal(status: str, codes: list[str]) -> Json:
    narrowed = {"properties": {"error": {"properties": {"code": {"enum": codes}}}}}
    return {
        "description": "\n\n".join(f"{code}: {CODES[code]}" for code in codes),
        "headers": _headers(status),
        "content": {"application/json": {"schema": {"allOf": [ref("schemas", "Error"), narrowed]}}},
    }
