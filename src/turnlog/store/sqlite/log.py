"""The log read in its order from any position on: along the keys of its two tables, which SQLite merges as it goes."""

from __future__ import annotations

from heapq import merge
from itertools import islice
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from turnlog.store.log import LISTED_MESSAGES, SCAN_ENTRIES, Kinds, kinds, part_of
from turnlog.store.protocol import LogPart
from turnlog.store.sqlite import entries

if TYPE_CHECKING:
    from collections.abc import Iterable

    import apsw

    from turnlog.model import LogFilter

_MESSAGE = "m.entry, c.id, c.external_id, m.id, m.role, m.sender, m.client_at, m.created_at, m.text"
_CHANGE = "x.entry, c.id, c.external_id, NULL, x.created, NULL, NULL, x.changed_at, x.state"
_OF_MESSAGE = "CROSS JOIN conversation AS c ON c.number = m.conversation"
_OF_CHANGE = "CROSS JOIN conversation AS c ON c.number = x.conversation"
_MESSAGES = f"SELECT {_MESSAGE} FROM message AS m {_OF_MESSAGE} WHERE m.entry > ?1 AND m.entry <= ?2"  # noqa: S608
_CHANGES = f"SELECT {_CHANGE} FROM conversation_change AS x {_OF_CHANGE} WHERE x.entry > ?1 AND x.entry <= ?2"  # noqa: S608
# Along the log, where a listing's index would look better to SQLite: what it finds would have to be sorted.
_MESSAGES_OF = (
    f"SELECT {_MESSAGE} FROM message AS m NOT INDEXED {_OF_MESSAGE} "  # noqa: S608
    "WHERE m.entry > ?1 AND m.entry <= ?2 AND m.conversation = ?4"
)
# A row id stands behind every index entry, so that a conversation's changes are in the log's order there.
_CHANGES_OF = (
    f"SELECT {_CHANGE} FROM conversation_change AS x INDEXED BY conversation_change_conversation {_OF_CHANGE} "  # noqa: S608
    "WHERE x.conversation = ?4 AND x.entry > ?1 AND x.entry <= ?2"
)
_ENTRIES_OF = "SELECT entry FROM message WHERE conversation = ? LIMIT ?"
_LISTED = (
    f"SELECT {_MESSAGE} FROM json_each(?) AS wanted CROSS JOIN message AS m ON m.entry = wanted.value {_OF_MESSAGE}"  # noqa: S608
)
_NUMBER_BY_ID = "SELECT number, external_id FROM conversation WHERE account = ? AND id = ?"
_NUMBER_BY_EXTERNAL_ID = "SELECT number, id FROM conversation WHERE account = ? AND external_id = ?"
_NAME = "SELECT name FROM log_name WHERE one = 1"


def _statement(wanted: Kinds, messages: str, changes: str) -> str:
    parts = [sql for sql, is_wanted in ((messages, wanted.messages), (changes, wanted.changes)) if is_wanted]
    return f"{' UNION ALL '.join(parts)} ORDER BY 1 LIMIT ?3"


_SOME = [Kinds(messages=True, changes=True), Kinds(messages=True, changes=False), Kinds(messages=False, changes=True)]
_OF_ALL = {one: _statement(one, _MESSAGES, _CHANGES) for one in _SOME}
_OF_ONE = {one: _statement(one, _MESSAGES_OF, _CHANGES_OF) for one in _SOME}
_CHANGES_OF_ONE = _OF_ONE[Kinds(messages=False, changes=True)]


class _Span(NamedTuple):
    """Entries behind ``after``, up to ``up_to``, at most ``limit``: what every statement begins with."""

    after: int
    up_to: int
    limit: int


class Log:
    """The logs in one file, on a connection of somebody's own."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._accounts = entries.Accounts(connection)

    def last_position(self, account: str) -> int:
        """See protocol.LogReader."""
        number = self._accounts.number(account)
        return 0 if number < 0 else entries.last_position(self._connection, number)

    def part(self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int) -> LogPart:
        """See protocol.LogReader.log."""
        number = self._accounts.number(account)
        tables = kinds(wanted.types)
        if number < 0 or up_to <= after or not any(tables):
            return LogPart([], max(after, up_to))
        before = entries.entry(number, 0)
        span, end = _Span(before + after, before + up_to, limit), up_to
        rows: Iterable[tuple[Any, ...]]
        if wanted.conversation_id is None and wanted.external_id is None:
            rows = self._connection.execute(_OF_ALL[tables], span)
        else:
            conversation = self._conversation(number, wanted)
            if conversation is None:
                return LogPart([], up_to)
            listed = None
            if tables.messages and up_to - after > SCAN_ENTRIES:
                listed = self._listed(conversation, span)
                if listed is None:
                    end = after + SCAN_ENTRIES
            if listed is None:
                span = _Span(span.after, before + end, limit)
                rows = self._connection.execute(_OF_ONE[tables], (*span, conversation))
            else:
                rows = self._of_listed(listed, tables, span, conversation)
        return part_of(rows, wanted.types, before=before, limit=limit, max_chars=max_chars, end=end)

    def _conversation(self, account: int, wanted: LogFilter) -> int | None:
        """The number of the one conversation that is wanted, where there is such a one."""
        if wanted.conversation_id is None:
            row = self._connection.execute(_NUMBER_BY_EXTERNAL_ID, (account, wanted.external_id)).fetchone()
        else:
            row = self._connection.execute(_NUMBER_BY_ID, (account, wanted.conversation_id)).fetchone()
            if row is not None and wanted.external_id not in (None, row[1]):
                return None
        return None if row is None else int(row[0])

    def _listed(self, conversation: int, span: _Span) -> list[int] | None:
        """The first entries of the conversation's messages within ``span``; ``None`` where it has too many."""
        found = [entry for (entry,) in self._connection.execute(_ENTRIES_OF, (conversation, LISTED_MESSAGES + 1))]
        if len(found) > LISTED_MESSAGES:
            return None
        return sorted(entry for entry in found if span.after < entry <= span.up_to)[: span.limit]

    def _of_listed(self, listed: list[int], tables: Kinds, span: _Span, conversation: int) -> Iterable[tuple[Any, ...]]:
        messages = self._connection.execute(_LISTED, (msgspec.json.encode(listed).decode(),))
        if not tables.changes:
            return messages
        changes = self._connection.execute(_CHANGES_OF_ONE, (*span, conversation))
        return islice(merge(messages, changes, key=itemgetter(0)), span.limit)

    def start(self, account: str) -> int:
        """See protocol.LogReader.log_start."""
        number = self._accounts.number(account)
        return 0 if number < 0 else entries.start(self._connection, number)

    def name(self) -> str:
        """See protocol.LogReader.log_name."""
        row = self._connection.execute(_NAME).fetchone()
        assert row is not None  # noqa: S101 - the migration that made the table put it there
        return str(row[0])
