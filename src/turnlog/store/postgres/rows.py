"""How a message comes out of a row."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnlog.model import ROLES, Message

if TYPE_CHECKING:
    import asyncpg

MESSAGE_COLUMNS = "id, position, text, role, sender, client_at, created_at"


def message_of(row: asyncpg.Record) -> Message:
    """A message from MESSAGE_COLUMNS."""
    message_id, position, text, role, sender, client_at, created_at = row
    return Message(message_id, position, text, ROLES[role], sender, client_at, created_at)
