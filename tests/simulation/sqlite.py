"""The same database by the code of the SQLite store itself, in a file that is in memory, failing between statements."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import apsw

from tests.simulation.database import TTL_US
from turnlog.model import ApiKey
from turnlog.store.protocol import KeyRecord
from turnlog.store.sqlite.append import Appender
from turnlog.store.sqlite.connection import translated
from turnlog.store.sqlite.keys import Keys
from turnlog.store.sqlite.log import Log
from turnlog.store.sqlite.migrate import migrate
from turnlog.store.sqlite.reads import Reads
from turnlog.store.sqlite.webhooks import Webhooks

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from turnlog.model import DeadLetter
    from turnlog.store.protocol import Write

T = TypeVar("T")


@cache
def _empty(accounts: tuple[str, ...]) -> bytes:
    """A new store with these accounts, as a file."""
    connection = apsw.Connection(":memory:")
    migrate(connection)
    for account in accounts:
        at_once(Keys(connection).add_key(KeyRecord(ApiKey(f"key-{account}", account, account, (), 0), ())))
    connection.execute("UPDATE log_name SET name = 'log'")
    return connection.serialize("main")


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine comes to that never waits."""
    try:
        work.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


class SqliteDatabase:
    """See database.Database."""

    shared = False
    scanned = 0

    def __init__(self, accounts: Sequence[str]) -> None:
        self._connection = connection = apsw.Connection(":memory:", statementcachesize=64)
        connection.deserialize("main", _empty(tuple(accounts)))
        self._statements = self._fail_at = 0
        connection.exec_trace = self._before
        self.restart()
        reads, log, webhooks = Reads(connection), Log(connection), Webhooks(connection, self._change)
        self._webhooks = webhooks
        self.last_position, self.log, self.log_start, self.log_name = log.last_position, log.part, log.start, log.name
        self.conversation, self.message = reads.conversation, reads.message
        self.conversation_by_external_id = reads.conversation_by_external_id
        self._messages = reads.messages
        self.webhooks_version = _plain(webhooks.webhooks_version)
        self.delivery = _plain(webhooks.delivery)
        self.claim_webhooks = _plain(webhooks.claim_webhooks)
        self.release_webhooks = _plain(webhooks.release_webhooks)
        self.save_progress = _plain(webhooks.save_progress)
        self.add_webhook = _plain(webhooks.add_webhook)
        self.change_webhook = _plain(webhooks.change_webhook)
        self.replay_from = _plain(webhooks.replay_from)

    def restart(self) -> None:
        self._appender = Appender(self._connection, idempotency_ttl_us=TTL_US)

    def close(self) -> None:
        self._connection.exec_trace = None
        self._connection.close()

    def commit(self, writes: Sequence[Write], fail_at: int = 0) -> list[object]:
        self._statements, self._fail_at = 0, fail_at
        try:
            with translated():
                return self._appender.append(writes)
        finally:
            self._fail_at = 0
            assert not self._connection.in_transaction, "a transaction was left open"

    def _before(self, _cursor: object, sql: str, _bindings: object) -> bool:
        if self._fail_at and "ROLLBACK" not in sql:
            self._statements += 1
            if self._statements == self._fail_at:
                raise apsw.FullError("no space")
        return True

    async def _change(self, work: Callable[[apsw.Connection], T]) -> T:
        with translated():
            return work(self._connection)

    def messages(self, account: str, conversation_id: str, **bounds: Any) -> Any:
        return self._messages(account, conversation_id, **{"up_to": None, "max_chars": None, **bounds})

    def stream_ids(self, account: str) -> list[str]:
        sql = """
            SELECT f.stream_id FROM authentication AS f JOIN conversation AS c ON c.number = f.conversation
            WHERE c.account = (SELECT number FROM account WHERE name = ?)
        """
        return [str(found) for (found,) in self._connection.execute(sql, (account,))]

    def owner_of(self, webhook_id: str) -> tuple[str | None, float]:
        row = self._connection.execute("SELECT owner FROM webhook WHERE id = ?", (webhook_id,)).fetchone()
        return None if row is None else row[0], float("inf")

    def replay_dead(self, account: str, webhook_id: str) -> None:
        at_once(self._webhooks.replay_dead(account, webhook_id, None))

    def dead_letters(self, account: str, webhook_id: str) -> Sequence[DeadLetter]:
        return at_once(self._webhooks.dead_letters(account, webhook_id, after=0, limit=100_000))


def _plain(call: Callable[..., Coroutine[Any, Any, T]]) -> Callable[..., T]:
    return lambda *given: at_once(call(*given))
