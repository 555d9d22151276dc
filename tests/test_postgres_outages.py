"""PostgreSQL away: not there yet, gone, started again, frozen, read-only; and a server of ours that stops.

Nobody restarts Turnlog.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.failover import run
from tests.harness import V1, Key, Server, conversation, create_conversation, error_of, message, wait_for
from tests.history import Caller, log_problems
from tests.stores import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.postgres import Cluster

pytestmark = pytest.mark.postgresql_only("only a store at the other end of a network can be away")

QUICK_S = 3.0
"""The fault list says one second; this machine may be busy."""


@contextmanager
def _alive(server: Server) -> Iterator[None]:
    """All the while the server says at once that it is alive: its event loop waits for nobody."""
    ended = threading.Event()
    slowest = [0.0]
    answers: set[int] = set()

    def watch() -> None:
        with httpx.Client(base_url=server.base, timeout=30) as client:
            while not (answers and ended.wait(0.02)):
                asked_at = time.monotonic()
                answers.add(client.get("/livez").status_code)
                slowest.append(time.monotonic() - asked_at)

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            ended.set()
        watching.result()
    assert answers == {200}
    assert max(slowest) < 1


def _refused(client: httpx.Client, method: str, path: str, **options: Any) -> None:
    """A request that is refused as certainly not done, and quickly."""
    began_at = time.monotonic()
    answer = client.request(method, path, **options)
    assert time.monotonic() - began_at < QUICK_S, path
    error_of(answer, "503-01")
    assert int(answer.headers["retry-after"]) >= 1


def _check_refused(client: httpx.Client, path: str) -> None:
    """Every operation is."""
    one = path.removesuffix("/messages")
    requests = [
        ("POST", f"{V1}/conversations", conversation("other")),
        ("GET", f"{V1}/conversations?externalId=c", None),
        ("GET", one, None),
        ("POST", path, message("never")),
        ("POST", f"{path}/batch", {"messages": [message("never")] * 2}),
        ("GET", path, None),
        ("GET", f"{path}?limit=1", None),
        ("GET", f"{path}/01BX5ZZKBKACTAV9WEVGEMMVS1", None),
        ("GET", f"{V1}/conversation/messages?externalId=c", None),
        ("POST", f"{one}/authenticate", {"customerExternalId": "jane", "auth": {"token": "t"}}),
        ("GET", "/readyz", None),
    ]
    for method, where, body in requests:
        _refused(client, method, where, json=body)
    assert client.get("/v1/health").json() == {"healthCheck": "FAILED"}
    assert client.get("/metrics").status_code == 200


def _texts(client: httpx.Client, path: str) -> list[str]:
    return [item["text"] for item in client.get(path).raise_for_status().json()["items"]]


# P02.


@pytest.mark.parametrize("end", ["immediate", "kill"])
def test_a_crash_and_a_start_of_the_database_under_load(
    cluster: Cluster, start: Callable[..., Server], end: str
) -> None:
    """P02: INV, and back within two seconds of the database."""
    url = cluster.create_database()
    server = start(store=url)
    key = server.create_key("load")
    with server.client(key):
        pass  # waits until the key is known

    def fail() -> float:
        cluster.stop("immediate") if end == "immediate" else cluster.kill()
        cluster.start()
        return time.perf_counter()

    figures = asyncio.run(run((server,), key, fail, rounds=3))
    resolved = sum(line["event"] == "outcome_resolved" for line in server.log)
    print(  # noqa: T201 - the figures of the run
        f"\n{end}: {figures.acknowledged} messages acknowledged, {resolved} batches resolved, {figures.retried} "
        f"requests sent again; {dict(figures.codes)}; back after {[round(s, 2) for s in figures.all_s]} s"
    )
    assert figures.problems == []
    assert log_problems(url) == []
    assert figures.retried or resolved, "invalid run: no crash hit a busy moment"
    assert {code for code in figures.codes if code[0] == "5"} <= {"503-01", "503-02"}
    assert max(figures.all_s) < 6, "the fault list says two seconds; this machine may be busy"
    assert server.stop() == 0


# P04.


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "initialised"])
def test_the_database_is_down_at_the_start(cluster: Cluster, start: Callable[..., Server], *, empty: bool) -> None:
    """P04: it starts, says that it is not ready, and needs no restart when the database comes."""
    url = cluster.create_database()
    key = Key("turnlog_id_unknown", "turnlog_sk_unknown")
    if not empty:
        with Server(url) as first:
            key = first.create_key("tests")
            assert first.stop() == 0
    cluster.stop()
    server = start(store=url)
    with _alive(server), httpx.Client(base_url=server.base, headers=key.headers, timeout=30) as client:
        for method, where in (("GET", "/readyz"), ("POST", f"{V1}/conversations"), ("GET", f"{V1}/conversations/C")):
            _refused(client, method, where, json=conversation("c"))
        cluster.start()
        wait_for(lambda: client.get("/readyz").status_code == 200)
    if empty:
        key = server.create_key("tests")
    with server.client(key) as client:
        wait_for(lambda: client.get("/v1/health").json() == {"healthCheck": "SUCCESS"})
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert client.post(path, json=message("first")).status_code == 200
        assert _texts(client, path) == ["first"]
    assert server.stop() == 0


def test_the_database_goes_and_comes_back(cluster: Cluster, start: Callable[..., Server]) -> None:
    """P04: writes and reads are refused as certainly not done, never as a bug; then all goes on."""
    server = start(store=cluster.create_database())
    with server.client(server.create_key("tests")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert client.post(path, json=message("before")).status_code == 200
        cluster.stop()
        with _alive(server):
            _check_refused(client, path)
        cluster.start()
        wait_for(lambda: client.get("/readyz").status_code == 200)
        wait_for(lambda: client.post(path, json=message("after")).status_code == 200)
        assert _texts(client, path) == ["before", "after"]
    assert server.stop() == 0
    assert not [line for line in server.log if line["event"] == "internal_error"]


def test_a_frozen_database(cluster: Cluster, start: Callable[..., Server]) -> None:
    """P04: what was under way is unknown at the deadline, the rest is refused; the server itself never stands still."""
    deadline_s = 1.5
    server = start(store=cluster.create_database(), environment={"TURNLOG_WRITE_DEADLINE_S": str(deadline_s)})
    with server.client(server.create_key("tests")) as client, ThreadPoolExecutor(4) as pool:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert client.post(path, json=message("before")).status_code == 200
        cluster.freeze()
        with _alive(server):
            frozen_at = time.monotonic()
            ready = pool.submit(client.get, "/readyz")
            read = pool.submit(client.get, path)
            unknown = client.post(path, json=message("unknown"), headers={"idempotency-key": "k"})
            error_of(unknown, "503-02")
            assert deadline_s * 0.9 < time.monotonic() - frozen_at < deadline_s + QUICK_S
            error_of(ready.result(), "503-01")
            assert time.monotonic() - frozen_at < 2 * QUICK_S
            error_of(read.result(), "503-01")
            _refused(client, "POST", path, json=message("never"))
        cluster.thaw()
        wait_for(lambda: client.get("/readyz").status_code == 200)
        wait_for(lambda: client.post(path, json=message("after")).status_code == 200)
        again = client.post(path, json=message("unknown"), headers={"idempotency-key": "k"})
        assert again.status_code == 200
        assert sorted(_texts(client, path)) == ["after", "before", "unknown"]
    assert log_problems(server.url) == []
    assert server.stop() == 0


# P09: the server may not be written to any more.


def test_a_server_that_turns_read_only(cluster: Cluster, start: Callable[..., Server]) -> None:
    """P09: writes are refused, reads go on; recording goes on by itself when it may."""
    server = start(store=cluster.create_database())
    with server.client(server.create_key("tests")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert client.post(path, json=message("before")).status_code == 200
        for round_ in range(2):
            cluster.configure(default_transaction_read_only="on")
            wait_for(lambda: client.post(path, json=message("never")).status_code != 200)
            for _ in range(3):
                _refused(client, "POST", path, json=message("never"))
                assert "never" not in _texts(client, path)
            cluster.configure(default_transaction_read_only="off")
            text = f"after {round_}"
            wait_for(lambda: client.post(path, json=message(text)).status_code == 200)  # noqa: B023 - called at once
        assert _texts(client, path) == ["before", "after 0", "after 1"]
    assert server.stop() == 0


def _either(first: Cluster, second: Cluster, database: str) -> str:
    """The URL of a database that one of two servers has for writing."""
    address = f"127.0.0.1:{first.port}"
    return first.url(database).replace(address, f"{address},127.0.0.1:{second.port}")


@pytest.mark.parametrize("old", ["stopped", "read-only"])
def test_a_server_that_hands_over_to_its_standby(cluster: Cluster, start: Callable[..., Server], old: str) -> None:
    """P09: nothing acknowledged is missing, and what is recorded on the new one is read from the new one.

    Where the old one goes on answering, the connections to it do not break: they must be given up all the same.
    """
    database = cluster.create_database().rpartition("/")[2]
    standby = cluster.standby()
    server = start(store=_either(cluster, standby, database))
    with server.client(server.create_key("tests")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert client.post(path, json=message("before")).status_code == 200
        assert _texts(client, path) == ["before"]
        if old == "stopped":
            cluster.stop()
        else:
            cluster.configure(default_transaction_read_only="on")
        _refused(client, "POST", path, json=message("never"))
        standby.promote()
        wait_for(lambda: client.post(path, json=message("after")).status_code == 200)
        wait_for(lambda: client.get(path).status_code == 200)
        for _ in range(20):  # whichever connection answers
            assert _texts(client, path) == ["before", "after"]
        assert client.post(path, json=message("and on")).status_code == 200
        assert _texts(client, path) == ["before", "after", "and on"]
    assert log_problems(standby.url(database)) == []
    assert server.stop() == 0


# A server that stops where it may hold others up.

# A transaction with a number has locked the account.
_HELD = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'turnlog'
        AND state = 'idle in transaction' AND backend_xid IS NOT NULL
"""


async def _stop_in_a_transaction(server: Server, key: Key) -> None:
    """Let it change a conversation again and again, which takes many statements; stop it between two of them."""

    async def change(number: int) -> None:
        caller = Caller(server.port, key.headers)
        try:
            for count in itertools.count(1):
                body = conversation(f"busy-{number}", metadata={"count": str(count)})
                await caller.ask("POST", f"{V1}/conversations", body)
        finally:
            await caller.close()

    changing = [asyncio.create_task(change(number)) for number in range(4)]
    try:
        async with asyncio.timeout(60):
            while True:
                await asyncio.sleep(0.01)
                os.kill(server.worker_pid, signal.SIGSTOP)
                # What it had sent is done by the second look; what is then in a transaction stays there.
                held = [await asyncio.to_thread(rows, server.url, _HELD) for _ in range(2)]
                if held[1] != [(0,)]:
                    return
                os.kill(server.worker_pid, signal.SIGCONT)
    finally:
        for task in changing:
            task.cancel()
        await asyncio.gather(*changing, return_exceptions=True)


def test_a_server_stopped_in_a_transaction_holds_up_the_others_for_seconds_only(start: Callable[..., Server]) -> None:
    """C07 on a shared store. The database gives up on it, and what it was about is there once or not at all."""
    stopped, other = start(), start()
    key = stopped.create_key("tests")
    with stopped.client(key), other.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        asyncio.run(_stop_in_a_transaction(stopped, key))
        stopped_at = time.monotonic()
        answer = client.post(path, json=message("through the other one"))
        waited_s = time.monotonic() - stopped_at
        os.kill(stopped.worker_pid, signal.SIGCONT)
        assert answer.status_code == 200, answer.text
        assert waited_s < 6, "two seconds are the database's patience; this machine may be busy"
        print(f"\nheld up for {waited_s:.1f} s")  # noqa: T201 - the figure of the run
    with stopped.client(key) as client:
        wait_for(lambda: client.post(path, json=message("and through this one")).status_code == 200)
        assert _texts(client, path) == ["through the other one", "and through this one"]
    changes = rows(stopped.url, "SELECT conversation, state FROM conversation_change ORDER BY position")
    counts: dict[int, list[int]] = {}
    for number, state in changes:
        counts.setdefault(number, []).append(int((json.loads(state)["metadata"] or {"count": "0"})["count"]))
    assert all(seen == sorted(set(seen)) for seen in counts.values()), counts
    assert log_problems(stopped.url) == []
    assert [server.stop() for server in (stopped, other)] == [0, 0]
    assert not [line for line in stopped.log if line["event"] == "internal_error"]
