"""What is said of the operations on changes and webhooks beside their rows in the table, with their examples."""

from __future__ import annotations

from turnlog.http.descriptions import Described
from turnlog.http.feed_schemas import EVENT, EVENT_ID, WEBHOOK_ID
from turnlog.webhooks import MAX_WEBHOOKS, TEST_TYPE

_AT = "2025-11-17T09:30:21.004Z"
_NEW = {"url": "https://crm.example/turnlog", "types": ["message.created"], "description": "CRM"}
_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"  # noqa: S105 - an example
_WEBHOOK = {
    "id": WEBHOOK_ID,
    **_NEW,
    "enabled": True,
    "createdTimestamp": _AT,
    "updatedTimestamp": _AT,
    "cursor": EVENT_ID,
    "pendingConversations": 0,
    "secrets": [{"createdTimestamp": _AT}],
}
_WITH_SECRET = {**_WEBHOOK, "secret": _SECRET}
_SAME = {"webhookId": "$request.path.webhookId"}
_NEW_ID = {"webhookId": "$response.body#/id"}
_ONCE = "The `secret` that requests are signed with is in this answer and in no later one."

FEED = {
    "list_changes": Described(
        "Changes",
        "Read or follow what was recorded",
        "The account's conversations and messages as events, in the one order in which they were recorded. Each event "
        "has the object as it was then, and an `id`; both it and `nextCursor` may be sent as `after`, at any later "
        "time: every event behind that place comes, once and in order. Events are kept for as long as the messages "
        "are.\n\n"
        "A page comes at once, with what there is; with `wait`, an empty one waits for something to come. `nextCursor` "
        "is always there: it goes forward even where the filters let nothing through.\n\n"
        "With `Accept: text/event-stream`, everything comes as Server-Sent Events, then what is recorded from then on, "
        "as it is recorded. A stream ends when the server stops or the key does; connect again with `Last-Event-ID`, "
        "as browsers do by themselves, and nothing is missed.",
        "A page of events, or a stream of them.",
        answer="Changes",
        answer_example={"items": [EVENT], "nextCursor": EVENT_ID},
        stream="Server-Sent Events: `id` is the event's id, `event` its type, `data` an `Event` in one line of JSON. "
        "An event without data moves the id forward. A comment comes where there is silence.",
        parameters=(
            "changesAfter",
            "changesLimit",
            "changesWait",
            "changesTypes",
            "changesConversationId",
            "changesExternalId",
            "lastEventId",
        ),
        codes=("410-01", "422-01"),
        links={
            "nextPage": ("list_changes", {"after": "$response.body#/nextCursor"}),
            "conversation": ("read_conversation", {"conversationId": "$response.body#/items/0/conversationId"}),
        },
    ),
    "create_webhook": Described(
        "Webhooks",
        "Create a webhook",
        "Every event of the account from a place on, or those of some types, is sent to `url` by POST: one at a time "
        "and in order within a conversation, again until it is answered with a 2xx, so at least once. Tell repeats by "
        "`webhook-id`, the event's id. Requests are signed as Standard Webhooks has it "
        "(`webhook-id`, `webhook-timestamp`, `webhook-signature`).\n\n"
        f"{_ONCE} An account has at most {MAX_WEBHOOKS} webhooks.",
        "The webhook, with its secret.",
        answer="WebhookWithSecret",
        answer_example=_WITH_SECRET,
        body="WebhookInput",
        examples={
            "someTypes": _NEW,
            "everything": {"url": "https://warehouse.example/in", "after": "beginning"},
            "ownSecret": {"url": "https://crm.example/turnlog", "secret": _SECRET},
        },
        codes=("410-01", "503-02"),
        links={
            "read": ("read_webhook", _NEW_ID),
            "change": ("change_webhook", _NEW_ID),
            "rotate": ("rotate_webhook", _NEW_ID),
            "test": ("test_webhook", _NEW_ID),
            "failed": ("list_failed_events", _NEW_ID),
            "replay": ("replay_webhook", _NEW_ID),
            "delete": ("delete_webhook", _NEW_ID),
        },
    ),
    "list_webhooks": Described(
        "Webhooks",
        "List the webhooks",
        "All of the account's, in the order in which they were created.",
        "The webhooks.",
        answer="Webhooks",
        answer_example={"items": [_WEBHOOK]},
        links={"read": ("read_webhook", {"webhookId": "$response.body#/items/0/id"})},
    ),
    "read_webhook": Described(
        "Webhooks",
        "Read a webhook",
        "How it is set, and how far it has got: everything up to `cursor` is delivered or given up, but for events of "
        "`pendingConversations` conversations, which wait for their next attempt.",
        "The webhook.",
        answer="Webhook",
        answer_example=_WEBHOOK,
    ),
    "change_webhook": Described(
        "Webhooks",
        "Change a webhook",
        "A field that is given replaces what there was, a field left out stays. A webhook that is not enabled sends "
        "nothing and keeps its place; enabled again, it goes on there, and whatever waits is tried afresh.",
        "The webhook as it is now.",
        answer="Webhook",
        answer_example=_WEBHOOK,
        body="WebhookChange",
        examples={"enable": {"enabled": True}, "move": {"url": "https://crm.example/turnlog/2", "types": None}},
        codes=("503-02",),
    ),
    "rotate_webhook": Described(
        "Webhooks",
        "Rotate a webhook's secret",
        "The webhook gets a further secret, yours or a fresh one. Until the one before ends, requests carry the "
        f"signatures of both; one older still ends now. {_ONCE}",
        "The webhook, with its new secret.",
        answer="WebhookWithSecret",
        answer_example={
            **_WITH_SECRET,
            "secrets": [
                {"createdTimestamp": "2025-08-17T09:30:21.004Z", "expiresTimestamp": "2025-11-18T09:30:21.004Z"},
                {"createdTimestamp": _AT},
            ],
        },
        body="Rotation",
        examples={"fresh": {"oldEndsInSeconds": 3600}, "ownAndAtOnce": {"secret": _SECRET, "oldEndsInSeconds": 0}},
        codes=("503-02",),
    ),
    "test_webhook": Described(
        "Webhooks",
        "Send a test event",
        f"Sends one event of the type `{TEST_TYPE}` now, which has `id`, `type` and `time` and nothing else, and tells "
        "what came back. It is sent once and counts for nothing else; a webhook that is not enabled can be tested, "
        "too. 200 says that it was tried: look at `status`.",
        "What came back.",
        answer="Attempt",
        answer_example={"status": 204, "error": None, "seconds": 0.042, "body": ""},
    ),
    "list_failed_events": Described(
        "Webhooks",
        "List what was given up",
        "Events that were tried for three days in vain, in the order in which they were recorded. They stay here until "
        "they are replayed and delivered.",
        "The events.",
        answer="FailedEvents",
        answer_example={
            "items": [
                {
                    "id": EVENT_ID,
                    "type": "message.created",
                    "conversationId": EVENT["conversationId"],
                    "attempts": 18,
                    "firstFailedTimestamp": _AT,
                    "failedTimestamp": "2025-11-20T09:31:02.118Z",
                    "error": "answered 500",
                    "replayed": False,
                }
            ],
            "nextCursor": EVENT_ID,
        },
        parameters=("failedLimit", "failedAfter"),
        links={
            "nextPage": ("list_failed_events", {**_SAME, "after": "$response.body#/nextCursor"}),
            "replay": ("replay_webhook", _SAME),
        },
    ),
    "replay_webhook": Described(
        "Webhooks",
        "Send events again",
        "Either what was given up, all of it or some, beside everything else; or everything from a place on, behind a "
        "cursor or from a time on, delivered before or not: the webhook's own cursor is put there, and what it had "
        "given up behind that place is forgotten, because it comes again. A cursor ahead of the webhook's own skips "
        "what is between.\n\n"
        "`since` finds the first event that was recorded at that time or later, as exactly as the clocks of the "
        "servers agree.",
        "How many events were marked to be sent again, or the webhook's cursor now.",
        answer="Replayed",
        answer_example={"replayed": 3},
        body="Replay",
        examples={
            "failed": {"failed": True},
            "someFailed": {"events": [EVENT_ID]},
            "everything": {"after": "beginning"},
            "sinceATime": {"since": "2025-11-17T00:00:00Z"},
        },
        codes=("410-01", "503-02"),
    ),
    "delete_webhook": Described(
        "Webhooks",
        "Delete a webhook",
        "It is forgotten, with what it had given up. A request that is under way may still arrive.",
        "It is gone.",
        codes=("503-02",),
    ),
}
"""By the names of the operations."""
