"""What is read: every statement here is an index look-up, whatever the size of the file (a test shows the plans)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from turnlog.instants import EARLIEST
from turnlog.store.columns import CONVERSATION_COLUMNS, conversation_of
from turnlog.store.sqlite import entries
from turnlog.store.sqlite.rows import MESSAGE_COLUMNS, message_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import apsw

    from turnlog.ids import Place
    from turnlog.model import Conversation, Message

CONVERSATION_BY_ID = f"SELECT {CONVERSATION_COLUMNS} FROM conversation WHERE account = ? AND id = ?"  # noqa: S608
CONVERSATION_BY_EXTERNAL_ID = f"SELECT {CONVERSATION_COLUMNS} FROM conversation WHERE account = ? AND external_id = ?"  # noqa: S608
CONVERSATION_NUMBER = "SELECT number FROM conversation WHERE account = ? AND id = ?"
MESSAGE_BY_ID = (
    f"SELECT {MESSAGE_COLUMNS} FROM message AS m CROSS JOIN conversation AS c ON c.number = m.conversation "  # noqa: S608
    "WHERE m.id = ? AND c.account = ? AND c.id = ?"
)
# Two statements for one order: SQLite takes a comparison of (client_at, entry) with a pair to the index with its first
# half only, so in a conversation with one timestamp for all, a page would begin by walking over all before it.
MESSAGES_OF_THAT_INSTANT = (
    f"SELECT {MESSAGE_COLUMNS} FROM message AS m "  # noqa: S608
    "WHERE m.conversation = ? AND m.client_at = ? AND m.entry > ? AND m.entry <= ? ORDER BY m.entry LIMIT ?"
)
MESSAGES_LATER = (
    f"SELECT {MESSAGE_COLUMNS} FROM message AS m "  # noqa: S608
    "WHERE m.conversation = ? AND m.client_at > ? AND m.entry <= ? ORDER BY m.client_at, m.entry LIMIT ?"
)


class Reads:
    """The reading side of one file, on a connection of its own."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._accounts = entries.Accounts(connection)

    def conversation(self, account: str, conversation_id: str) -> Conversation | None:
        """See protocol.Reader."""
        row = self._connection.execute(CONVERSATION_BY_ID, (self._accounts.number(account), conversation_id)).fetchone()
        return None if row is None else conversation_of(row)

    def conversation_by_external_id(self, account: str, external_id: str) -> Conversation | None:
        """See protocol.Reader."""
        row = self._connection.execute(
            CONVERSATION_BY_EXTERNAL_ID, (self._accounts.number(account), external_id)
        ).fetchone()
        return None if row is None else conversation_of(row)

    def message(self, account: str, conversation_id: str, message_id: str) -> Message | None:
        """See protocol.Reader."""
        row = self._connection.execute(
            MESSAGE_BY_ID, (message_id, self._accounts.number(account), conversation_id)
        ).fetchone()
        return None if row is None else message_of(row)

    def messages(
        self,
        account: str,
        conversation_id: str,
        *,
        after: Place | None,
        limit: int,
        up_to: int | None,
        max_chars: int | None,
    ) -> list[Message] | None:
        """See protocol.Reader."""
        number = self._accounts.number(account)
        row = self._connection.execute(CONVERSATION_NUMBER, (number, conversation_id)).fetchone()
        if row is None:
            return None
        newest = entries.entry(number, entries.MAX_POSITION if up_to is None else up_to)
        found = []
        left = sys.maxsize if max_chars is None else max_chars
        for message in self._rows(row[0], number, after, newest, limit):
            found.append(message_of(message))
            left -= len(message[-1])
            if left < 0:
                break
        return found

    def _rows(
        self, conversation: int, account: int, after: Place | None, newest: int, limit: int
    ) -> Iterable[tuple[Any, ...]]:
        execute = self._connection.execute
        if after is None:
            return execute(MESSAGES_LATER, (conversation, EARLIEST - 1, newest, limit))
        return self._rows_after(conversation, after, entries.entry(account, after.position), newest, limit)

    def _rows_after(
        self, conversation: int, after: Place, last: int, newest: int, limit: int
    ) -> Iterator[tuple[Any, ...]]:
        execute = self._connection.execute
        for row in execute(MESSAGES_OF_THAT_INSTANT, (conversation, after.client_at, last, newest, limit)):
            limit -= 1
            yield row
        yield from execute(MESSAGES_LATER, (conversation, after.client_at, newest, limit))
