"""A server whose worker dies, fails or stands still: its port outlives it, and nothing acknowledged goes with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import apsw
import httpx
import pytest

from tests.harness import V1, Server, conversation, create_conversation, error_of, message, wait_for
from tests.history import Caller, Listings, Load, check, log_problems, read_listings
from tests.stores import path_of, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Key

KILLS = 5
KEYS = [f"k{number}" for number in range(8)]
OF_A_FILE = pytest.mark.sqlite_only("the process that writes the file is the server's own")


def kill_worker(server: Server) -> None:
    """``kill -9``; returns once there is another."""
    pid = server.worker_pid
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: server.worker_pids not in ([], [pid]))


def stop_for(server: Server, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> None:
    """The worker stands still for so long."""
    pid, since = server.worker_pid, time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    meanwhile()
    wait_for(lambda: time.monotonic() - since > seconds)
    os.kill(pid, signal.SIGCONT)


def ends(server: Server) -> list[dict[str, Any]]:
    """The ends of workers that were logged."""
    return [event for event in server.log if event["event"] == "worker_ended"]


@contextlib.contextmanager
def knocking(server: Server) -> Iterator[list[OSError]]:
    """Open connections, one after the other, to the end of the block; those that were refused."""
    refused: list[OSError] = []
    over = threading.Event()

    def knock() -> None:
        while not over.wait(0.001):
            try:
                socket.create_connection(("127.0.0.1", server.port), timeout=30).close()
            except ConnectionResetError:
                pass  # taken by the one that died
            except OSError as error:
                refused.append(error)

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        yield refused
    finally:
        over.set()
        thread.join()


@contextlib.contextmanager
def begun(server: Server, key: Key, path: str) -> Iterator[None]:
    """A request is under way to the end of the block: its head was taken, and no body comes."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in key.headers.items())
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{fields}content-type: application/json\r\ncontent-length: 9\r\n"
    with server.connection() as connection:
        connection.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(4096).startswith(b"HTTP/1.1 100 ")
        yield


def test_a_worker_killed_under_load_again_and_again_costs_no_caller_more_than_a_retry(
    start: Callable[..., Server],
) -> None:
    """C01: no connection is refused; nothing acknowledged is lost, doubled or reordered; keys hold."""
    server = start()
    key = server.create_key("load")
    with server.client(key):
        pass  # waits until the key is known

    async def scenario() -> tuple[Load, Listings]:
        caller = Caller(server.port, key.headers)
        names = [(await caller.ask("POST", f"{V1}/conversations", conversation(f"c{n}")))[1]["id"] for n in range(3)]
        await caller.close()
        load = Load(server.port, key.headers, names, seed=6)
        load.up.set()
        running = asyncio.create_task(load.run(8))
        for _ in range(KILLS):
            load.want(60)
            await asyncio.wait_for(load.acknowledged.wait(), 60)
            await asyncio.to_thread(kill_worker, server)
        load.want(60)
        await asyncio.wait_for(load.acknowledged.wait(), 60)
        load.stopping = True
        await asyncio.wait_for(running, 60)
        listings = await read_listings(caller, names, page=1000)
        await caller.close()
        return load, listings

    with knocking(server) as refused:
        load, listings = asyncio.run(scenario())
    assert refused == []
    assert load.broken, "invalid run: no kill hit a request under way"
    assert set(load.statuses) <= {200, 400}, load.statuses
    assert check(load.history.requests, listings) == []
    assert [(event["signal"], event["next_in_s"]) for event in ends(server)] == [("SIGKILL", 0.0)] * KILLS
    assert sum(event["event"] == "listening" for event in server.log) == 1
    assert server.stop() == 0
    assert log_problems(server.url) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the worker drains first")
def test_a_kill_9_of_the_parent_frees_port_and_file_at_once(start: Callable[..., Server]) -> None:
    """Also with a request under way, for which a stop would wait."""
    server = start()
    key = server.create_key("tests")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        client.post(path, json=message("kept")).raise_for_status()
    for _ in range(2):
        with begun(server, key, path):
            os.kill(server.pid, signal.SIGKILL)
            assert server.wait() == -signal.SIGKILL  # of the parent; the worker may still be about to go
            server.start()
    with server.client(key) as client:
        assert [item["text"] for item in client.get(path).json()["items"]] == ["kept"]


# The store fails.


@OF_A_FILE
def test_a_failed_store_ends_the_worker_and_the_next_one_has_everything(start: Callable[..., Server]) -> None:
    """C09: who waits is told 503-02; the process ends with a status, is replaced, and nothing acknowledged is missing.

    A file-size limit makes every write fail with EFBIG, which SQLite reports as an I/O error. A request whose body does
    not come, for which a stop would wait, keeps the end up for less than a second.
    """
    server = start()
    key = server.create_key("tests")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        ids = [client.post(path, json=message(str(n))).json()["id"] for n in range(10)]
        failing = server.worker_pid
        with begun(server, key, path):
            resource.prlimit(failing, resource.RLIMIT_FSIZE, (1, 1))
            error_of(client.post(path, json=message("unknown")), "503-02")
            failed_at = time.monotonic()
            wait_for(lambda: server.worker_pids != [failing])
            assert time.monotonic() - failed_at < 3, "within a second, but this machine may be busy"
        assert client.get("/readyz").status_code == 200
        listed = [(m["messageId"], m["text"]) for m in client.get(path).json()["items"] if "unknown" not in m["text"]]
        assert listed == [(ids[n], str(n)) for n in range(10)]
        assert client.post(path, json=message("after")).status_code == 200
    assert [event["status"] for event in ends(server)] == [1]
    assert [event["level"] for event in server.log if event["event"] == "store_failed"] == ["error"]
    assert server.stop() == 0


# Killed, or standing still, in the middle of a request.


@pytest.fixture
def place(start: Callable[..., Server]) -> tuple[Server, Key, str]:
    """A server that answers within a second, a key, the path of a conversation's messages."""
    server = start(environment={"TURNLOG_WRITE_DEADLINE_S": "1"})
    key = server.create_key("tests")
    with server.client(key) as client:
        return server, key, f"{V1}/conversations/{create_conversation(client, 'c')}/messages"


Answers = list[Future[httpx.Response | None]]


@contextlib.contextmanager
def asked(server: Server, key: Key, path: str) -> Iterator[tuple[Answers, Callable[[], None]]]:
    """Keyed requests, of which one is under way and others wait behind it; ``None`` where no answer comes.

    Nothing can be recorded in the file before the function is called, or the block ends.
    """

    def send(client: httpx.Client, one: str) -> httpx.Response | None:
        with contextlib.suppress(httpx.TransportError):
            return client.post(path, json=message(one), headers={"idempotency-key": one})
        return None

    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.client(key)) for _ in KEYS]
        pool = stack.enter_context(ThreadPoolExecutor(len(KEYS)))
        blocking = stack.enter_context(
            contextlib.closing(apsw.Connection(str(path_of(server.url)), flags=apsw.SQLITE_OPEN_READWRITE))
        )
        blocking.execute("BEGIN IMMEDIATE")
        answers = [pool.submit(send, *one) for one in zip(clients, KEYS, strict=True)]
        wait_for(lambda: queued(server) > 0)
        yield answers, blocking.close


def queued(server: Server) -> float:
    """How many messages wait behind the transaction that is under way."""
    with server.client() as client:
        lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("turnlog_queue_rows ")).split()[1])


def retried(server: Server, key: Key, path: str, keys: list[str]) -> list[str]:
    """Send the requests again with their keys; the ids, after checking that each is recorded once."""
    with server.client(key) as client:
        answers = [client.post(path, json=message(one), headers={"idempotency-key": one}) for one in keys]
        assert [answer.status_code for answer in answers] == [200] * len(keys)
        items = client.get(path).json()["items"]
        ids = [str(answer.json()["id"]) for answer in answers]
    assert sorted(item["text"] for item in items) == sorted(keys)
    assert sorted(item["messageId"] for item in items) == sorted(ids)
    return ids


def test_killed_after_the_commit_and_before_the_answer(place: tuple[Server, Key, str]) -> None:
    """C03: the row is there, and nobody has read the answer; the retry gets that row's id, and there is one row."""
    server, key, path = place
    body = json.dumps(message("k")).encode()
    fields = "".join(f"{name}: {value}\r\n" for name, value in key.headers.items())
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{fields}idempotency-key: k\r\ncontent-type: application/json\r\n"
    with server.connection() as unread:
        unread.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: rows(server.url, "SELECT 1 FROM message"))
        kill_worker(server)
    ((recorded,),) = rows(server.url, "SELECT id FROM message")
    assert retried(server, key, path, ["k"]) == [recorded]


@OF_A_FILE
def test_killed_while_queued(place: tuple[Server, Key, str]) -> None:
    """C03: nothing was acknowledged, and each retry stores once."""
    server, key, path = place
    with asked(server, key, path) as (answers, _):
        kill_worker(server)
        assert [answer.result() for answer in answers] == [None] * len(KEYS)
    assert rows(server.url, "SELECT 1 FROM message") == []
    retried(server, key, path, KEYS)


@OF_A_FILE
def test_what_expires_while_the_worker_stands_still_is_not_acknowledged_late(place: tuple[Server, Key, str]) -> None:
    """C07: one write is under way and others are queued when it is stopped, for longer than their deadline."""
    server, key, path = place
    with asked(server, key, path) as (answers, let_go):
        stop_for(server, 2, let_go)
    for answer in answers:
        refused = answer.result()
        assert refused is not None
        assert (refused.status_code, refused.json()["error"]["code"]) in ((503, "503-01"), (503, "503-02"))
    retried(server, key, path, KEYS)
    assert ends(server) == []


def test_a_worker_that_stood_still_under_load_loses_nothing(place: tuple[Server, Key, str]) -> None:
    """C07: those that it had not read yet are answered then, as if they had just come."""
    server, key, path = place

    async def scenario() -> tuple[Load, Listings]:
        name = path.split("/")[-2]
        load = Load(server.port, key.headers, [name], seed=7)
        load.up.set()
        running = asyncio.create_task(load.run(8))
        for _ in range(2):
            load.want(100)
            await asyncio.wait_for(load.acknowledged.wait(), 60)
            await asyncio.to_thread(stop_for, server, 1.5)
        load.want(100)
        await asyncio.wait_for(load.acknowledged.wait(), 60)
        load.stopping = True
        await asyncio.wait_for(running, 60)
        caller = Caller(server.port, key.headers)
        listings = await read_listings(caller, [name], page=1000)
        await caller.close()
        return load, listings

    load, listings = asyncio.run(scenario())
    assert set(load.statuses) <= {200, 400, 503}, load.statuses
    assert check(load.history.requests, listings) == []
    assert load.broken == 0
    assert ends(server) == []


# Short of memory.


@OF_A_FILE
def test_a_worker_that_runs_out_of_memory_loses_nothing(start: Callable[..., Server]) -> None:
    """C08: callers are refused, get 500-01 or are cut off; what was acknowledged stays, and each retry stores once."""
    server = start()
    key = server.create_key("tests")
    bodies = [{"messages": [message(f"{number}/{n} {'x' * 4000}") for n in range(200)]} for number in range(40)]
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"

        def send(number: int) -> tuple[int, list[str]]:
            """The status, 0 where no answer came, and ids."""
            try:
                fields = {"idempotency-key": f"k{number}"}
                answer = client.post(f"{path}/batch", json=bodies[number], headers=fields)
            except httpx.TransportError:
                return 0, []
            if answer.status_code == 200:
                return 200, answer.json()["ids"]
            error_of(answer, "503-01" if answer.status_code == 503 else "500-01")
            return answer.status_code, []

        limited = server.worker_pid
        most = _address_space(limited) + 6 * 2**20
        resource.prlimit(limited, resource.RLIMIT_AS, (most, most))
        with ThreadPoolExecutor(20) as pool:
            first = list(pool.map(send, range(len(bodies))))
        assert {status for status, _ in first} - {200, 503}, "invalid run: nobody felt the limit"
        with contextlib.suppress(ProcessLookupError):
            os.kill(limited, signal.SIGKILL)  # the limit went with it, unless it has borne it
        wait_for(lambda: server.worker_pids not in ([], [limited]))
        again = [send(number) for number in range(len(bodies))]
        items = client.get(path).json()["items"]
    assert {status for status, _ in again} == {200}
    assert all(ids in ([], then) for (_, ids), (_, then) in zip(first, again, strict=True))
    assert sorted(item["messageId"] for item in items) == sorted(one for _, ids in again for one in ids)
    assert sorted(item["text"] for item in items) == sorted(m["text"] for body in bodies for m in body["messages"])


def _address_space(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(status.partition("VmSize:")[2].split()[0]) * 1024
