"""``python -m tests.faults.bugs NAME ARGUMENT…``: the ``turnlog`` command with one bug in it, for a driver to find.

A bug replaces one thing in the imported program before it runs, so that the workers that it forks have it too. The
program itself knows nothing of this, and no setting of it leads here.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg

import turnlog.ids
import turnlog.service
import turnlog.store.sqlite.append
import turnlog.store.sqlite.reads
import turnlog.store.sqlite.store
import turnlog.writer
from turnlog.cli.main import main
from turnlog.deliveries.window import Window
from turnlog.errors import IdempotencyKeyReusedError, OverloadedError
from turnlog.feed import Feed
from turnlog.ids import Place, Ulids
from turnlog.store.plan import Plan
from turnlog.store.postgres import connections
from turnlog.store.postgres.append import Appender as PostgresAppender
from turnlog.store.protocol import AppendMessages, StoreFailedError
from turnlog.store.sqlite import entries
from turnlog.store.sqlite.append import Appender
from turnlog.store.sqlite.store import SqliteStore
from turnlog.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    import apsw

    from turnlog.store.plan import UsedKey

SQLITE, POSTGRESQL = "sqlite", "postgresql"
BOTH = (SQLITE, POSTGRESQL)


@dataclass(frozen=True)
class Bug:
    """One bug: the driver (seeded.py) that must find it, the stores it is planted in, what it does, how."""

    driver: str
    stores: tuple[str, ...]
    what: str
    plant: Callable[[], None]

    @property
    def name(self) -> str:
        return self.plant.__name__


BUGS: dict[str, Bug] = {}


def _bug(driver: str, *stores: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    def note(plant: Callable[[], None]) -> Callable[[], None]:
        assert plant.__doc__ is not None
        BUGS[plant.__name__] = Bug(driver, stores or BOTH, plant.__doc__, plant)
        return plant

    return note


def _instead(owner: object, name: str, new: Callable[..., Any]) -> None:
    """``new`` in the place of a method or function; it is given what was there, then the arguments."""
    original = getattr(owner, name)
    setattr(owner, name, lambda *given, **named: new(original, *given, **named))


# Recording.


@_bug("kills")
def acknowledged_before_the_commit() -> None:
    """What has no key is answered as it is handed to the store, not when the store has it."""

    def next_batch(original: Any, writer: Writer, lane: Any) -> Any:
        batch = original(writer, lane)
        for waiting in batch:
            if isinstance(waiting.write, AppendMessages) and waiting.write.idempotency is None:
                waiting.answer.set_result(waiting.write.ids)
        return batch

    _instead(Writer, "_next_batch", next_batch)


@_bug("kills", SQLITE)
def key_outside_the_transaction() -> None:
    """A key is stored in the transaction behind that of its messages."""
    waiting: dict[int, dict[str, UsedKey]] = {}

    def flush(original: Any, appender: Appender, plans: dict[int, Plan]) -> None:
        for account, plan in plans.items():
            plan.keys, waiting[account] = waiting.get(account, {}), plan.keys
        original(appender, plans)

    _instead(Appender, "_flush", flush)


@_bug("kills", SQLITE)
def keys_in_memory_only() -> None:
    """Keys are known for as long as the process lives."""
    known: dict[str, UsedKey] = {}

    def flush(original: Any, appender: Appender, plans: dict[int, Plan]) -> None:
        for plan in plans.values():
            known.update(plan.keys)
            plan.keys = {}
        original(appender, plans)

    def plan(original: Any, appender: Appender, group: Any) -> Plan:
        found: Plan = original(appender, group)
        found.known.keys = {key: known[key] for key in group.wanted.keys if key in known}
        return found

    _instead(Appender, "_flush", flush)
    _instead(Appender, "_plan", plan)


@_bug("kills")
def retry_gets_fresh_ids() -> None:
    """A retry records nothing, and is answered with ids that nothing has."""

    def append(original: Any, plan: Plan, write: AppendMessages) -> Any:
        original(plan, write)
        return write.ids

    _instead(Plan, "_append_messages", append)


@_bug("kills")
def refused_and_stored() -> None:
    """A request with another one's key is refused with 422-02, and recorded."""

    def append(original: Any, plan: Plan, write: AppendMessages) -> Any:
        try:
            return original(plan, write)
        except IdempotencyKeyReusedError:
            plan._record(write, plan._number(write.conversation))
            raise

    _instead(Plan, "_append_messages", append)


@_bug("kills")
def batch_reversed() -> None:
    """The messages of a batch are recorded in the wrong order."""

    def add(_: Any, plan: Plan, write: AppendMessages, conversation: int) -> None:
        for index in reversed(range(len(write.messages))):
            plan._add_one(write, index, conversation)

    _instead(Plan, "_add", add)


@_bug("kills", SQLITE)
def positions_used_again() -> None:
    """After a restart the log goes on three positions before its end, over what stands there."""
    sqlite = turnlog.store.sqlite.append
    _instead_text(sqlite, "_INSERT_MESSAGES", "INSERT INTO", "INSERT OR REPLACE INTO")

    def plan(original: Any, appender: Appender, group: Any) -> Plan:
        if group.account not in appender._heads:
            last = entries.last_position(appender._connection, group.account)
            appender._heads[group.account] = entries.entry(group.account, max(0, last - 3))
        found: Plan = original(appender, group)
        return found

    _instead(Appender, "_plan", plan)


@_bug("kills")
def ids_do_not_rise() -> None:
    """Within a millisecond, ids are random."""
    chance = random.SystemRandom()

    def new(original: Any, ulids: Ulids) -> str:
        tail = "".join(chance.choices(turnlog.ids._ALPHABET, k=16))
        return str(original(ulids))[:10] + tail

    _instead(Ulids, "new", new)


@_bug("full", SQLITE)
def swallowed_rollback() -> None:
    """A transaction that failed is undone, and answered as if it had happened."""

    def carry_out(original: Any, store: SqliteStore, work: Any, given: Any) -> Any:
        try:
            return original(store, work, given)
        except StoreFailedError:
            store._failure = None
            return [getattr(write, "ids", None) for write in given]

    _instead(SqliteStore, "_carry_out", carry_out)


@_bug("power", SQLITE)
def synchronous_normal() -> None:
    """A commit does not wait for the disk."""

    def connect(original: Any, *given: Any, **named: Any) -> apsw.Connection:
        connection: apsw.Connection = original(*given, **named)
        connection.pragma("synchronous", "NORMAL")
        return connection

    _instead(turnlog.store.sqlite.store, "connect", connect)


# A queue in front of a store that stands still.


@_bug("stalls")
def unknown_said_to_be_refused() -> None:
    """At the deadline, what is under way is answered 503-01, as if it were certain that it is not stored."""
    turnlog.writer._unknown = lambda: OverloadedError("too late", retry_after_s=1)  # type: ignore[assignment,return-value]


@_bug("stalls", SQLITE)
def dropped_and_stored() -> None:
    """What has waited too long is refused, and stays in the queue."""

    def expire(_: Any, writer: Writer) -> None:
        too_late = writer._now_s() - writer._deadline_s
        for lane in writer._lanes.values():
            late = [one for one in (*lane.in_flight, *lane.queue) if one.submitted_at < too_late]
            writer._refuse([one for one in late if one in lane.in_flight], turnlog.writer._unknown())
            writer._refuse(late, OverloadedError("dropped", retry_after_s=1))
        writer._watch = writer._loop.call_later(0.1, writer._expire)

    _instead(Writer, "_expire", expire)


@_bug("stalls")
def queue_without_bounds() -> None:
    """Whoever comes is let in."""

    def init(original: Any, writer: Writer, store: Any, **named: Any) -> None:
        original(writer, store, **named | {"max_rows": 2**62, "max_chars": 2**62})

    _instead(Writer, "__init__", init)


# Reading.


@_bug("reading")
def page_skips_a_message() -> None:
    """Behind a cursor, the first message of the same timestamp is left out."""

    def cursor(original: Any, place: Place, scope: str) -> Any:
        return original(Place(place.client_at, place.position + 1), scope)

    _instead(turnlog.service, "cursor", cursor)


@_bug("reading", SQLITE)
def strangers_see_a_message() -> None:
    """A message is read by its id and its conversation's, whoever asks."""
    _instead_text(turnlog.store.sqlite.reads, "MESSAGE_BY_ID", "c.account = ?", "? IS NOT NULL")


# The feed and webhooks.


@_bug("following")
def feed_skips_an_event() -> None:
    """Where several events came at once, the last of them is passed over."""

    async def part(original: Any, feed: Feed, *given: Any, **named: Any) -> Any:
        found = await original(feed, *given, **named)
        return found if len(found.entries) < 2 else found._replace(entries=found.entries[:-1])

    _instead(Feed, "part", part)


@_bug("following")
def feed_repeats_after_a_cut() -> None:
    """A stream that is resumed begins with the event that was seen last."""

    async def place(original: Any, feed: Feed, account: str, after: Any, parameter: str = "Query 'after'") -> int:
        found = int(await original(feed, account, after, parameter))
        return found - 1 if parameter.startswith("Header") else found

    _instead(Feed, "place", place)


@_bug("delivering")
def webhook_out_of_order() -> None:
    """What is read of the log at once is delivered from its end."""

    def add(original: Any, window: Window, part: Any) -> None:
        original(window, part._replace(entries=part.entries[::-1]))

    _instead(Window, "add", add)


@_bug("delivering")
def webhook_cursor_too_early() -> None:
    """A webhook's cursor is what was read, not what was delivered."""
    Window.cursor = property(lambda window: window.read_to)  # type: ignore[method-assign,assignment]


# PostgreSQL.


@_bug("database", POSTGRESQL)
def synchronous_commit_off() -> None:
    """A commit does not wait for the database's disk."""
    connections._SESSION["synchronous_commit"] = "off"


@_bug("database", POSTGRESQL)
def outcome_taken_for_granted() -> None:
    """Where the connection is lost during a commit, it is taken to have happened."""

    async def append(original: Any, appender: Any, connection: Any, writes: Any, *, again: bool) -> Any:
        try:
            return await original(appender, connection, writes, again=again)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            return [getattr(write, "ids", None) for write in writes]

    _instead(PostgresAppender, "append", append)


def _instead_text(module: object, name: str, old: str, new: str) -> None:
    text = str(getattr(module, name))
    assert old in text, name
    setattr(module, name, text.replace(old, new))


if __name__ == "__main__":
    name, *sys.argv[1:] = sys.argv[1:]
    BUGS[name].plant()
    sys.argv[0] = "turnlog"
    main()
