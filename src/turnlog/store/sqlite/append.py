"""The one transaction that records: a batch of writes goes in whole, each with its own outcome.

Runs on the store's writer thread. Every call into SQLite lets go of the interpreter lock and has to win it back from a
busy event loop, so the number of calls per batch is kept constant: one look-up of idempotency keys, one insert of all
messages, one of all keys (docs/decisions/0002-where-the-commit-runs.md has the figures).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from turnlog.errors import AlreadyRecordedError, Error, IdempotencyKeyReusedError, NotFoundError
from turnlog.model import ROLES
from turnlog.store.protocol import (
    AppendMessages,
    ForgetIdempotency,
    PutConversation,
    RecordAuthentication,
    Write,
)
from turnlog.store.sqlite import entries
from turnlog.store.sqlite.conversations import put_conversation

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from turnlog.model import NewMessage

_ROLE_NUMBER = {role: number for number, role in enumerate(ROLES)}
_KNOWN_CONVERSATIONS = 100_000

_INSERT_MESSAGES = """
    INSERT INTO message (entry, conversation, id, role, sender, client_at, created_at, text)
    SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7 FROM jsonb_each(?)
"""
_SELECT_KEYS = """
    SELECT i.account, i.key, i.fingerprint, i.ids, i.created_at
    FROM jsonb_each(?) AS wanted CROSS JOIN idempotency AS i
        ON i.account = wanted.value->>0 AND i.key = wanted.value->>1
"""
_INSERT_KEYS = """
    INSERT OR REPLACE INTO idempotency (account, key, fingerprint, ids, created_at)
    SELECT value->>0, value->>1, unhex(value->>2), value->>3, value->>4 FROM jsonb_each(?)
"""
_FIND_REPEAT = """
    SELECT id FROM message
    WHERE conversation = ? AND client_at = ? AND role = ? AND sender = ? AND text = ? ORDER BY entry LIMIT 1
"""
_FORGET_KEYS = """
    DELETE FROM idempotency WHERE (account, key) IN (
        SELECT account, key FROM idempotency WHERE created_at < ? ORDER BY created_at LIMIT ?)
"""

_encode = msgspec.json.encode


def _json(rows: object) -> str:
    return _encode(rows).decode()


class _Key(msgspec.Struct, frozen=True):
    """An idempotency key as recorded, or about to be."""

    fingerprint: bytes
    ids: list[str]
    created_at: int


class _Batch:
    """What one transaction adds; becomes the appender's knowledge only when the commit has succeeded."""

    def __init__(self) -> None:
        self.heads: dict[int, int] = {}
        self.rows: list[tuple[int, int, str, int, str, int, int, str]] = []
        self.keys: dict[tuple[int, str], _Key] = {}
        self.new_keys: dict[tuple[int, str], _Key] = {}
        self.conversations: dict[tuple[int, str], int] = {}
        self.unflushed_repeats: dict[tuple[int, int, int, str, str], str] | None = None


class Appender:
    """Carries out batches of writes on the one connection that writes."""

    def __init__(self, connection: apsw.Connection, *, idempotency_ttl_us: int) -> None:
        self._connection = connection
        self._ttl_us = idempotency_ttl_us
        self._accounts = entries.Accounts(connection)
        self._heads: dict[int, int] = {}
        self._conversations: dict[tuple[int, str], int] = {}

    def append(self, writes: Sequence[Write]) -> list[object]:
        """Carry out ``writes`` in one transaction (protocol.Recorder.append); lets the driver's errors through."""
        batch = _Batch()
        if self._is_one_insert(writes):
            outcomes = [self._outcome(write, batch) for write in writes]
            self._flush(batch)
        else:
            outcomes = self._in_transaction(writes, batch)
        self._heads.update(batch.heads)
        self._remember(batch.conversations)
        return outcomes

    def _is_one_insert(self, writes: Sequence[Write]) -> bool:
        """Whether there is nothing to look up: then the insert of all messages is a transaction by itself."""
        for write in writes:
            if not isinstance(write, AppendMessages) or write.idempotency is not None or write.refuse_repeats:
                return False
            account = self._accounts.number(write.account)
            if account not in self._heads or (account, write.conversation) not in self._conversations:
                return False
        return True

    def _in_transaction(self, writes: Sequence[Write], batch: _Batch) -> list[object]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._load_keys(writes, batch)
            outcomes = [self._outcome(write, batch) for write in writes]
            self._flush(batch)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return outcomes

    def _remember(self, conversations: dict[tuple[int, str], int]) -> None:
        known = self._conversations
        known.update(conversations)
        while len(known) > _KNOWN_CONVERSATIONS:
            del known[next(iter(known))]

    def _outcome(self, write: Write, batch: _Batch) -> object:
        try:
            if isinstance(write, AppendMessages):
                return self._append_messages(write, batch)
            if isinstance(write, PutConversation):
                return self._put_conversation(write, batch)
            if isinstance(write, RecordAuthentication):
                self._record_authentication(write, batch)
                return None
            return self._forget_keys(write)
        except Error as refusal:
            return refusal

    # Look-ups.

    def _conversation(self, account: int, conversation_id: str, batch: _Batch) -> int:
        place = (account, conversation_id)
        number = self._conversations.get(place) or batch.conversations.get(place)
        if number is None:
            row = self._connection.execute(
                "SELECT number FROM conversation WHERE account = ? AND id = ?", place
            ).fetchone()
            if row is None:
                raise NotFoundError("no such conversation in this account")
            number = batch.conversations[place] = int(row[0])
        return number

    def _next_position(self, account: int, batch: _Batch) -> int:
        head = batch.heads.get(account)
        if head is None:
            head = self._heads.get(account)
            if head is None:
                head = entries.last_position(self._connection, account)
        batch.heads[account] = head + 1
        return head + 1

    # Messages.

    def _append_messages(self, write: AppendMessages, batch: _Batch) -> list[str]:
        account = self._accounts.number(write.account)
        conversation = self._conversation(account, write.conversation, batch)
        if write.idempotency is None:
            return self._record_messages(write, account, conversation, batch)
        place = (account, write.idempotency.key)
        known = batch.keys.get(place)
        if known is not None and known.created_at > write.created_at - self._ttl_us:
            if known.fingerprint != write.idempotency.fingerprint:
                raise IdempotencyKeyReusedError(
                    "the Idempotency-Key was used before with a different request: use a new key for a new request"
                )
            return known.ids
        ids = self._record_messages(write, account, conversation, batch)
        key = _Key(write.idempotency.fingerprint, ids, write.created_at)
        batch.keys[place] = batch.new_keys[place] = key
        return ids

    def _record_messages(self, write: AppendMessages, account: int, conversation: int, batch: _Batch) -> list[str]:
        earlier = self._repeats(write, conversation, batch) if write.refuse_repeats else {}
        ids = []
        for index, message in enumerate(write.messages):
            repeated = earlier.get(index)
            if repeated is None:
                repeated = write.ids[index]
                self._add_row(message, repeated, write.created_at, account, conversation, batch)
            ids.append(repeated)
        return ids

    def _add_row(
        self,
        message: NewMessage,
        new_id: str,
        created_at: int,
        account: int,
        conversation: int,
        batch: _Batch,
    ) -> None:
        role = _ROLE_NUMBER[message.role]
        entry = entries.entry(account, self._next_position(account, batch))
        row = (entry, conversation, new_id, role, message.sender, message.client_at, created_at, message.text)
        batch.rows.append(row)
        if batch.unflushed_repeats is not None:
            batch.unflushed_repeats.setdefault(_identity(row), new_id)

    def _repeats(self, write: AppendMessages, conversation: int, batch: _Batch) -> dict[int, str]:
        """Which messages of the write are recorded already, and under which id.

        Looked up inside the transaction that would record them, by the only connection that records: nothing can come
        between. Raises AlreadyRecordedError where there is nothing left to record.
        """
        if batch.unflushed_repeats is None:
            batch.unflushed_repeats = {}
            for row in batch.rows:
                batch.unflushed_repeats.setdefault(_identity(row), row[2])
        found: dict[int, str] = {}
        within: dict[tuple[int, int, int, str, str], str] = {}
        recorded = 0
        for index, message in enumerate(write.messages):
            identity = (
                conversation,
                message.client_at,
                _ROLE_NUMBER[message.role],
                message.sender,
                message.text,
            )
            earlier = batch.unflushed_repeats.get(identity) or self._find_repeat(identity)
            recorded += earlier is not None
            earlier = earlier or within.get(identity)
            if earlier is not None:
                found[index] = earlier
            else:
                within[identity] = write.ids[index]
        if recorded == len(write.messages):
            raise AlreadyRecordedError(f"already recorded, as {', '.join(dict.fromkeys(found.values()))}")
        return found

    def _find_repeat(self, identity: tuple[int, int, int, str, str]) -> str | None:
        row = self._connection.execute(_FIND_REPEAT, identity).fetchone()
        return None if row is None else str(row[0])

    def _load_keys(self, writes: Sequence[Write], batch: _Batch) -> None:
        wanted = [
            (self._accounts.number(write.account), write.idempotency.key)
            for write in writes
            if isinstance(write, AppendMessages) and write.idempotency is not None
        ]
        if not wanted:
            return
        for account, key, fingerprint, ids, created_at in self._connection.execute(_SELECT_KEYS, (_json(wanted),)):
            batch.keys[account, key] = _Key(fingerprint, ids.split(" "), created_at)

    def _flush(self, batch: _Batch) -> None:
        if batch.rows:
            self._connection.execute(_INSERT_MESSAGES, (_json(batch.rows),))
        if batch.new_keys:
            rows = [
                (account, key, known.fingerprint.hex(), " ".join(known.ids), known.created_at)
                for (account, key), known in batch.new_keys.items()
            ]
            self._connection.execute(_INSERT_KEYS, (_json(rows),))

    def _forget_keys(self, write: ForgetIdempotency) -> int:
        self._connection.execute(_FORGET_KEYS, (write.before, write.limit))
        return self._connection.changes()

    # The rest.

    def _put_conversation(self, write: PutConversation, batch: _Batch) -> str:
        account = self._accounts.number(write.account)
        if account == entries.NO_ACCOUNT:
            raise NotFoundError("no such account")

        def next_entry() -> int:
            return entries.entry(account, self._next_position(account, batch))

        conversation_id, number = put_conversation(self._connection, account, write, next_entry)
        batch.conversations[account, conversation_id] = number
        return conversation_id

    def _record_authentication(self, write: RecordAuthentication, batch: _Batch) -> None:
        account = self._accounts.number(write.account)
        conversation = self._conversation(account, write.conversation, batch)
        fact = write.authentication
        self._connection.execute(
            "INSERT INTO authentication (conversation, customer, parts, stream_id, created_at) VALUES (?, ?, ?, ?, ?)",
            (conversation, fact.customer_external_id, " ".join(fact.parts), fact.stream_id, write.created_at),
        )


def _identity(row: tuple[int, int, str, int, str, int, int, str]) -> tuple[int, int, int, str, str]:
    _, conversation, _, role, sender, client_at, _, text = row
    return (conversation, client_at, role, sender, text)
