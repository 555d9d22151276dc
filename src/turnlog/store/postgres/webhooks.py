"""Webhooks in the database: short transactions, in each of which the webhook's row is locked before all else.

So whatever changes one webhook happens one after the other, on whichever node. Clocks are the database's.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from turnlog.errors import SettingError
from turnlog.model import Blocked, DeadLetter, Webhook
from turnlog.store.postgres.connections import ConflictError, LostError
from turnlog.store.postgres.gather import in_a_task
from turnlog.store.protocol import StoreUnavailableError, StoreUncertainError
from turnlog.store.webhooks import MOST_REPLAYS, Delivery

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from asyncpg import Connection

    from turnlog.store.postgres.accounts import Accounts
    from turnlog.store.postgres.connections import Connections
    from turnlog.store.webhooks import Progress

T = TypeVar("T")
_Place = tuple[int, str]

_LIMIT_S = 5.0
_LONG_LIMIT_S = 30.0
"""For what goes through all dead letters of a webhook."""

_ID = "account = $1 AND id = $2"
_OF_IT = "account = $1 AND webhook = $2"
_VERSION = "SELECT version FROM turnlog.webhooks_version"
_TELL = "UPDATE turnlog.webhooks_version SET version = version + 1"
_ALL = "SELECT settings FROM turnlog.webhook WHERE account = $1 ORDER BY number"
_LOCK = f"SELECT settings FROM turnlog.webhook WHERE {_ID} FOR UPDATE"  # noqa: S608
_DELIVERY = f"SELECT settings, position, retry_from_at, revision, hold_until FROM turnlog.webhook WHERE {_ID}"  # noqa: S608
_ADD = """
    INSERT INTO turnlog.webhook (account, id, number, settings, position, retry_from_at, revision)
    SELECT $1::integer, $2::text, coalesce(max(number), 0) + 1, $3::text, $4::bigint, $5::bigint, 1
    FROM turnlog.webhook WHERE account = $1
"""
_CHANGE = f"""
    UPDATE turnlog.webhook
    SET settings = $3, retry_from_at = coalesce($4::bigint, retry_from_at),
        hold_until = CASE WHEN $5 THEN hold_until ELSE 0 END, revision = revision + 1
    WHERE {_ID}
"""  # noqa: S608
_DELETE = f"DELETE FROM turnlog.webhook WHERE {_ID} RETURNING true"  # noqa: S608
_PUT_BACK = f"""
    UPDATE turnlog.webhook SET position = $3, retry_from_at = $4, revision = revision + 1 WHERE {_ID} RETURNING true
"""  # noqa: S608
_REVISE = f"UPDATE turnlog.webhook SET revision = revision + 1 WHERE {_ID}"  # noqa: S608
# Whoever claims it next waits for the lock that this takes, so what is saved is there before the claim is.
_ADVANCE = f"""
    UPDATE turnlog.webhook SET position = $5, hold_until = $6
    WHERE {_ID} AND owner = $3 AND revision = $4 AND owned_until > clock_timestamp() RETURNING settings
"""  # noqa: S608
_DISABLE = f"UPDATE turnlog.webhook SET settings = $3 WHERE {_ID}"  # noqa: S608

_BLOCKED = f"""
    SELECT conversation, position, attempts, first_failed_at, next_at, error FROM turnlog.webhook_blocked WHERE {_OF_IT}
"""  # noqa: S608
_BLOCK = """
    INSERT INTO turnlog.webhook_blocked
        (account, webhook, conversation, position, attempts, first_failed_at, next_at, error)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
    ON CONFLICT (account, webhook, conversation) DO UPDATE SET position = excluded.position,
        attempts = excluded.attempts, first_failed_at = excluded.first_failed_at, next_at = excluded.next_at,
        error = excluded.error
"""
# One after the other: with ``= ANY`` a planner that has no statistics of a young table reads all that are blocked.
_UNBLOCK = f"DELETE FROM turnlog.webhook_blocked WHERE {_OF_IT} AND conversation = $3"  # noqa: S608
_HURRY = f"UPDATE turnlog.webhook_blocked SET next_at = 0 WHERE {_OF_IT}"  # noqa: S608
_FORGET_BLOCKED = f"DELETE FROM turnlog.webhook_blocked WHERE {_OF_IT}"  # noqa: S608

_DEAD_COLUMNS = "position, type, conversation, attempts, first_failed_at, dead_at, error, replayed"
_DEAD = f"""
    SELECT {_DEAD_COLUMNS} FROM turnlog.webhook_dead WHERE {_OF_IT} AND position > $3 ORDER BY position LIMIT $4
"""  # noqa: S608
_REPLAYS = f"""
    SELECT {_DEAD_COLUMNS} FROM turnlog.webhook_dead WHERE {_OF_IT} AND replayed ORDER BY position LIMIT $3
"""  # noqa: S608
_GIVE_UP = f"""
    INSERT INTO turnlog.webhook_dead (account, webhook, {_DEAD_COLUMNS})
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
    ON CONFLICT (account, webhook, position) DO UPDATE SET attempts = excluded.attempts,
        first_failed_at = excluded.first_failed_at, dead_at = excluded.dead_at, error = excluded.error,
        replayed = excluded.replayed
"""  # noqa: S608
_REVIVE_ALL = f"""
    WITH marked AS (UPDATE turnlog.webhook_dead SET replayed = true WHERE {_OF_IT} AND NOT replayed RETURNING 1)
    SELECT count(*) FROM marked
"""  # noqa: S608
_REVIVE = f"""
    UPDATE turnlog.webhook_dead SET replayed = true WHERE {_OF_IT} AND position = $3 AND NOT replayed RETURNING true
"""  # noqa: S608
_FORGET_DEAD = f"DELETE FROM turnlog.webhook_dead WHERE {_OF_IT} AND position = $3"  # noqa: S608
_FORGET_DEAD_BEHIND = f"DELETE FROM turnlog.webhook_dead WHERE {_OF_IT} AND position > $3"  # noqa: S608

# Two nodes that claim at once: the second waits for the first one's lock, then sees the row as that one left it (READ
# COMMITTED asks the condition again) and passes over it. A new owner has a new revision, so that what the old one did
# not save cannot be saved any more, even if that one owns it again by then.
_CLAIM = """
    UPDATE turnlog.webhook AS w
    SET owner = $1, owned_until = clock_timestamp() + make_interval(secs => $2),
        revision = w.revision + CASE WHEN w.owner = $1 THEN 0 ELSE 1 END
    FROM turnlog.account AS a
    WHERE a.account = w.account AND (w.owner = $1 OR w.owner IS NULL OR w.owned_until <= clock_timestamp())
    RETURNING w.account, w.number, a.name, w.id
"""
_RELEASE = "UPDATE turnlog.webhook SET owner = NULL, owned_until = NULL WHERE owner = $1"


class Webhooks:
    """The webhooks of one database (webhooks.WebhookStore).

    ``connections`` are used by nothing that has to be quick. ``accounts`` gives what is remembered of this database.
    """

    def __init__(self, connections: Connections, accounts: Callable[[], Accounts]) -> None:
        self._connections = connections
        self._accounts = accounts

    async def version(self) -> int:
        """What grows with every change in this database."""
        return int(await self._read(lambda on: on.fetchval(_VERSION)))

    async def webhooks(self, account: str) -> list[Webhook]:
        """See webhooks.WebhookStore."""
        return await self._read(partial(self._all, account))

    async def _all(self, account: str, connection: Connection) -> list[Webhook]:
        number = await self._accounts().number(connection, account)
        return [_webhook(row["settings"]) for row in await connection.fetch(_ALL, number)]

    async def add_webhook(self, webhook: Webhook, position: int) -> None:
        """See webhooks.WebhookStore."""

        async def work(connection: Connection, place: _Place | None) -> None:
            if place is None:
                raise SettingError(f"there is no account {webhook.account}")
            await connection.execute(_TELL)  # first: whoever adds another one waits, and numbers it after this one
            await connection.execute(_ADD, *place, _settings(webhook), position, webhook.created_at)

        await self._change(webhook.account, webhook.id, work)

    async def change_webhook(self, webhook: Webhook, retry_from_at: int | None = None) -> bool:
        """See webhooks.WebhookStore."""

        async def work(connection: Connection, place: _Place | None) -> bool:
            before = place and await connection.fetchval(_LOCK, *place)
            if place is None or before is None:
                return False
            changed = msgspec.structs.replace(webhook, created_at=_webhook(before).created_at)
            same_url = changed.url == _webhook(before).url
            await connection.execute(_CHANGE, *place, _settings(changed), retry_from_at, same_url)
            if not same_url:
                await connection.execute(_HURRY, *place)
            await connection.execute(_TELL)
            return True

        return await self._change(webhook.account, webhook.id, work)

    async def delete_webhook(self, account: str, webhook_id: str) -> bool:
        """See webhooks.WebhookStore."""

        async def work(connection: Connection, place: _Place | None) -> bool:
            if place is None or not await connection.fetchval(_DELETE, *place):
                return False
            await connection.execute(_FORGET_BLOCKED, *place)
            await connection.execute(_FORGET_DEAD_BEHIND, *place, -1)
            await connection.execute(_TELL)
            return True

        return await self._change(account, webhook_id, work, _LONG_LIMIT_S)

    async def delivery(self, account: str, webhook_id: str) -> Delivery | None:
        """See webhooks.WebhookStore."""

        async def work(connection: Connection) -> Delivery | None:
            place = (await self._accounts().number(connection, account), webhook_id)
            async with connection.transaction(isolation="repeatable_read", readonly=True):  # all of one moment
                found = await connection.fetchrow(_DELIVERY, *place)
                if found is None:
                    return None
                blocked = await connection.fetch(_BLOCKED, *place)
                replays = await connection.fetch(_REPLAYS, *place, MOST_REPLAYS)
            settings, position, retry_from_at, revision, hold_until = found
            return Delivery(
                _webhook(settings),
                position,
                retry_from_at,
                revision,
                tuple(Blocked(*row) for row in blocked),
                tuple(DeadLetter(*row) for row in replays),
                hold_until,
            )

        return await self._read(work)

    async def dead_letters(self, account: str, webhook_id: str, *, after: int, limit: int) -> list[DeadLetter]:
        """See webhooks.WebhookStore."""

        async def work(connection: Connection) -> list[DeadLetter]:
            number = await self._accounts().number(connection, account)
            return [DeadLetter(*row) for row in await connection.fetch(_DEAD, number, webhook_id, after, limit)]

        return await self._read(work)

    async def replay_from(self, account: str, webhook_id: str, position: int, at: int) -> bool:
        """See webhooks.WebhookStore."""

        async def work(connection: Connection, place: _Place | None) -> bool:
            if place is None or not await connection.fetchval(_PUT_BACK, *place, position, at):
                return False
            await connection.execute(_FORGET_BLOCKED, *place)
            await connection.execute(_FORGET_DEAD_BEHIND, *place, position)
            await connection.execute(_TELL)
            return True

        return await self._change(account, webhook_id, work, _LONG_LIMIT_S)

    async def replay_dead(self, account: str, webhook_id: str, positions: Sequence[int] | None) -> int:
        """See webhooks.WebhookStore."""

        async def work(connection: Connection, place: _Place | None) -> int:
            if place is None or await connection.fetchval(_LOCK, *place) is None:
                return 0
            if positions is None:
                marked = await connection.fetchval(_REVIVE_ALL, *place)
            else:
                marked = len(await connection.fetchmany(_REVIVE, [(*place, position) for position in positions]))
            if marked:
                await connection.execute(_REVISE, *place)
                await connection.execute(_TELL)
            return int(marked)

        return await self._change(account, webhook_id, work, _LONG_LIMIT_S)

    async def claim_webhooks(self, owner: str, ttl_s: float) -> list[tuple[str, str]]:
        """See webhooks.WebhookStore."""
        claimed = await self._carry_out(lambda on: on.fetch(_CLAIM, owner, ttl_s), _LIMIT_S)
        return [(name, webhook_id) for _, _, name, webhook_id in sorted(claimed)]

    async def release_webhooks(self, owner: str) -> None:
        """See webhooks.WebhookStore."""
        await self._carry_out(lambda on: on.execute(_RELEASE, owner), _LIMIT_S)

    async def save_progress(self, owner: str, progress: Progress) -> bool:
        """See webhooks.WebhookStore."""

        async def work(connection: Connection, place: _Place | None) -> bool:
            if place is None:
                return False
            reached = (progress.position, progress.hold_until)
            settings = await connection.fetchval(_ADVANCE, *place, owner, progress.revision, *reached)
            if settings is None:
                return False
            if progress.disabled is not None:
                disabled = msgspec.structs.replace(_webhook(settings), disabled=progress.disabled)
                await connection.execute(_DISABLE, *place, _settings(disabled))
            await _save(connection, place, progress)
            return True

        return await self._change(progress.account, progress.webhook_id, work)

    async def _read(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        return await in_a_task(self._read_twice(work))

    async def _read_twice(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What ``work`` finds; a second time where the connection was lost, as after a restart of the server."""
        for last in (False, True):
            try:
                async with self._connections.use(_LIMIT_S, commits=False) as connection:
                    return await work(connection)
            except (LostError, ConflictError) as error:
                if last:
                    raise StoreUnavailableError(str(error)) from error
        raise AssertionError

    async def _change(
        self,
        account: str,
        webhook_id: str,
        work: Callable[[Connection, _Place | None], Awaitable[T]],
        limit_s: float = _LIMIT_S,
    ) -> T:
        """What ``work`` comes to, in one transaction; it is told where the webhook is, if there is such an account."""

        async def change(connection: Connection) -> T:
            number = await self._accounts().number(connection, account)
            async with connection.transaction():
                return await work(connection, None if number is None else (number, webhook_id))

        return await self._carry_out(change, limit_s)

    async def _carry_out(self, work: Callable[[Connection], Awaitable[T]], limit_s: float) -> T:
        return await in_a_task(self._carry_out_once(work, limit_s))

    async def _carry_out_once(self, work: Callable[[Connection], Awaitable[T]], limit_s: float) -> T:
        try:
            async with self._connections.use(limit_s) as connection:
                return await work(connection)
        except ConflictError as error:
            raise StoreUnavailableError(str(error)) from error
        except LostError as error:
            raise StoreUncertainError(f"whether the webhook was changed is unknown: {error}") from error


async def _save(connection: Connection, place: _Place, progress: Progress) -> None:
    if progress.blocked:
        await connection.executemany(_BLOCK, [(*place, *msgspec.structs.astuple(one)) for one in progress.blocked])
    if progress.unblocked:
        await connection.executemany(_UNBLOCK, [(*place, conversation) for conversation in progress.unblocked])
    if progress.dead:
        await connection.executemany(_GIVE_UP, [(*place, *msgspec.structs.astuple(one)) for one in progress.dead])
    if progress.replayed:
        await connection.executemany(_FORGET_DEAD, [(*place, position) for position in progress.replayed])


def _webhook(settings: Any) -> Webhook:
    return msgspec.json.decode(settings, type=Webhook)


def _settings(webhook: Webhook) -> str:
    return msgspec.json.encode(webhook).decode()
