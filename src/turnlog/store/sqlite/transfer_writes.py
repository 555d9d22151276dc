"""What is written of a file that is copied into, each call in one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import apsw
import msgspec

from turnlog.errors import SettingError
from turnlog.store.columns import conversation_values
from turnlog.store.sqlite import entries
from turnlog.store.sqlite.connection import transaction
from turnlog.store.sqlite.conversations import NewNumbers
from turnlog.store.sqlite.keys import add_account, add_key
from turnlog.store.sqlite.transfer_reads import BEHIND_EVERY_TEXT, WEBHOOK
from turnlog.store.transfer import MessageEntry, after_changes, conversations_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from turnlog.store.protocol import KeyRecord
    from turnlog.store.transfer import AuthenticationRow, BlockedRow, DeadRow, Entry, IdempotencyRow, WebhookRow

_CHECKPOINT_PAGES = 16_384
"""32 MiB of WAL: then what was copied goes from there into the database."""

_NUMBERS = """
    SELECT c.id, c.number
    FROM json_each(?2) AS wanted CROSS JOIN conversation AS c ON c.account = ?1 AND c.id = wanted.value
"""
_ADD_MESSAGE = """
    INSERT INTO message (entry, conversation, id, role, sender, client_at, created_at, text)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_ADD_CHANGE = "INSERT INTO conversation_change (entry, conversation, created, changed_at, state) VALUES (?, ?, ?, ?, ?)"
_ADD_CONVERSATION = """
    INSERT INTO conversation (number, account, id, external_id, customer, customer_name, agent, agent_name, metadata,
        client_at, created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
_CHANGE_CONVERSATION = """
    UPDATE conversation SET customer = ?, customer_name = ?, agent = ?, agent_name = ?, metadata = ? WHERE number = ?
"""
_ADD_AUTHENTICATION = """
    INSERT INTO authentication (conversation, customer, parts, stream_id, created_at) VALUES (?, ?, ?, ?, ?)
"""
_DROP_KEYS = """
    DELETE FROM idempotency
    WHERE account = ? AND key > ? AND key <= ? AND key NOT IN (SELECT value FROM json_each(?))
"""
_PUT_KEY = """
    INSERT INTO idempotency (account, key, fingerprint, ids, created_at) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET fingerprint = excluded.fingerprint, ids = excluded.ids, created_at = excluded.created_at
    WHERE (fingerprint, ids, created_at) IS NOT (excluded.fingerprint, excluded.ids, excluded.created_at)
"""
_ADD_WEBHOOK = """
    INSERT INTO webhook (number, account, id, settings, position, retry_from_at, revision) VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_ADD_BLOCKED = """
    INSERT INTO webhook_blocked (webhook, conversation, position, attempts, first_failed_at, next_at, error)
    VALUES (?, ?, ?, ?, ?, ?, ?)
"""
_ADD_DEAD = """
    INSERT INTO webhook_dead
        (webhook, position, type, conversation, attempts, first_failed_at, dead_at, error, replayed)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
"""


class Additions:
    """What is written, each call in one transaction."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._accounts = entries.Accounts(connection)
        self._wal_pages = 0
        connection.set_wal_hook(self._committed)

    def _committed(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _checkpoint(self) -> None:
        """Fold the WAL into the database where it has grown; nobody reads beside, so that it starts over."""
        if self._wal_pages >= _CHECKPOINT_PAGES:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._wal_pages = 0

    def begin(self, source: str, at: int) -> None:
        """See transfer.Target."""
        self._connection.execute(
            "INSERT OR REPLACE INTO copying (one, source, started_at) VALUES (1, ?, ?)", (source, at)
        )

    def finish(self) -> None:
        """See transfer.Target."""
        self._connection.execute("DELETE FROM copying")

    def put_keys(self, accounts: Sequence[str], records: Sequence[KeyRecord]) -> None:
        """See transfer.Target."""
        with transaction(self._connection):
            for account in accounts:
                add_account(self._connection, account)
            self._connection.execute("DELETE FROM api_secret; DELETE FROM api_key")
            for record in records:
                add_key(self._connection, record)
            self._connection.execute("UPDATE keys_version SET version = version + 1")

    def add_entries(self, account: str, added: Sequence[Entry]) -> None:
        """See transfer.Target."""
        with transaction(self._connection):
            number = self._accounts.number(account)
            last = 0 if number == entries.NO_ACCOUNT else entries.last_position(self._connection, number)
            if number == entries.NO_ACCOUNT or last + 1 != added[0].position:
                raise SettingError(
                    f"account {account!r} has {last} entries and not {added[0].position - 1}: "
                    "somebody else records in the target"
                )
            numbers = self._numbers(number, conversations_of(added))
            self._change_conversations(number, added, numbers)
            messages, changes = [], []
            for e in added:
                entry, conversation = entries.entry(number, e.position), numbers[e.conversation]
                if isinstance(e, MessageEntry):
                    messages.append((entry, conversation, e.id, e.role, e.sender, e.client_at, e.created_at, e.text))
                else:
                    changes.append((entry, conversation, int(e.created), e.changed_at, e.state))
            self._connection.executemany(_ADD_CHANGE, changes)
            self._connection.executemany(_ADD_MESSAGE, messages)
        self._checkpoint()

    def _numbers(self, account: int, ids: Iterable[str]) -> dict[str, int]:
        return dict(self._connection.execute(_NUMBERS, (account, msgspec.json.encode(list(ids)).decode())))

    def _change_conversations(self, account: int, added: Sequence[Entry], numbers: dict[str, int]) -> None:
        """Store what the entries make of their conversations, and put the numbers of new ones into ``numbers``."""
        new_numbers = NewNumbers(self._connection)
        new, changed = [], []
        for conversation_id, (conversation, creation) in after_changes(added).items():
            columns = conversation_values(conversation)
            if creation is None:
                changed.append((*columns, numbers[conversation_id]))
                continue
            number = numbers[conversation_id] = new_numbers.next(creation.position)
            ids = (number, account, conversation_id, conversation.external_id)
            new.append((*ids, *columns, creation.client_at, creation.changed_at))
        self._connection.executemany(_ADD_CONVERSATION, new)
        self._connection.executemany(_CHANGE_CONVERSATION, changed)

    def add_authentications(self, rows: Sequence[AuthenticationRow]) -> None:
        """See transfer.Target."""
        with transaction(self._connection):
            numbers: dict[str, dict[str, int]] = {}
            for account in {row.account for row in rows}:
                ids = {row.conversation for row in rows if row.account == account}
                numbers[account] = self._numbers(self._accounts.number(account), ids)
            self._connection.executemany(
                _ADD_AUTHENTICATION,
                [(numbers[r.account][r.conversation], r.customer, r.parts, r.stream_id, r.created_at) for r in rows],
            )
        self._checkpoint()

    def put_idempotency(self, account: str, after: str, up_to: str | None, rows: Sequence[IdempotencyRow]) -> None:
        """See transfer.Target."""
        number = self._accounts.number(account)
        last = BEHIND_EVERY_TEXT if up_to is None else up_to
        kept = msgspec.json.encode([row.key for row in rows]).decode()
        with transaction(self._connection):
            self._connection.execute(_DROP_KEYS, (number, after, last, kept))
            self._connection.executemany(
                _PUT_KEY, [(number, row.key, row.fingerprint, row.ids, row.created_at) for row in rows]
            )
        self._checkpoint()

    def put_log_name(self, name: str) -> None:
        """See transfer.Target."""
        self._connection.execute("UPDATE log_name SET name = ?", (name,))

    def put_webhooks(self, rows: Sequence[WebhookRow]) -> None:
        """See transfer.Target."""
        with transaction(self._connection):
            self._connection.execute("DELETE FROM webhook_blocked; DELETE FROM webhook_dead; DELETE FROM webhook")
            for number, row in enumerate(rows, 1):
                account = self._accounts.number(row.account)
                rest = (row.id, row.settings, row.position, row.retry_from_at, row.revision)
                self._connection.execute(_ADD_WEBHOOK, (number, account, *rest))
            self._connection.execute("UPDATE webhooks_version SET version = version + 1")

    def add_blocked(self, webhook: WebhookRow, rows: Sequence[BlockedRow]) -> None:
        """See transfer.Target."""
        self._add_of_webhook(_ADD_BLOCKED, webhook, rows)

    def add_dead(self, webhook: WebhookRow, rows: Sequence[DeadRow]) -> None:
        """See transfer.Target."""
        self._add_of_webhook(_ADD_DEAD, webhook, rows)

    def _add_of_webhook(self, statement: str, webhook: WebhookRow, rows: Sequence[BlockedRow | DeadRow]) -> None:
        with transaction(self._connection):
            ((number,),) = self._connection.execute(WEBHOOK, (webhook.id,)).fetchall()
            self._connection.executemany(statement, [(number, *msgspec.structs.astuple(row)) for row in rows])
        self._checkpoint()
