"""What the SQLite store promises besides store/protocol.py: look-ups that never scan, commits that are synced."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

import apsw
import pytest

from tests.exercise import exercise
from turnlog.ids import Place
from turnlog.model import ApiKey, NewConversation, NewMessage, Participant
from turnlog.store.protocol import AppendMessages, KeyRecord, PutConversation, StoreFailedError
from turnlog.store.sqlite import open_store, reads
from turnlog.store.sqlite.migrate import migrations

if TYPE_CHECKING:
    from pathlib import Path

    from turnlog.store.sqlite import SqliteStore

pytestmark = pytest.mark.sqlite_only("the promises of this one store")


async def _open(folder: Path) -> SqliteStore:
    return await open_store(folder / "turnlog.db", idempotency_ttl_us=1)


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Every statement that recording and reading execute, as SQLite received it, with SQLite's plan for it."""
    folder = tmp_path_factory.mktemp("plans")
    executed: dict[str, object] = {}

    def remember(_cursor: object, sql: str, bindings: object) -> bool:
        executed.setdefault(sql, bindings)
        return True

    async def run() -> None:
        store = await _open(folder)
        for connection in (store._writer, store._reader):
            connection.set_exec_trace(remember)
        await exercise(store)
        await store.close()

    asyncio.run(run())
    connection = apsw.Connection(str(folder / "turnlog.db"))
    try:
        return {
            sql: [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", [0] * _parameters(sql))]
            for sql in executed
            if sql.split()[0] in ("SELECT", "INSERT", "UPDATE", "DELETE")
        }
    finally:
        connection.close()


def _parameters(sql: str) -> int:
    numbered = [int(number) for number in re.findall(r"\?(\d)", sql)]
    return max(numbered) if numbered else sql.count("?")


# What the request itself brought is walked, and so is a constant row; a table of the store never is.
_SCANS = re.compile(r"SCAN (\w+ VIRTUAL TABLE INDEX 1:|CONSTANT ROW)")


def test_every_look_up_is_an_index_search(plans: dict[str, list[str]]) -> None:
    """Whatever the size of the tables: none is scanned and nothing is sorted."""
    for sql, plan in plans.items():
        for step in plan:
            assert not step.startswith("SCAN") or _SCANS.fullmatch(step), (sql, plan)
            assert "TEMP B-TREE" not in step, (sql, plan)
        assert not sql.startswith("SELECT") or any(step.startswith("SEARCH") for step in plan), (sql, plan)


def test_the_plans_are_of_every_table(plans: dict[str, list[str]]) -> None:
    """A statement that is not executed here has no plan here."""
    everything = " ".join(plans)
    for table in ("account", "conversation", "message", "idempotency"):
        assert re.search(rf"(FROM|JOIN) {table}\b", everything), table
    for table in ("conversation", "conversation_change", "message", "idempotency", "authentication"):
        assert re.search(rf"INTO {table}\b", everything), table
    assert "UPDATE conversation" in everything
    assert "DELETE FROM idempotency" in everything


@pytest.mark.parametrize("per_instant", [1, 7, 5000], ids=["spread", "sevens", "one-instant"])
def test_a_page_costs_the_same_at_any_depth(per_instant: int, tmp_path: Path) -> None:
    """Counted in steps of SQLite's virtual machine, which no other load can blur; also where all times are equal."""

    async def fill() -> None:
        store = await _open(tmp_path)
        await store.add_key(KeyRecord(ApiKey("key-a", "tests", "a", ("read",), 1), ()))
        messages = [NewMessage(str(n), "agent", "bob", n // per_instant) for n in range(5000)]
        put = PutConversation("a", NewConversation("external", Participant("jane"), 1), "C", 1)
        await store.append([put, AppendMessages("a", "C", messages, [f"M{n}" for n in range(5000)], 1)])
        await store.close()

    asyncio.run(fill())
    connection = apsw.Connection(str(tmp_path / "turnlog.db"))
    listing = reads.Reads(connection)
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    try:
        connection.set_progress_handler(step, 1)
        costs = []
        for place in (1, 1, 2500, 4900):  # the first also reads the schema, and does not count
            steps = 0
            after = Place(place // per_instant, place + 2)  # the log begins with the conversation
            found = listing.messages("a", "C", after=after, limit=10, up_to=None, max_chars=None)
            assert [m.text for m in found or ()] == [str(n) for n in range(place + 1, place + 11)]
            costs.append(steps)
    finally:
        connection.close()
    assert max(costs[1:]) <= 2 * min(costs[1:]), costs


def test_the_writing_connection_syncs_every_commit(tmp_path: Path) -> None:
    async def look() -> None:
        store = await _open(tmp_path)
        assert store._writer.pragma("journal_mode") == "wal"
        assert store._writer.pragma("synchronous") == 2  # FULL
        assert store._reader.pragma("query_only") == 1
        await store.close()

    asyncio.run(look())


def test_migrations_are_numbered_from_one_without_a_gap_and_run_on_an_empty_file(tmp_path: Path) -> None:
    numbers = [number for number, _ in migrations()]
    assert numbers == list(range(1, len(numbers) + 1))
    (tmp_path / "turnlog.db").touch()

    async def open_and_close() -> None:
        await (await _open(tmp_path)).close()

    asyncio.run(open_and_close())
    connection = apsw.Connection(str(tmp_path / "turnlog.db"))
    try:
        assert connection.pragma("user_version") == numbers[-1]
        assert connection.pragma("integrity_check") == "ok"
    finally:
        connection.close()


async def _record(store: SqliteStore, batches: int) -> None:
    """As many batches of about 0.4 MB, in conversation C of account a."""
    await store.add_key(KeyRecord(ApiKey("key-a", "tests", "a", ("read",), 1), ()))
    await store.append([PutConversation("a", NewConversation("external", Participant("jane"), 1), "C", 1)])
    for batch in range(batches):
        messages = [NewMessage("x" * 4000, "agent", "bob", n) for n in range(100)]
        await store.append([AppendMessages("a", "C", messages, [f"M{batch}-{n}" for n in range(100)], 1)])


def test_the_wal_is_folded_into_the_database_while_recording_goes_on(tmp_path: Path) -> None:
    """It begins anew after some megabytes, however fast batches come: 60 MB pass through here."""

    async def fill() -> None:
        store = await _open(tmp_path)
        await _record(store, 150)
        sizes = [(tmp_path / name).stat().st_size for name in ("turnlog.db", "turnlog.db-wal")]
        await store.close()
        assert sizes[0] > 30e6, sizes
        assert sizes[1] < 32e6, sizes

    asyncio.run(fill())


class _FailingVfs(apsw.VFS):
    """The system's files, but for the database's own: writing to that one fails."""

    def __init__(self) -> None:
        super().__init__("failing", "")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802 - SQLite's name
        return (_FailingFile if flags[0] & apsw.SQLITE_OPEN_MAIN_DB else apsw.VFSFile)("", name, flags)


class _FailingFile(apsw.VFSFile):
    def xWrite(self, _data: bytes, _offset: int) -> None:  # noqa: N802 - SQLite's name
        raise apsw.IOError("as injected")


def test_a_checkpoint_that_fails_fails_the_store(tmp_path: Path) -> None:
    """C05: what the database holds is unknown then; the WAL has everything and is left as it is."""

    async def fill() -> None:
        store = await _open(tmp_path)
        store._checkpoints._beside.close()
        vfs = _FailingVfs()
        store._checkpoints._beside = apsw.Connection(str(tmp_path / "turnlog.db"), vfs="failing")
        assert store._checkpoints._beside.pragma("journal_mode") == "wal"  # and from now on it knows
        with pytest.raises(StoreFailedError):
            await _record(store, 150)
        with pytest.raises(StoreFailedError):
            await store.check()
        await store.close()
        assert (tmp_path / "turnlog.db-wal").stat().st_size > 0
        vfs.unregister()

    asyncio.run(fill())
