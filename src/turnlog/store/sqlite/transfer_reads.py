"""What is read of a file that is copied: pages of rows, each in a short transaction beside a running server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from turnlog.store.sqlite import entries
from turnlog.store.sqlite.connection import transaction
from turnlog.store.sqlite.keys import all_keys
from turnlog.store.transfer import (
    PAGE_CHARS,
    PAGE_ROWS,
    AuthenticationRow,
    BlockedRow,
    ChangeEntry,
    ConversationRow,
    DeadRow,
    IdempotencyRow,
    MessageEntry,
    WebhookRow,
)

if TYPE_CHECKING:
    import apsw

    from turnlog.store.protocol import KeyRecord
    from turnlog.store.transfer import Entry

# Each goes along one key from where the page before it ended, so that a page costs the same at any depth.
ENTRIES = """
    SELECT m.entry, c.id, m.id, m.role, m.sender, m.client_at, m.created_at, m.text
    FROM message AS m CROSS JOIN conversation AS c ON c.number = m.conversation
    WHERE m.entry > ?1 AND m.entry <= ?2
    UNION ALL
    SELECT x.entry, c.id, NULL, x.created, NULL, x.changed_at, c.client_at, x.state
    FROM conversation_change AS x CROSS JOIN conversation AS c ON c.number = x.conversation
    WHERE x.entry > ?1 AND x.entry <= ?2
    ORDER BY 1 LIMIT ?3
"""
CONVERSATIONS = """
    SELECT x.entry, c.id, c.external_id, c.customer, c.customer_name, c.agent, c.agent_name, c.metadata, c.client_at,
        c.created_at
    FROM conversation_change AS x CROSS JOIN conversation AS c ON c.number = x.conversation
    WHERE x.entry > ? AND x.entry <= ? AND x.created ORDER BY x.entry LIMIT ?
"""
AUTHENTICATIONS = """
    SELECT a.number, o.name, c.id, a.customer, a.parts, a.stream_id, a.created_at
    FROM authentication AS a CROSS JOIN conversation AS c ON c.number = a.conversation
        CROSS JOIN account AS o ON o.number = c.account
    WHERE a.number > ? ORDER BY a.number LIMIT ?
"""
IDEMPOTENCY = """
    SELECT key, fingerprint, ids, created_at FROM idempotency
    WHERE account = ? AND key > ? AND key <= ? ORDER BY key LIMIT ?
"""
WEBHOOKS = """
    SELECT a.name, w.id, w.settings, w.position, w.retry_from_at, w.revision
    FROM webhook AS w JOIN account AS a ON a.number = w.account ORDER BY w.account, w.number
"""
WEBHOOK = "SELECT number FROM webhook WHERE id = ?"
BLOCKED = """
    SELECT conversation, position, attempts, first_failed_at, next_at, error FROM webhook_blocked
    WHERE webhook = ? AND conversation > ? ORDER BY conversation LIMIT ?
"""
DEAD = """
    SELECT position, type, conversation, attempts, first_failed_at, dead_at, error, replayed FROM webhook_dead
    WHERE webhook = ? AND position > ? ORDER BY position LIMIT ?
"""
BEHIND_EVERY_TEXT = b""
"""SQLite compares a text with a blob by kind alone: every blob is greater."""


class Pages:
    """What is read, each call in one short transaction: a long one would keep the server's WAL from starting over."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._accounts = entries.Accounts(connection)

    def accounts(self) -> list[str]:
        """See transfer.Source."""
        return [name for (name,) in self._connection.execute("SELECT name FROM account ORDER BY number")]

    def keys(self) -> list[KeyRecord]:
        """See transfer.Source."""
        with transaction(self._connection, "DEFERRED"):
            return all_keys(self._connection)

    def last_position(self, account: str) -> int:
        """See transfer.Source."""
        number = self._accounts.number(account)
        return 0 if number == entries.NO_ACCOUNT else entries.last_position(self._connection, number)

    def entries(self, account: str, after: int, up_to: int) -> list[Entry]:
        """See transfer.Source."""
        number = self._accounts.number(account)
        span = (entries.entry(number, after), entries.entry(number, up_to), PAGE_ROWS)
        page: list[Entry] = []
        chars = 0
        for entry, conversation, message_id, role, sender, at, other_at, text in self._connection.execute(
            ENTRIES, span
        ):
            position = entries.position(entry)
            if message_id is None:
                page.append(ChangeEntry(position, conversation, bool(role), at, text, other_at))
            else:
                page.append(MessageEntry(position, conversation, message_id, role, sender, at, other_at, text))
            chars += len(text)
            if chars > PAGE_CHARS:
                break
        return page

    def conversations(self, account: str, after: int) -> tuple[int, list[ConversationRow]]:
        """See transfer.Source."""
        number = self._accounts.number(account)
        page: list[ConversationRow] = []
        chars = 0
        with transaction(self._connection, "DEFERRED"):
            last = self.last_position(account)
            span = (entries.entry(number, after), entries.entry(number, last), PAGE_ROWS)
            for entry, *rest in self._connection.execute(CONVERSATIONS, span):
                row = ConversationRow(entries.position(entry), *rest)
                page.append(row)
                chars += len(row.metadata or "")
                if chars > PAGE_CHARS:
                    break
        return last, page

    def authentications(self, after: int) -> tuple[int, list[AuthenticationRow]]:
        """One page behind the row ``after``, and the row that it ends with."""
        found: list[tuple[Any, ...]] = self._connection.execute(AUTHENTICATIONS, (after, PAGE_ROWS)).fetchall()
        return (found[-1][0] if found else after), [AuthenticationRow(*row[1:]) for row in found]

    def idempotency(self, account: str, after: str, up_to: str | None) -> list[IdempotencyRow]:
        """See transfer.Source."""
        page: list[IdempotencyRow] = []
        chars = 0
        last = BEHIND_EVERY_TEXT if up_to is None else up_to
        span = (self._accounts.number(account), after, last, PAGE_ROWS)
        for row in self._connection.execute(IDEMPOTENCY, span):
            page.append(IdempotencyRow(*row))
            chars += len(row[2])
            if chars > PAGE_CHARS:
                break
        return page

    def webhooks(self) -> list[WebhookRow]:
        """See transfer.Source."""
        return [WebhookRow(*row) for row in self._connection.execute(WEBHOOKS)]

    def blocked(self, webhook: WebhookRow, after: str) -> list[BlockedRow]:
        """See transfer.Source."""
        span = (self.webhook(webhook), after, PAGE_ROWS)
        return [BlockedRow(*row) for row in self._connection.execute(BLOCKED, span)]

    def dead(self, webhook: WebhookRow, after: int) -> list[DeadRow]:
        """See transfer.Source."""
        span = (self.webhook(webhook), after, PAGE_ROWS)
        return [DeadRow(*(*told, bool(replayed))) for *told, replayed in self._connection.execute(DEAD, span)]

    def webhook(self, webhook: WebhookRow) -> int:
        """Its number; where it was deleted meanwhile, one that nothing belongs to."""
        row = self._connection.execute(WEBHOOK, (webhook.id,)).fetchone()
        return -1 if row is None else int(row[0])
