"""A first session: a conversation, a message, the list."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.harness import ULID, V1, create_conversation, message

if TYPE_CHECKING:
    import httpx


def test_a_recorded_message_is_listed_word_for_word(client: httpx.Client, external_id: str) -> None:
    conversation_id = create_conversation(client, external_id)
    answer = client.post(f"{V1}/conversations/{conversation_id}/messages", json=message("Grüße \N{WAVING HAND SIGN}"))
    assert answer.status_code == 200
    message_id = answer.json()["id"]
    assert ULID.fullmatch(message_id)
    listed = client.get(f"{V1}/conversations/{conversation_id}/messages").json()["items"]
    assert [(m["messageId"], m["text"]) for m in listed] == [(message_id, "Grüße \N{WAVING HAND SIGN}")]
