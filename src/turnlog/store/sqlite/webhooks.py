"""Webhooks in one file: short transactions beside the batches, and reads that wait for nobody.

One process records in a file, and that one works for all its webhooks. So a claim lasts until the next process makes
one: a server that was killed goes on at once where it starts again.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec

from turnlog.errors import SettingError
from turnlog.model import Blocked, DeadLetter, Webhook
from turnlog.store.sqlite.connection import transaction, translated
from turnlog.store.webhooks import BEING_DELETED, MOST_REPLAYS, Delivery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    import apsw

    from turnlog.store.webhooks import Progress

T = TypeVar("T")

SLICE = 10_000
"""Dead letters that one transaction goes through: recording waits for it."""
_LAST = 2**63 - 1

_ID = "id = ?2 AND account = (SELECT number FROM account WHERE name = ?1)"
_ALL = "SELECT settings FROM webhook WHERE account = (SELECT number FROM account WHERE name = ?) ORDER BY number"
_FIND = f"SELECT number, settings FROM webhook WHERE {_ID}"  # noqa: S608
_DELIVERY = f"""
    SELECT number, settings, position, retry_from_at, revision, hold_until FROM webhook WHERE {_ID}
"""  # noqa: S608
_ADD = """
    INSERT INTO webhook (account, id, settings, position, retry_from_at, revision) VALUES (?, ?, ?, ?, ?, 1)
"""
_CHANGE = """
    UPDATE webhook SET settings = ?2, retry_from_at = coalesce(?3, retry_from_at),
        hold_until = CASE WHEN ?4 THEN hold_until ELSE 0 END, revision = revision + 1
    WHERE number = ?1
"""
_PUT_BACK = "UPDATE webhook SET position = ?2, retry_from_at = ?3, revision = revision + 1 WHERE number = ?1"
_REVISE = "UPDATE webhook SET revision = revision + 1 WHERE number = ?"
_MINE = f"SELECT number, settings FROM webhook WHERE {_ID} AND owner = ?3 AND revision = ?4"  # noqa: S608
_ADVANCE = """
    UPDATE webhook SET position = ?2, settings = coalesce(?3, settings), hold_until = ?4 WHERE number = ?1
"""

_BLOCKED = """
    SELECT conversation, position, attempts, first_failed_at, next_at, error FROM webhook_blocked WHERE webhook = ?
"""
_BLOCK = "REPLACE INTO webhook_blocked VALUES (?, ?, ?, ?, ?, ?, ?)"
_HURRY = "UPDATE webhook_blocked SET next_at = 0 WHERE webhook = ?"
_UNBLOCK = "DELETE FROM webhook_blocked WHERE webhook = ? AND conversation = ?"

_DEAD_COLUMNS = "position, type, conversation, attempts, first_failed_at, dead_at, error, replayed"
_DEAD = f"""
    SELECT {_DEAD_COLUMNS} FROM webhook_dead WHERE webhook = ? AND position > ? ORDER BY position LIMIT ?
"""  # noqa: S608
# Named, because the table itself has the order too, and those that are not replayed as well.
_REPLAYS = f"""
    SELECT {_DEAD_COLUMNS} FROM webhook_dead INDEXED BY webhook_dead_replayed
    WHERE webhook = ? AND replayed ORDER BY position LIMIT ?
"""  # noqa: S608
_GIVE_UP = "REPLACE INTO webhook_dead VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_SLICE_END = "SELECT position FROM webhook_dead WHERE webhook = ? AND position > ? ORDER BY position LIMIT 1 OFFSET ?"
_IN_SLICE = "webhook = ?1 AND position > ?2 AND position <= ?3"
_REVIVE_SLICE = f"UPDATE webhook_dead SET replayed = 1 WHERE {_IN_SLICE} AND NOT replayed"  # noqa: S608
_CALM_SLICE = f"UPDATE webhook_dead SET replayed = 0 WHERE {_IN_SLICE} AND replayed"  # noqa: S608
_FORGET_SLICE = f"DELETE FROM webhook_dead WHERE {_IN_SLICE}"  # noqa: S608
_REVIVE = """
    UPDATE webhook_dead SET replayed = 1
    WHERE webhook = ? AND position IN (SELECT value FROM json_each(?)) AND NOT replayed
"""
_FORGET_DEAD = "DELETE FROM webhook_dead WHERE webhook = ? AND position = ?"
_FORGET_BLOCKED = "DELETE FROM webhook_blocked WHERE webhook = ?"

_OTHERS = "SELECT EXISTS (SELECT 1 FROM webhook WHERE owner IS NOT ?)"
_CLAIM = "UPDATE webhook SET owner = ?1, revision = revision + 1 WHERE owner IS NOT ?1"
_CLAIMED = """
    SELECT a.name, w.id FROM webhook AS w CROSS JOIN account AS a ON a.number = w.account
    WHERE w.owner = ? ORDER BY w.number
"""
_RELEASE = "UPDATE webhook SET owner = NULL WHERE owner = ?"


class Change(Protocol):
    """How something is changed: ``work`` is given the connection that may, and lets the driver's errors through."""

    def __call__(self, work: Callable[[apsw.Connection], T]) -> Awaitable[T]:
        """What ``work`` comes to. Raises the store's errors."""


class Webhooks:
    """The webhooks of one file (webhooks.WebhookStore), read on the caller's thread with ``reader``."""

    def __init__(self, reader: apsw.Connection, change: Change) -> None:
        self._reader = reader
        self._change = change

    async def webhooks_version(self) -> int:
        """See webhooks.WebhookStore."""
        with translated():
            row = self._reader.execute("SELECT version FROM webhooks_version").fetchone()
        assert row is not None  # noqa: S101 - the migration put it there
        return int(row[0])

    async def webhooks(self, account: str) -> list[Webhook]:
        """See webhooks.WebhookStore."""
        with translated():
            return [_webhook(settings) for (settings,) in self._reader.execute(_ALL, (account,))]

    async def add_webhook(self, webhook: Webhook, position: int) -> None:
        """See webhooks.WebhookStore."""
        await self._change(partial(_add, webhook=webhook, position=position))

    async def change_webhook(self, webhook: Webhook, retry_from_at: int | None = None) -> bool:
        """See webhooks.WebhookStore."""
        return await self._change(partial(_replace, webhook=webhook, retry_from_at=retry_from_at))

    async def delete_webhook(self, account: str, webhook_id: str) -> bool:
        """See webhooks.WebhookStore."""
        there = False
        while (rest := await self._change(partial(_delete_some, place=(account, webhook_id)))) is not None:
            there = True
            if not rest:
                break
        return there

    async def delivery(self, account: str, webhook_id: str) -> Delivery | None:
        """See webhooks.WebhookStore."""
        with translated(), transaction(self._reader, "DEFERRED"):  # all of one moment
            row = self._reader.execute(_DELIVERY, (account, webhook_id)).fetchone()
            if row is None:
                return None
            number, settings, position, retry_from_at, revision, hold_until = row
            blocked = tuple(Blocked(*found) for found in self._reader.execute(_BLOCKED, (number,)))
            replays = tuple(map(_dead_letter, self._reader.execute(_REPLAYS, (number, MOST_REPLAYS))))
        return Delivery(_webhook(settings), position, retry_from_at, revision, blocked, replays, hold_until)

    async def dead_letters(self, account: str, webhook_id: str, *, after: int, limit: int) -> list[DeadLetter]:
        """See webhooks.WebhookStore."""
        with translated(), transaction(self._reader, "DEFERRED"):
            row = self._reader.execute(_FIND, (account, webhook_id)).fetchone()
            return [] if row is None else list(map(_dead_letter, self._reader.execute(_DEAD, (row[0], after, limit))))

    async def replay_from(self, account: str, webhook_id: str, position: int, at: int) -> bool:
        """See webhooks.WebhookStore."""
        place = (account, webhook_id)
        # None of them is to be sent beside what comes again; and none is forgotten before that is certain.
        await self._in_slices(place, _CALM_SLICE, position)
        there = await self._change(partial(_put_back, place=place, position=position, at=at))
        await self._in_slices(place, _FORGET_SLICE, position)
        return there

    async def replay_dead(self, account: str, webhook_id: str, positions: Sequence[int] | None) -> int:
        """See webhooks.WebhookStore."""
        if positions is None:
            return await self._in_slices((account, webhook_id), _REVIVE_SLICE, -1)
        return await self._change(partial(_revive, place=(account, webhook_id), positions=positions))

    async def claim_webhooks(self, owner: str, ttl_s: float) -> list[tuple[str, str]]:
        """See webhooks.WebhookStore: all of them, until another process records. Only for the one that does."""
        del ttl_s
        with translated():
            others = self._reader.execute(_OTHERS, (owner,)).fetchone()
        if others is not None and others[0]:  # else nothing is written: this is asked for every few seconds
            await self._change(partial(_execute, sql=_CLAIM, owner=owner))
        with translated():
            return list(self._reader.execute(_CLAIMED, (owner,)))

    async def release_webhooks(self, owner: str) -> None:
        """See webhooks.WebhookStore."""
        await self._change(partial(_execute, sql=_RELEASE, owner=owner))

    async def save_progress(self, owner: str, progress: Progress) -> bool:
        """See webhooks.WebhookStore."""
        return await self._change(partial(_save, owner=owner, progress=progress))

    async def _in_slices(self, place: tuple[str, str], sql: str, after: int) -> int:
        """Carry out ``sql`` for each slice of the dead letters behind ``after``; how many it changed."""
        total, reached = 0, after
        while reached < _LAST:
            changed, reached = await self._change(partial(_change_slice, place=place, sql=sql, after=reached))
            total += changed
        return total


# What changes something: each is one transaction on the connection that it is given.


def _add(connection: apsw.Connection, *, webhook: Webhook, position: int) -> None:
    with transaction(connection):
        account = connection.execute("SELECT number FROM account WHERE name = ?", (webhook.account,)).fetchone()
        if account is None:
            raise SettingError(f"there is no account {webhook.account}")
        connection.execute(_ADD, (account[0], webhook.id, _settings(webhook), position, webhook.created_at))
        _tell(connection)


def _replace(connection: apsw.Connection, *, webhook: Webhook, retry_from_at: int | None) -> bool:
    with transaction(connection):
        row = connection.execute(_FIND, (webhook.account, webhook.id)).fetchone()
        if row is None:
            return False
        changed = msgspec.structs.replace(webhook, created_at=_webhook(row[1]).created_at)
        same_url = changed.url == _webhook(row[1]).url
        connection.execute(_CHANGE, (row[0], _settings(changed), retry_from_at, same_url))
        if not same_url:
            connection.execute(_HURRY, (row[0],))
        _tell(connection)
        return True


def _delete_some(connection: apsw.Connection, *, place: tuple[str, str]) -> bool | None:
    """Whether there is a rest, which is not delivered to any more; ``None`` where there is no such webhook."""
    with transaction(connection):
        row = connection.execute(_FIND, place).fetchone()
        if row is None:
            return None
        number, webhook = row[0], _webhook(row[1])
        end = _slice_end(connection, number, -1)
        connection.execute(_FORGET_SLICE, (number, -1, end))
        if end == _LAST:
            connection.execute(_FORGET_BLOCKED, (number,))
            connection.execute("DELETE FROM webhook WHERE number = ?", (number,))
            _tell(connection)
        elif webhook.disabled != BEING_DELETED:
            disabled = msgspec.structs.replace(webhook, disabled=BEING_DELETED)
            connection.execute(_CHANGE, (number, _settings(disabled), None, True))
            _tell(connection)
        return end < _LAST


def _slice_end(connection: apsw.Connection, number: int, after: int) -> int:
    """The position up to which there is a slice of dead letters behind ``after``; _LAST: there is nothing more."""
    row = connection.execute(_SLICE_END, (number, after, SLICE - 1)).fetchone()
    return _LAST if row is None else int(row[0])


def _change_slice(connection: apsw.Connection, *, place: tuple[str, str], sql: str, after: int) -> tuple[int, int]:
    """How many were changed, and where the slice ends."""
    with transaction(connection):
        row = connection.execute(_FIND, place).fetchone()
        if row is None:
            return 0, _LAST
        end = _slice_end(connection, row[0], after)
        connection.execute(sql, (row[0], after, end))
        changed = connection.changes()
        if changed and sql is _REVIVE_SLICE:  # whoever puts the cursor back tells of that
            connection.execute(_REVISE, (row[0],))
            _tell(connection)
        return changed, end


def _put_back(connection: apsw.Connection, *, place: tuple[str, str], position: int, at: int) -> bool:
    with transaction(connection):
        row = connection.execute(_FIND, place).fetchone()
        if row is None:
            return False
        connection.execute(_PUT_BACK, (row[0], position, at))
        connection.execute(_FORGET_BLOCKED, (row[0],))
        _tell(connection)
        return True


def _revive(connection: apsw.Connection, *, place: tuple[str, str], positions: Sequence[int]) -> int:
    with transaction(connection):
        row = connection.execute(_FIND, place).fetchone()
        if row is None:
            return 0
        connection.execute(_REVIVE, (row[0], msgspec.json.encode(positions).decode()))
        marked = connection.changes()
        if marked:
            connection.execute(_REVISE, (row[0],))
            _tell(connection)
        return marked


def _save(connection: apsw.Connection, *, owner: str, progress: Progress) -> bool:
    with transaction(connection):
        place = (progress.account, progress.webhook_id)
        row = connection.execute(_MINE, (*place, owner, progress.revision)).fetchone()
        if row is None:
            return False
        number, settings = row
        disabled = None
        if progress.disabled is not None:
            disabled = _settings(msgspec.structs.replace(_webhook(settings), disabled=progress.disabled))
        connection.execute(_ADVANCE, (number, progress.position, disabled, progress.hold_until))
        connection.executemany(_BLOCK, [(number, *msgspec.structs.astuple(one)) for one in progress.blocked])
        connection.executemany(_UNBLOCK, [(number, conversation) for conversation in progress.unblocked])
        connection.executemany(_GIVE_UP, [(number, *msgspec.structs.astuple(one)) for one in progress.dead])
        connection.executemany(_FORGET_DEAD, [(number, position) for position in progress.replayed])
        return True


def _execute(connection: apsw.Connection, *, sql: str, owner: str) -> None:
    with transaction(connection):
        connection.execute(sql, (owner,))


def _tell(connection: apsw.Connection) -> None:
    """Every running server learns of the change."""
    connection.execute("UPDATE webhooks_version SET version = version + 1")


def _webhook(settings: str) -> Webhook:
    return msgspec.json.decode(settings, type=Webhook)


def _settings(webhook: Webhook) -> str:
    return msgspec.json.encode(webhook).decode()


def _dead_letter(row: tuple[Any, ...]) -> DeadLetter:
    position, kind, conversation, attempts, first_failed_at, dead_at, error, replayed = row
    return DeadLetter(position, kind, conversation, attempts, first_failed_at, dead_at, error, bool(replayed))
