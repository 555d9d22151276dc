"""Conversations inside the transaction of append.py; each change of one is an entry of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnlog.store.columns import CONVERSATION_COLUMNS, conversation_of, conversation_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from turnlog.model import Conversation
    from turnlog.store.plan import Plan

_FIND = (
    f"SELECT number, {CONVERSATION_COLUMNS} "  # noqa: S608
    "FROM (SELECT value AS wanted FROM json_each(?2)) CROSS JOIN conversation "
    "ON account = ?1 AND external_id = wanted"
)
_INSERT = """
    INSERT INTO conversation (number, account, id, external_id, customer, customer_name, agent, agent_name, metadata,
        client_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_UPDATE = """
    UPDATE conversation SET customer = ?, customer_name = ?, agent = ?, agent_name = ?, metadata = ? WHERE number = ?
"""
_LOG = "INSERT INTO conversation_change (entry, conversation, created, changed_at, state) VALUES (?, ?, ?, ?, ?)"


class NewNumbers:
    """Numbers for new conversations: those after the last, asked for when the first is needed."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._last: int | None = None

    def next(self, _position: int) -> int:
        """The next number; it is taken once the transaction has stored it."""
        if self._last is None:
            row = self._connection.execute("SELECT coalesce(max(number), 0) FROM conversation").fetchone()
            assert row is not None  # noqa: S101 - an aggregate without GROUP BY always has a row
            self._last = int(row[0])
        self._last += 1
        return self._last


def conversations_by_external_id(
    connection: apsw.Connection, account: int, external_ids: Sequence[str]
) -> dict[str, tuple[int, Conversation]]:
    """Those of ``external_ids`` that are stored: number and state."""
    rows = connection.execute(_FIND, (account, msgspec.json.encode(external_ids).decode()))
    found = ((row[0], conversation_of(row[1:])) for row in rows)
    return {conversation.external_id: (number, conversation) for number, conversation in found}


def store_conversations(connection: apsw.Connection, account: int, plan: Plan) -> None:
    """Store the conversations that the plan creates or changes, as they stand after it, and its entries of the log."""
    for number, row in plan.conversations.items():
        conversation = row.conversation
        if row.is_new:
            ids = (number, account, conversation.id, conversation.external_id)
            connection.execute(_INSERT, (*ids, *conversation_values(conversation), row.client_at, row.created_at))
        else:
            connection.execute(_UPDATE, (*conversation_values(conversation), number))
    for change in plan.changes:
        connection.execute(_LOG, change)
