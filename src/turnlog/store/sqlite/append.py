"""The one transaction that records: looks up what a batch asks about, lets it be planned, stores the plan.

Runs on the store's writer thread. Every call into SQLite lets go of the interpreter lock and has to win it back from a
busy event loop, so the number of calls per batch is kept constant: one look-up per kind of thing, one insert of all
messages, one of all keys (docs/decisions/0002-where-the-commit-runs.md has the figures).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from turnlog.store.plan import Known, Plan, UsedKey, Wanted, by_account, identities, no_such_account
from turnlog.store.protocol import AppendMessages, ForgetIdempotency
from turnlog.store.sqlite import entries
from turnlog.store.sqlite.conversations import NewNumbers, conversations_by_external_id, store_conversations

if TYPE_CHECKING:
    from collections.abc import Sequence

    import apsw

    from turnlog.store.plan import Identity, Planned
    from turnlog.store.protocol import Write

_KNOWN_CONVERSATIONS = 100_000

_INSERT_MESSAGES = """
    INSERT INTO message (entry, conversation, id, role, sender, client_at, created_at, text)
    SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, value->>7 FROM jsonb_each(?)
"""
_SELECT_NUMBERS = """
    SELECT c.id, c.number
    FROM json_each(?2) AS wanted CROSS JOIN conversation AS c ON c.account = ?1 AND c.id = wanted.value
"""
_SELECT_KEYS = """
    SELECT i.key, i.fingerprint, i.ids, i.created_at
    FROM json_each(?2) AS wanted CROSS JOIN idempotency AS i ON i.account = ?1 AND i.key = wanted.value
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
_INSERT_AUTHENTICATION = """
    INSERT INTO authentication (conversation, customer, parts, stream_id, created_at) VALUES (?, ?, ?, ?, ?)
"""

_encode = msgspec.json.encode


def _json(rows: object) -> str:
    return _encode(rows).decode()


class _Group(NamedTuple):
    """What a batch asks of one account, and where in the batch it stood."""

    account: int
    places: Sequence[int]
    writes: Sequence[Planned]
    wanted: Wanted


class Appender:
    """Carries out batches of writes on the one connection that writes.

    What it keeps in memory (last entries, numbers of conversations) it learns only from transactions that succeeded.
    """

    def __init__(self, connection: apsw.Connection, *, idempotency_ttl_us: int) -> None:
        self._connection = connection
        self._ttl_us = idempotency_ttl_us
        self._accounts = entries.Accounts(connection)
        self._heads: dict[int, int] = {}
        self._numbers: dict[int, dict[str, int]] = {}
        self._learned = 0

    def append(self, writes: Sequence[Write]) -> list[object]:
        """Carry out ``writes`` in one transaction (protocol.Recorder.append); lets the driver's errors through."""
        groups = [self._group(name, group) for name, group in by_account(writes).items()]
        outcomes: dict[int, object] = {}
        if self._is_one_insert(writes, groups):
            plans = self._carry_out(groups, outcomes)
        else:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                plans = self._carry_out(groups, outcomes)
                for place, write in enumerate(writes):
                    if isinstance(write, ForgetIdempotency):
                        outcomes[place] = self._forget_keys(write)
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise
        self._learn(plans)
        return [outcomes[place] for place in range(len(writes))]

    def _group(self, name: str, group: Sequence[tuple[int, Planned]]) -> _Group:
        account = self._accounts.number(name)
        writes = [write for _, write in group]
        wanted = Wanted(writes, self._numbers.get(account, {}))
        return _Group(account, [place for place, _ in group], writes, wanted)

    def _is_one_insert(self, writes: Sequence[Write], groups: Sequence[_Group]) -> bool:
        """Whether there is nothing to look up: then the insert of all messages is a transaction by itself."""
        return all(group.account in self._heads and group.wanted.nothing for group in groups) and all(
            isinstance(write, AppendMessages) for write in writes
        )

    def _carry_out(self, groups: Sequence[_Group], outcomes: dict[int, object]) -> dict[int, Plan]:
        plans = {}
        for group in groups:
            if group.account == entries.NO_ACCOUNT:
                outcomes.update(zip(group.places, map(no_such_account, group.writes), strict=True))
                continue
            plan = plans[group.account] = self._plan(group)
            outcomes.update(zip(group.places, map(plan.take, group.writes), strict=True))
            if plan.conversations:  # at once: the next group's new conversations are numbered after these
                store_conversations(self._connection, group.account, plan)
        self._flush(plans)
        return plans

    def _learn(self, plans: dict[int, Plan]) -> None:
        for account, plan in plans.items():
            self._heads[account] = plan.head
            numbers = self._numbers.setdefault(account, {})
            numbers.update(plan.known.found)
            numbers.update(plan.numbers)
            self._learned += len(plan.known.found) + len(plan.numbers)
        if self._learned > _KNOWN_CONVERSATIONS:
            self._numbers, self._learned = {}, 0

    # Looking up.

    def _plan(self, group: _Group) -> Plan:
        account, wanted = group.account, group.wanted
        head = self._heads.get(account)
        if head is None:
            head = entries.entry(account, entries.last_position(self._connection, account))
        known = Known(head, self._numbers.get(account, {}))
        if wanted.ids:
            found = self._connection.execute(_SELECT_NUMBERS, (account, _json(wanted.ids)))
            known.found = dict(found)
        if wanted.external_ids:
            known.conversations = conversations_by_external_id(self._connection, account, wanted.external_ids)
        if wanted.keys:
            rows = self._connection.execute(_SELECT_KEYS, (account, _json(wanted.keys)))
            known.keys = {key: UsedKey(print_, ids.split(" "), at) for key, print_, ids, at in rows}
        if wanted.repeats:
            known.recorded = self._recorded(wanted.repeats, known)
        new_numbers = NewNumbers(self._connection)
        return Plan(known, idempotency_ttl_us=self._ttl_us, new_number=new_numbers.next)

    def _recorded(self, writes: Sequence[AppendMessages], known: Known) -> dict[Identity, str]:
        """Looked up inside the transaction that would record them, by the only connection that records."""
        found = {}
        for write in writes:
            number = known.numbers.get(write.conversation) or known.found.get(write.conversation)
            for identity in () if number is None else identities(write, number):
                row = self._connection.execute(_FIND_REPEAT, identity).fetchone()
                if row is not None:
                    found[identity] = str(row[0])
        return found

    # Storing.

    def _flush(self, plans: dict[int, Plan]) -> None:
        execute = self._connection.execute
        messages = [row for plan in plans.values() for row in plan.messages]
        if messages:
            execute(_INSERT_MESSAGES, (_json(messages),))
        keys = [
            (account, key, used.fingerprint.hex(), " ".join(used.ids), used.created_at)
            for account, plan in plans.items()
            for key, used in plan.keys.items()
        ]
        if keys:
            execute(_INSERT_KEYS, (_json(keys),))
        for plan in plans.values():
            for number, fact, created_at in plan.authentications:
                parts = " ".join(fact.parts)
                row = (number, fact.customer_external_id, parts, fact.stream_id, created_at)
                execute(_INSERT_AUTHENTICATION, row)

    def _forget_keys(self, write: ForgetIdempotency) -> int:
        self._connection.execute(_FORGET_KEYS, (write.before, write.limit))
        return self._connection.changes()
