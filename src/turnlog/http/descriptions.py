"""What is said of the contract's operations beside their rows in the table, with examples that work as they stand."""

from __future__ import annotations

from typing import Any

import msgspec

from turnlog.http.schemas import CONVERSATION_ID, CURSOR, MESSAGE_ID
from turnlog.model import MAX_BATCH_MESSAGES


class Described(msgspec.Struct, frozen=True):
    """What is said of an operation beside its row in the table; ``body`` and ``answer`` are names of schemas.

    ``stream``: what is said of the answer as Server-Sent Events, where there is that too.
    """

    tag: str
    summary: str
    text: str
    answers: str
    answer: str | None = None
    answer_example: Any = None
    stream: str | None = None
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

CONTRACT = {
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
"""By the names of the operations."""
