"""What PostgreSQL refuses, and sessions that it ends: answered as the contract says, and nothing stored by halves."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.failover import run
from tests.harness import V1, Key, Server, create_conversation, error_of, message, run_cli, wait_for
from tests.history import log_problems
from tests.roles import make_role, script, user_of
from tests.stores import rows

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    import httpx

    from tests.postgres import Cluster, Home

pytestmark = pytest.mark.postgresql_only("these are PostgreSQL's own faults")

QUICK_S = 3.0
"""The fault list says one second; this machine may be busy."""


def _database(url: str) -> str:
    return url.rpartition("/")[2]


def _refused(client: httpx.Client, method: str, path: str, **options: Any) -> str:
    """A request that is refused as certainly not stored, and quickly; why, as the caller is told."""
    began_at = time.monotonic()
    answer = client.request(method, path, **options)
    assert time.monotonic() - began_at < QUICK_S
    assert int(answer.headers["retry-after"]) >= 1
    return error_of(answer, "503-01")


def _texts(client: httpx.Client, path: str) -> list[str]:
    return [item["text"] for item in client.get(path).raise_for_status().json()["items"]]


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    """A server on a database of the test's own."""
    return start()


@pytest.fixture
def key(server: Server) -> Key:
    return server.create_key("tests")


@pytest.fixture
def client(server: Server, key: Key) -> Iterator[httpx.Client]:
    with server.client(key) as client:
        yield client


@pytest.fixture
def path(client: httpx.Client) -> str:
    """Of the messages of a conversation that has none."""
    return f"{V1}/conversations/{create_conversation(client, 'c')}/messages"


# P01: sessions ended by an administrator.


def _known(key: Key, *servers: Server) -> None:
    for server in servers:
        with server.client(key):
            pass  # waits until the key is known


def _counted(event: str, *servers: Server) -> int:
    """How many writes the servers' logs speak of."""
    return sum(line["writes"] for server in servers for line in server.log if line["event"] == event)


@contextmanager
def _reading(client: httpx.Client, *paths: str) -> Iterator[Counter[int]]:
    """Read again and again; how often with which status."""
    ended = threading.Event()
    statuses: Counter[int] = Counter()

    def read() -> None:
        while not ended.wait(0.01):
            statuses.update(client.get(path).status_code for path in paths)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        try:
            yield statuses
        finally:
            ended.set()
        reading.result()


def test_sessions_ended_again_and_again_under_load(cluster: Cluster, start: Callable[..., Server]) -> None:
    """P01: INV; what was under way is resolved, callers mostly hear of nothing; the pools fill again."""
    url = cluster.create_database()
    first, second = start(store=url), start(store=url)
    key = first.create_key("load")
    _known(key, first, second)

    def fail() -> float:
        for _ in range(4):
            assert cluster.terminate_backends(_database(url)), "invalid run: nobody was connected"
        return time.perf_counter()

    with second.client(key) as client:
        one = f"{V1}/conversations/{create_conversation(client, 'read')}"
        with _reading(client, one, f"{one}/messages", "/readyz") as read:
            figures = asyncio.run(run((first, second), key, fail, rounds=3))
    resolved, unknown = _counted("outcome_resolved", first, second), _counted("outcome_unknown", first, second)
    sessions = cluster.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", _database(url))
    print(  # noqa: T201 - the figures of the run
        f"\n{figures.acknowledged} messages acknowledged, {resolved} writes resolved, {unknown} unknown, "
        f"{figures.retried} requests sent again; {dict(figures.codes)}; sessions {sessions}; "
        f"reads {dict(read)}"
    )
    assert set(read) <= {200, 503}
    assert read[200] > read[503]
    assert figures.problems == []
    assert log_problems(url) == []
    assert resolved, "invalid run: no session was ended at a busy moment"
    assert resolved > unknown
    assert {code for code in figures.codes if code[0] == "5"} <= {"503-01", "503-02"}
    assert sessions[0][0] <= 2 * 8
    assert [server.stop() for server in (first, second)] == [0, 0]


async def _end_commits(url: str, database: str) -> None:
    """Make commits wait for a standby that there is not; end the sessions that wait, whose rows are on disk by then."""
    connection = await asyncpg.connect(url)
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = $1 AND wait_event = 'SyncRep'"
    try:
        await connection.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await connection.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(20):
            while not (found := await connection.fetch(waiting, database)):
                pass
        for (pid,) in found:
            await connection.execute("SELECT pg_terminate_backend($1, 10000)", pid)
    finally:
        await connection.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()


def test_sessions_ended_during_their_commit(cluster: Cluster, start: Callable[..., Server]) -> None:
    """P01: committed, and the answer never came. What is read back is there once, with or without a key."""
    url = cluster.create_database()
    server = start(store=url)
    key = server.create_key("load")
    _known(key, server)

    def fail() -> float:
        asyncio.run(_end_commits(cluster.url(), _database(url)))
        return time.perf_counter()

    figures = asyncio.run(run((server,), key, fail, rounds=3))
    resolved, unknown = _counted("outcome_resolved", server), _counted("outcome_unknown", server)
    print(f"\n{resolved} writes resolved, {unknown} unknown; {dict(figures.codes)}")  # noqa: T201 - figures
    assert figures.problems == []
    assert log_problems(url) == []
    assert resolved, "invalid run: no batch was resolved"
    assert {code for code in figures.codes if code[0] == "5"} <= {"503-01", "503-02"}


# P07: transactions that stand in each other's way.

CONFLICT = """
    CREATE SEQUENCE turnlog.conflicts;
    CREATE FUNCTION turnlog.conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('turnlog.conflicts') <= {count} THEN RAISE EXCEPTION 'made up' USING ERRCODE = '{state}'; END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER conflict BEFORE INSERT ON turnlog.message FOR EACH ROW EXECUTE FUNCTION turnlog.conflict();
"""
NO_CONFLICT = """
    DROP TRIGGER IF EXISTS conflict ON turnlog.message;
    DROP FUNCTION IF EXISTS turnlog.conflict;
    DROP SEQUENCE IF EXISTS turnlog.conflicts;
"""


@contextmanager
def _failing(url: str, state: str, count: int = 2**31) -> Iterator[None]:
    """Let the first ``count`` insertions of messages fail, also those that are rolled back."""
    script(url, CONFLICT.format(state=state, count=count))
    yield
    script(url, NO_CONFLICT)


@pytest.mark.parametrize("refuse_repeats", [False, True], ids=["one-statement", "transaction"])
def test_conflicts_are_tried_again_three_times(server: Server, path: str, key: Key, *, refuse_repeats: bool) -> None:
    """P07: deadlock, serialization failure, lock timeout; a sequence counts also what was rolled back."""
    if refuse_repeats:
        key = server.create_key("strict", "--refuse-repeats")
    stored = []
    with server.client(key) as client:
        for state in ("40001", "40P01", "55P03"):
            for count in (1, 3):
                with _failing(server.url, state, count):
                    stored.append(f"{state} {count}")
                    headers = {"idempotency-key": stored[-1]}
                    answer = client.post(path, json=message(stored[-1]), headers=headers)
                    assert answer.status_code == 200, answer.text
            with _failing(server.url, state, 4):
                _refused(client, "POST", path, json=message("too many"), headers={"idempotency-key": "k"})
                assert rows(server.url, "SELECT last_value FROM conflicts") == [(4,)]
        assert _texts(client, path) == stored
        # The refused request did not use up its key.
        assert client.post(path, json=message("another"), headers={"idempotency-key": "k"}).status_code == 200
    assert log_problems(server.url) == []


@asynccontextmanager
async def _locked(url: str, account: str) -> AsyncIterator[None]:
    """Another session holds what recording in an account begins with."""
    connection = await asyncpg.connect(url)
    async with connection.transaction():
        lock = "SELECT FROM turnlog.log JOIN turnlog.account USING (account) WHERE name = $1 FOR UPDATE OF log"
        await connection.execute(lock, account)
        yield
    await connection.close()


def test_an_account_that_is_held_up_is_refused_in_time_and_holds_up_no_other(start: Callable[..., Server]) -> None:
    """P07: four attempts end before the deadline, so it is known that nothing is stored."""
    deadline_s = 4.0
    server = start(environment={"TURNLOG_WRITE_DEADLINE_S": str(deadline_s)})
    keys = {account: server.create_key(account, "--account", account) for account in ("held", "free")}
    with server.client(keys["held"]) as held, server.client(keys["free"]) as free:
        paths = [f"{V1}/conversations/{create_conversation(one, 'c')}/messages" for one in (held, free)]

        async def scenario() -> None:
            async with _locked(server.url, "held"):
                began_at = time.monotonic()
                refusal = asyncio.create_task(asyncio.to_thread(held.post, paths[0], json=message("held up")))
                count = 0
                while not refusal.done():
                    sent_at = time.monotonic()
                    answer = await asyncio.to_thread(free.post, paths[1], json=message())
                    assert answer.status_code == 200
                    assert time.monotonic() - sent_at < QUICK_S
                    count += 1
                error_of(refusal.result(), "503-01")
                assert deadline_s / 2 < time.monotonic() - began_at < deadline_s + QUICK_S
                assert count > 10, "the other account was held up"

        asyncio.run(scenario())
        assert _texts(held, paths[0]) == []
        assert held.post(paths[0], json=message("at last")).status_code == 200


def test_an_error_that_ends_the_session_is_no_bug_of_ours(server: Server, client: httpx.Client, path: str) -> None:
    """Whatever the error is: the batch is read back and tried again on another connection."""
    rows(server.url, f"ALTER DATABASE {_database(server.url)} SET exit_on_error = on")
    ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'turnlog'"
    rows(server.url, f"{ended} AND datname = current_database()")
    with _failing(server.url, "P0001", 1):
        assert client.post(path, json=message("once")).status_code == 200
    assert _texts(client, path) == ["once"]
    assert _counted("outcome_resolved", server) == 1


# P08: what the server runs out of.


@pytest.fixture
def clerk(new_store: Callable[[], str]) -> str:
    """The URL of a store for a role that is nobody special: limits are not for superusers."""
    url = new_store()
    assert run_cli("migrate", "--store", url).returncode == 0
    return make_role(url)


def _limit(cluster_url: str, user: str, connections: int) -> None:
    """Let the role have so many connections, and end those that it has."""
    script(cluster_url, f"ALTER ROLE {user} CONNECTION LIMIT {connections}")
    rows(cluster_url, f"SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE usename = '{user}'")  # noqa: S608


def test_too_many_connections(clerk: str, new_store: Callable[[], str], start: Callable[..., Server]) -> None:
    """P08: refused quickly and not stored while none is to be had, at the start and later; then all is well again."""
    other, user = new_store(), user_of(clerk)
    _limit(other, user, 0)
    server = start(store=clerk)
    with server.client() as anybody:
        assert _refused(anybody, "GET", "/readyz")
        _limit(other, user, -1)
        wait_for(lambda: anybody.get("/readyz").status_code == 200)
    with server.client(server.create_key("tests")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert client.post(path, json=message("before")).status_code == 200
        _limit(other, user, 0)
        for _ in range(3):
            _refused(client, "POST", path, json=message("meanwhile"))
            _refused(client, "GET", path)
        _limit(other, user, -1)
        wait_for(lambda: client.get("/readyz").status_code == 200)
        wait_for(lambda: client.post(path, json=message("after")).status_code == 200)
        assert _texts(client, path) == ["before", "after"]


def test_what_the_server_lacks_is_no_bug_of_ours(server: Server, client: httpx.Client, path: str) -> None:
    """P08: disk full, out of memory, a limit of its own, an I/O error; a statement that is cancelled or forbidden."""
    for state in ("53100", "53200", "53400", "58030", "57014", "42501"):
        with _failing(server.url, state):
            for sent in (path, path + "/batch"):
                body = message() if sent == path else {"messages": [message()] * 3}
                _refused(client, "POST", sent, json=body, headers={"idempotency-key": "k"})
            assert _texts(client, path) == []
    assert client.post(path, json=message("after"), headers={"idempotency-key": "k"}).status_code == 200
    assert _texts(client, path) == ["after"]
    assert log_problems(server.url) == []


@pytest.fixture
def small_disk(postgresql: Home) -> Iterator[Path]:
    """A folder of PostgreSQL's on a disk of a few megabytes."""
    folder = Path(tempfile.mkdtemp(prefix="turnlog-small-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("a disk is mounted only where the tests run as root and may")
    try:
        owner = postgresql.folder.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def test_a_full_disk(small_disk: Path, server: Server, client: httpx.Client, path: str) -> None:
    """P08: refused as certainly not stored, reads go on, and it records again by itself when there is space."""
    rows(server.url, f"CREATE TABLESPACE small LOCATION '{small_disk}'")
    rows(server.url, "ALTER TABLE message SET TABLESPACE small")
    stored: list[str] = []
    wide = "a".join(map(str, range(20_000)))  # compresses badly
    while (answer := client.post(path, json=message(f"{len(stored)} {wide}"))).status_code == 200:
        stored.append(answer.json()["id"])
        assert len(stored) < 1000, "invalid run: the disk does not become full"
    error_of(answer, "503-01")
    _refused(client, "POST", path, json=message(wide), headers={"idempotency-key": "k"})
    assert [item["messageId"] for item in client.get(path).json()["items"]] == stored
    rows(server.url, "ALTER TABLE message SET TABLESPACE pg_default")
    answer = client.post(path, json=message(wide), headers={"idempotency-key": "k"})
    assert answer.status_code == 200, answer.text
    assert [item["messageId"] for item in client.get(path).json()["items"]] == [*stored, answer.json()["id"]]
    rows(server.url, "DROP TABLESPACE small")
