"""Several workers on one port: each may die at any time, and from outside they are one server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import (
    TURNLOG,
    V1,
    Server,
    clean_environment,
    conversation,
    create_conversation,
    error_of,
    message,
    run_cli,
    wait_for,
)
from tests.history import Caller, Listings, Load, check, log_problems, read_listings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Key

pytestmark = pytest.mark.postgresql_only("one process keeps a SQLite file to itself")

WORKERS = 3
HEALTH = "/v1/health"


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    """A server with workers, of the test's own."""
    return start("--workers", str(WORKERS))


def pids(server: Server) -> dict[int, int]:
    """The process of each worker, by its number."""
    return {event["worker"]: event["pid"] for event in server.log if event["event"] == "worker_ready"}


def count(server: Server, event: str) -> int:
    return sum(one["event"] == event for one in server.log)


def gone(pid: int) -> bool:
    """Whether the process has ended; nobody may be there to take note of it."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] == b"Z"
    return True


def refuses_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def samples(client: httpx.Client) -> dict[str, dict[str, float]]:
    """Every sample of one scrape, by its name and labels but the worker's, then by the worker ("" where none)."""
    found: dict[str, dict[str, float]] = {}
    text = client.get("/metrics").text
    heads = re.findall(r"^# (?:HELP|TYPE) \S+", text, re.MULTILINE)
    assert len(heads) == len(set(heads))
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            worker = sample.labels.pop("worker", "")
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found.setdefault(f"{sample.name}{{{labels}}}", {})[worker] = sample.value
    return found


@contextlib.contextmanager
def connections(server: Server, key: Key, number: int) -> Iterator[list[httpx.Client]]:
    """So many connections or more, some to every worker, each kept alive, after all workers know the key."""
    with contextlib.ExitStack() as stack:
        limits = httpx.Limits(max_connections=1)
        opened: list[httpx.Client] = []
        while len(opened) < number or not all(samples(opened[0])["turnlog_open_connections{}"].values()):
            client = httpx.Client(base_url=server.base, headers=key.headers, limits=limits, timeout=30)
            opened.append(stack.enter_context(client))
            assert client.get("/livez").status_code == 200
        for client in opened:
            wait_for(lambda client=client: client.get(HEALTH).status_code != 401)
        yield opened


# One server.


def test_all_workers_answer_on_one_port(server: Server) -> None:
    with connections(server, server.create_key("tests"), 12) as opened:
        assert {client.get(HEALTH).json()["healthCheck"] for client in opened} == {"SUCCESS"}
        assert sum(samples(opened[0])["turnlog_open_connections{}"].values()) == len(opened)
    assert count(server, "listening") == 1
    assert sorted(pids(server)) == list(range(1, WORKERS + 1))
    assert len({server.pid, *pids(server).values()}) == WORKERS + 1


def test_each_line_of_a_worker_names_it(start: Callable[..., Server]) -> None:
    server = start("--workers", str(WORKERS), environment={"TURNLOG_LOG_REQUESTS": "all"})
    with connections(server, server.create_key("tests"), 12) as opened:
        asked = {client.get(HEALTH).headers["x-request-id"] for client in opened}
        wait_for(lambda: {event.get("request_id") for event in server.log} >= asked)
    workers = {event.get("worker") for event in server.log if event["event"] == "request"}
    assert workers == set(range(1, WORKERS + 1))


def test_one_file_is_not_for_several_workers(tmp_path: Path) -> None:
    """One line, before anything is touched."""
    store = f"sqlite:///{tmp_path / 'turnlog.db'}"
    done = run_cli("serve", "--port", "0", "--store", store, TURNLOG_WORKERS="2")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "2 workers" in done.stderr
    assert "PostgreSQL" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_there_is_one_first_key_and_the_whole_group_may_be_told_to_stop(
    new_store: Callable[[], str], number: int
) -> None:
    """As Ctrl-C and systemd do: what is under way is finished, although each worker is told twice."""
    store = new_store()
    command = [TURNLOG, "serve", "--port", "0", "--store", store, "--workers", str(WORKERS), "--first-key"]
    environment = clean_environment()
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        try:
            banner = ""
            while "stop: Ctrl-C" not in banner:
                line = process.stdout.readline()
                assert line, "the server ended"
                banner += line
            (port, _, _), (_, key_id, _), (_, _, secret) = re.findall(
                r"on http://127.0.0.1:(\d+)\.|asapp-api-id: +(\S+)\n|asapp-api-secret: +(\S+)\n", banner
            )[:3]
            body = json.dumps(conversation("under-way")).encode()
            head = (
                f"POST {V1}/conversations HTTP/1.1\r\nhost: x\r\nasapp-api-id: {key_id}\r\n"
                f"asapp-api-secret: {secret}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n"
            )
            with socket.create_connection(("127.0.0.1", int(port)), timeout=30) as under_way:
                under_way.sendall(head.encode())
                assert under_way.recv(4096).startswith(b"HTTP/1.1 100")
                os.killpg(process.pid, number)
                wait_for(lambda: refuses_connections(int(port)))
                under_way.sendall(body)
                assert under_way.recv(4096).startswith(b"HTTP/1.1 200")
            rest, log = process.communicate(timeout=30)
            assert process.returncode == 0, log
        finally:
            process.kill()
    assert banner.count("asapp-api-secret: ") + rest.count("asapp-api-secret: ") == 1 + 3  # and in each example
    assert [json.loads(line)["clean"] for line in log.splitlines() if '"stopped"' in line] == [True]
    listed = run_cli("keys", "list", "--store", store, "--json")
    assert len(json.loads(listed.stdout)) == 1


# Stopping, and dying.


def test_a_worker_that_dies_is_replaced_and_nobody_is_refused(server: Server) -> None:
    stop = threading.Event()
    failures: list[Exception] = []

    def knock() -> int:
        """A new connection each time; the dead worker's callers are cut off, and nobody else notices."""
        times = 0
        while not stop.is_set():
            times += 1
            try:
                with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
                    connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                    with contextlib.suppress(ConnectionResetError):
                        connection.recv(4096)
            except OSError as error:
                failures.append(error)
        return times

    with ThreadPoolExecutor(4) as pool:
        knocking = [pool.submit(knock) for _ in range(4)]
        for number, pid in pids(server).items():
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda number=number, pid=pid: pids(server)[number] != pid)
        stop.set()
        assert sum(one.result() for one in knocking) > 10
    assert failures == []
    ended = [event for event in server.log if event["event"] == "worker_ended"]
    assert [(event["worker"], event["signal"]) for event in ended] == [(n, "SIGKILL") for n in pids(server)]
    threads = re.findall(r"^Threads:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
    assert threads == ["1"]  # else a fork copies who knows what; from Python 3.12 on it warns
    assert count(server, "listening") == 1
    assert server.stop() == 0


def test_a_worker_that_is_killed_again_and_again_is_started_again_at_once(server: Server) -> None:
    for _ in range(3):
        pid = pids(server)[2]
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda pid=pid: pids(server)[2] != pid)
    ended = [event for event in server.log if event["event"] == "worker_ended"]
    assert [(event["signal"], event["next_in_s"]) for event in ended] == [("SIGKILL", 0.0)] * 3


def test_one_that_hangs_holds_nobody_up_and_is_seen_in_the_metrics(server: Server) -> None:
    hanging = pids(server)[1]
    os.kill(hanging, signal.SIGSTOP)
    try:
        for _ in range(30):
            with server.client() as client:
                assert client.get("/livez").status_code == 200
        with server.client() as client:
            assert samples(client)["turnlog_worker_up{}"] == {"1": 0, "2": 1, "3": 1}
    finally:
        os.kill(hanging, signal.SIGCONT)
    with server.client() as client:
        wait_for(lambda: samples(client)["turnlog_worker_up{}"]["1"] == 1)


def test_a_kill_9_of_the_parent_ends_its_workers(server: Server) -> None:
    workers = pids(server)
    server.kill_parent()
    for pid in workers.values():
        wait_for(lambda pid=pid: gone(pid))
    assert refuses_connections(server.port)


def test_under_load_a_worker_is_killed_and_then_all_are_stopped(server: Server) -> None:
    """Nothing acknowledged is lost, doubled or reordered; what is told to stop is drained, with status 0."""
    key = server.create_key("load")
    with connections(server, key, 12):
        pass  # waits until every worker knows the key

    async def scenario() -> tuple[Load, int, Counter[int], Listings]:
        caller = Caller(server.port, key.headers)
        names = [(await caller.ask("POST", f"{V1}/conversations", conversation(f"c{n}")))[1]["id"] for n in range(3)]
        load = Load(server.port, key.headers, names, seed=3)
        load.up.set()
        running = asyncio.create_task(load.run(16))
        for number in (1, 2):
            load.want(150)
            await asyncio.wait_for(load.acknowledged.wait(), 60)
            os.kill(pids(server)[number], signal.SIGKILL)
        load.want(300)
        await asyncio.wait_for(load.acknowledged.wait(), 60)
        load.up.clear()
        status = await asyncio.to_thread(server.stop)
        statuses = load.statuses.copy()
        await asyncio.to_thread(server.start)
        load.stopping = True
        load.up.set()
        await asyncio.wait_for(running, 60)
        await caller.close()
        listings = await read_listings(caller, names, page=1000)
        await caller.close()
        return load, status, statuses, listings

    load, status, statuses, listings = asyncio.run(scenario())
    assert status == 0
    assert set(statuses) <= {200, 400}, statuses
    assert check(load.history.requests, listings) == []
    assert [event["clean"] for event in server.log if event["event"] == "stopped"] == [True]
    assert server.stop() == 0
    assert log_problems(server.url) == []


# What holds across workers.


def test_a_revoked_key_is_refused_by_every_worker_within_a_second(server: Server) -> None:
    key = server.create_key("revoked")
    with connections(server, key, 12) as opened:
        assert {client.get(HEALTH).status_code for client in opened} == {200}
        assert run_cli("keys", "revoke", key.id, "--store", server.url).returncode == 0
        revoked_at = time.monotonic()
        for client in opened:
            wait_for(lambda client=client: client.get(HEALTH).status_code == 401, timeout_s=1)
        assert time.monotonic() - revoked_at < 1
        for client in opened:
            error_of(client.get(HEALTH), "401-01")


def test_a_keys_rate_is_shared_out_among_the_workers(server: Server) -> None:
    """Over all of them it stays within the key's, but for the burst, and none of it is lost."""
    rate, seconds = 30, 2.0
    created_at = time.monotonic()
    key = server.create_key("limited", "--rate", f"{rate}/s")
    with connections(server, key, 12) as opened:
        until = time.monotonic() + seconds

        def ask(client: httpx.Client) -> Counter[int]:
            statuses: Counter[int] = Counter()
            while time.monotonic() < until:
                answer = client.get(HEALTH)
                statuses[answer.status_code] += 1
                assert answer.headers["ratelimit-policy"] == f'"default";q={rate // WORKERS};w=1'
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1
                    assert f"{rate} requests a second" in error_of(answer, "429-01")
            return statuses

        with ThreadPoolExecutor(len(opened)) as pool:
            statuses = sum(pool.map(ask, opened), Counter[int]())
        assert set(statuses) == {200, 429}
        counted = samples(opened[0])["turnlog_requests_total{operation=health,status=200}"]
    most = rate * (time.monotonic() - created_at) + rate
    assert statuses[200] <= sum(counted.values()) <= most
    assert statuses[200] >= rate * seconds * 0.5


def test_every_scrape_shows_all_workers_and_adds_up(server: Server) -> None:
    """Whichever worker it reaches; the store's figures are there once."""
    key = server.create_key("tests")
    with connections(server, key, 12) as opened:
        path = f"{V1}/conversations/{create_conversation(opened[0], 'c')}/messages"
        before = samples(opened[0])["turnlog_batch_rows_sum{}"]
        for client in opened:
            for _ in range(3):
                assert client.post(path, json=message()).status_code == 200
        scrapes, sent = [samples(client) for client in opened], 3 * len(opened)
    numbers = {str(number) for number in range(1, WORKERS + 1)}
    for scrape in scrapes:
        recorded = scrape["turnlog_requests_total{operation=create_message,status=200}"]
        assert set(recorded) == numbers
        assert sum(recorded.values()) == sent
        assert sum(scrape["turnlog_batch_rows_sum{}"].values()) - sum(before.values()) == sent
        assert sum(scrape["turnlog_request_seconds_count{operation=create_message}"].values()) == sent
        assert scrape["turnlog_worker_up{}"] == dict.fromkeys(numbers, 1)
        assert set(scrape["process_resident_memory_bytes{}"]) == numbers
        assert scrape["turnlog_store_up{}"] == {"": 1}
        assert set(scrape["turnlog_store_bytes{}"]) == {""}


def test_one_worker_goes_without_a_number(start: Callable[..., Server]) -> None:
    server = start("--workers", "1")
    assert len(server.worker_pids) == 1
    with server.client() as client:
        scrape = samples(client)
    assert {worker for by_worker in scrape.values() for worker in by_worker} == {""}
    assert "turnlog_worker_up{}" not in scrape
    assert count(server, "worker_ready") == 0
    assert server.stop() == 0
