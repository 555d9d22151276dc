"""What this server refuses although it fits the published schema (422-01): the limits of model.py, and U+0000.

Pointers name fields as they are on the wire, because the message goes to the caller.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from turnlog.errors import UnprocessableError
from turnlog.model import (
    MAX_ID_CHARS,
    MAX_METADATA_ENTRIES,
    MAX_METADATA_KEY_CHARS,
    MAX_METADATA_VALUE_CHARS,
    MAX_NAME_CHARS,
)

if TYPE_CHECKING:
    from turnlog.model import NewAuthentication, NewConversation, NewMessage, Participant

_CONVERSATION_ID = re.compile(r"[A-Z0-9]+", re.ASCII)


def check_text(text: str, pointer: str) -> None:
    """Raises UnprocessableError where ``text`` holds U+0000."""
    if "\0" in text:
        raise UnprocessableError(f"[Path '{pointer}'] U+0000 cannot be stored: leave it out")


def check_short_text(text: str, pointer: str, limit: int = MAX_ID_CHARS) -> None:
    """``check_text``, and at most ``limit`` characters."""
    if len(text) > limit:
        raise UnprocessableError(f"[Path '{pointer}'] {len(text)} characters: at most {limit} are accepted")
    check_text(text, pointer)


def check_message(message: NewMessage, pointer: str = "") -> None:
    """Raises UnprocessableError."""
    if "\0" in message.text:
        check_text(message.text, f"{pointer}/text")
    if "\0" in message.sender or len(message.sender) > MAX_ID_CHARS:
        check_short_text(message.sender, f"{pointer}/sender/externalId")


def check_conversation(conversation: NewConversation) -> None:
    """Raises UnprocessableError."""
    check_short_text(conversation.external_id, "/externalId")
    _check_participant(conversation.customer, "/customer")
    if conversation.agent is not None:
        _check_participant(conversation.agent, "/agent")
    if conversation.metadata is not None:
        _check_metadata(conversation.metadata)
    if conversation.id is not None:
        check_short_text(conversation.id, "/id")
        if not _CONVERSATION_ID.fullmatch(conversation.id):
            raise UnprocessableError("[Path '/id'] an id is made of the characters A-Z and 0-9, at least one")


def check_authentication(authentication: NewAuthentication) -> None:
    """Raises UnprocessableError."""
    check_short_text(authentication.customer_external_id, "/customerExternalId")
    if authentication.stream_id is not None:
        check_short_text(authentication.stream_id, "/streamId")


def _check_participant(participant: Participant, pointer: str) -> None:
    check_short_text(participant.external_id, f"{pointer}/externalId")
    if participant.name is not None:
        check_short_text(participant.name, f"{pointer}/name", MAX_NAME_CHARS)


def _check_metadata(metadata: dict[str, str]) -> None:
    if len(metadata) > MAX_METADATA_ENTRIES:
        raise UnprocessableError(
            f"[Path '/metadata'] {len(metadata)} entries: at most {MAX_METADATA_ENTRIES} are accepted"
        )
    for key, value in metadata.items():
        check_short_text(key, "/metadata", MAX_METADATA_KEY_CHARS)
        check_short_text(value, "/metadata", MAX_METADATA_VALUE_CHARS)
