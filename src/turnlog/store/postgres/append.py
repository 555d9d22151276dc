"""The transactions that record. What is common to every store is decided in plan.py.

The account's row in ``log`` is the lock: whoever records updates or locks it first and holds it until the commit, so
that one transaction at a time records in an account, whatever node it comes from. Everything that is looked up behind
the lock stays true until the commit, and positions become visible in their order.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import asyncpg
import msgspec

from turnlog.model import Conversation
from turnlog.store.columns import CONVERSATION_COLUMNS, conversation_of, conversation_values
from turnlog.store.plan import Known, Plan, UsedKey, Wanted, by_account, identities, merged, no_such_account
from turnlog.store.postgres import sql
from turnlog.store.postgres.for_each import one_each
from turnlog.store.protocol import AppendMessages, ForgetIdempotency, PutConversation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection

    from turnlog.model import NewAuthentication
    from turnlog.store.plan import AuthenticationRow, Identity, Planned
    from turnlog.store.postgres.accounts import Accounts
    from turnlog.store.protocol import Write


_state = msgspec.json.Decoder(Conversation).decode


BY_EXTERNAL_ID = one_each("conversation", f"number, {CONVERSATION_COLUMNS}", "external_id")
_STILL_GOOD = 2**62
"""A time behind every other: such a key has not come to its end, whatever this node's clock says."""


class _Group(NamedTuple):
    """What a batch asks of one account, and where in the batch it stood."""

    account: int
    places: Sequence[int]
    writes: Sequence[Planned]


class Appender:
    """Carries out batches of writes, each in one transaction on the connection that it is given."""

    def __init__(self, accounts: Accounts, *, idempotency_ttl_us: int) -> None:
        self._accounts = accounts
        self._ttl_us = idempotency_ttl_us

    async def append(self, connection: Connection, writes: Sequence[Write], *, again: bool) -> list[object]:
        """Carry out ``writes`` (protocol.Recorder.append); lets the driver's errors through.

        ``again`` where the same batch was tried before and its outcome is unknown: what it recorded then is found by
        its ids and not recorded twice.
        """
        outcomes: dict[int, object] = {}
        groups = []
        for name, group in by_account(writes).items():
            places, planned = [place for place, _ in group], [write for _, write in group]
            account = await self._accounts.number(connection, name)
            if account is None:
                outcomes.update(zip(places, map(no_such_account, planned), strict=True))
            else:
                groups.append(_Group(account, places, planned))
        forgetting = [(place, write) for place, write in enumerate(writes) if isinstance(write, ForgetIdempotency)]
        done = not again and not forgetting and len(groups) == 1
        if not done or not await self._in_one_statement(connection, groups[0], outcomes):
            await self._in_transaction(connection, groups, outcomes, again=again)
            for place, write in forgetting:
                outcomes[place] = await _forget_keys(connection, write, self._ttl_us)
        return [outcomes[place] for place in range(len(writes))]

    def _plan(self, known: Known) -> Plan:
        return Plan(known, idempotency_ttl_us=self._ttl_us, new_number=lambda position: position)

    # The common case.

    async def _in_one_statement(self, connection: Connection, group: _Group, outcomes: dict[int, object]) -> bool:
        """Record messages where nothing but their conversations has to be looked up; whether that was so.

        Idempotency keys are taken for new: where one was used before, its row stands in the way, and nothing happens.
        """
        account, _, writes = group
        if not all(isinstance(write, AppendMessages) and not write.refuse_repeats for write in writes):
            return False
        numbers = self._accounts.conversations(account)
        known = Known(0, numbers)
        wanted = Wanted(writes, numbers)
        if wanted.ids:
            known.found = await self._accounts.look_up(connection, account, wanted.ids)
            self._accounts.learn(numbers, known.found)
        plan = self._plan(known)
        found = [plan.take(write) for write in writes]
        if plan.messages:
            _, conversations, ids, roles, senders, client_at, created_at, texts = zip(*plan.messages, strict=True)
            columns = (conversations, ids, roles, senders, client_at, created_at, texts)
            try:
                if plan.keys:
                    done = await connection.execute(
                        sql.RECORD_WITH_KEYS, account, plan.head, *columns, *_key_columns(plan)
                    )
                else:
                    done = await connection.execute(sql.RECORD, account, plan.head, *columns)
            except asyncpg.UniqueViolationError:
                return False
            if done != f"INSERT 0 {plan.head}":
                raise AssertionError(f"{plan.head} messages were to be recorded, and the database says {done}")
        outcomes.update(zip(group.places, found, strict=True))
        return True

    # Everything else.

    async def _in_transaction(
        self, connection: Connection, groups: Sequence[_Group], outcomes: dict[int, object], *, again: bool
    ) -> None:
        plans = []
        async with connection.transaction():
            for group in sorted(groups):  # in one order on every node: nobody waits in a circle
                head = await connection.fetchval(sql.LOCK, group.account)
                numbers = self._accounts.conversations(group.account)
                known = await self._look_up(connection, group, Known(head, numbers))
                done: dict[int, str] = {}
                if again:
                    known.mine = await _stored(connection, group)
                    done = await _put(connection, group, known)
                plan = self._plan(known)
                plans.append((numbers, plan))
                for place, write in zip(group.places, group.writes, strict=True):
                    outcomes[place] = done[place] if place in done else plan.take(write)
                if again and plan.authentications:
                    plan.authentications = await _not_stored(connection, group.account, plan.authentications)
                await _store(connection, group.account, plan)
        for numbers, plan in plans:
            self._accounts.learn(numbers, {**plan.known.found, **plan.numbers})

    async def _look_up(self, connection: Connection, group: _Group, known: Known) -> Known:
        account = group.account
        wanted = Wanted(group.writes, known.numbers)
        if wanted.ids:
            known.found = await self._accounts.look_up(connection, account, wanted.ids)
        if wanted.external_ids:
            known.conversations = await _conversations(connection, account, wanted.external_ids)
        if wanted.keys:
            rows = await connection.fetch(sql.SELECT_KEYS, account, wanted.keys, self._ttl_us)
            known.keys = {
                key: UsedKey(print_, ids.split(" "), _STILL_GOOD if lives else at)
                for key, print_, ids, at, lives in rows
            }
        if wanted.repeats:
            known.recorded = await _recorded(connection, account, wanted.repeats, known)
        return known


async def _conversations(
    connection: Connection, account: int, external_ids: Sequence[str]
) -> dict[str, tuple[int, Conversation]]:
    rows = await BY_EXTERNAL_ID.fetch(connection, [(account, external_id) for external_id in external_ids])
    return {row["external_id"]: (row["number"], conversation_of(row[2:])) for row in rows}


async def _recorded(
    connection: Connection, account: int, writes: Sequence[AppendMessages], known: Known
) -> dict[Identity, str]:
    wanted: list[Identity] = []
    for write in writes:
        number = known.numbers.get(write.conversation) or known.found.get(write.conversation)
        wanted += () if number is None else identities(write, number)
    if not wanted:
        return {}
    rows = await connection.fetch(sql.FIND_REPEATS, account, *zip(*wanted, strict=True))
    return {wanted[place - 1]: message_id for place, message_id in rows}


async def _stored(connection: Connection, group: _Group) -> frozenset[str]:
    """Which of the group's own messages are stored. Behind the lock: whoever tried it before has ended."""
    ids = [one for write in group.writes if isinstance(write, AppendMessages) for one in write.ids]
    rows = await connection.fetch(sql.FIND_IDS, group.account, ids) if ids else ()
    return frozenset(row[0] for row in rows)


async def _put(connection: Connection, group: _Group, known: Known) -> dict[int, str]:
    """Which of the group's conversations are put already: their ids, by the write's place.

    An entry of the log shows it that was made for the same conversation at the same time, and has all that the write
    gives. To do it again would undo what another node has changed since.
    """
    puts = []
    for place, write in zip(group.places, group.writes, strict=True):
        if isinstance(write, PutConversation):
            found = known.conversations.get(write.conversation.external_id)
            if found is not None:
                puts.append((place, write, *found))
    if not puts:
        return {}
    numbers, times = {number for *_, number, _ in puts}, {write.created_at for _, write, *_ in puts}
    rows = await connection.fetch(sql.FIND_CHANGES, group.account, list(numbers), list(times), known.head)
    states: dict[tuple[int, int], list[Conversation]] = {}
    for number, changed_at, state in rows:
        states.setdefault((number, changed_at), []).append(_state(state))
    return {
        place: conversation.id
        for place, write, number, conversation in puts
        if write.conversation.id in (None, conversation.id)
        and any(merged(then, write.conversation) == then for then in states.get((number, write.created_at), ()))
    }


async def _not_stored(
    connection: Connection, account: int, facts: Sequence[AuthenticationRow]
) -> list[AuthenticationRow]:
    """Those of the facts that are not in the store; one that is among them twice has to be there twice."""
    times = list({created_at for *_, created_at in facts})
    stored = Counter(map(tuple, await connection.fetch(sql.FIND_AUTHENTICATIONS, account, times)))
    missing = []
    for number, fact, created_at in facts:
        values = _fact_values(number, fact, created_at)
        if stored[values]:
            stored[values] -= 1
        else:
            missing.append((number, fact, created_at))
    return missing


def _fact_values(number: int, fact: NewAuthentication, created_at: int) -> tuple[int, str, str, str | None, int]:
    return (number, fact.customer_external_id, " ".join(fact.parts), fact.stream_id, created_at)


def _key_columns(plan: Plan) -> tuple[list[str], list[bytes], list[str], list[int]]:
    used = plan.keys.values()
    return (
        list(plan.keys),
        [key.fingerprint for key in used],
        [" ".join(key.ids) for key in used],
        [key.created_at for key in used],
    )


async def _store(connection: Connection, account: int, plan: Plan) -> None:
    """Store what the plan collected."""
    if plan.head != plan.known.head:
        await connection.execute(sql.MOVE_HEAD, account, plan.head)
    if plan.messages:
        await connection.execute(sql.INSERT_MESSAGES, account, *zip(*plan.messages, strict=True))
    if plan.keys:
        await connection.execute(sql.INSERT_KEYS, account, *_key_columns(plan))
    for number, row in plan.conversations.items():
        values = conversation_values(row.conversation)
        if row.is_new:
            ids = (row.conversation.id, row.conversation.external_id)
            await connection.execute(
                sql.INSERT_CONVERSATION, account, number, *ids, *values, row.client_at, row.created_at
            )
        else:
            await connection.execute(sql.UPDATE_CONVERSATION, account, number, *values)
    for change in plan.changes:
        await connection.execute(sql.INSERT_CHANGE, account, *change)
    for number, fact, created_at in plan.authentications:
        await connection.execute(sql.INSERT_AUTHENTICATION, account, *_fact_values(number, fact, created_at))


async def _forget_keys(connection: Connection, write: ForgetIdempotency, ttl_us: int) -> int:
    found = await connection.fetch(sql.FIND_OLD_KEYS, write.before, write.limit, ttl_us)
    old: dict[int, list[str]] = {}
    for account, key in found:
        old.setdefault(account, []).append(key)
    count = 0
    for account in sorted(old):
        done = await connection.execute(sql.FORGET_KEYS, account, sorted(old[account]), write.before, ttl_us)
        count += int(done.rpartition(" ")[2])
    return count
