"""How a message comes out of a row."""

from __future__ import annotations

from typing import Any

from turnlog.model import ROLES, Message
from turnlog.store.sqlite import entries

MESSAGE_COLUMNS = "m.entry, m.id, m.role, m.sender, m.client_at, m.created_at, m.text"


def message_of(row: tuple[Any, ...]) -> Message:
    """A message from MESSAGE_COLUMNS."""
    entry, message_id, role, sender, client_at, created_at, text = row
    return Message(message_id, entries.position(entry), text, ROLES[role], sender, client_at, created_at)
