"""What an attack on a running server once found, each with the answer that it must get."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import (
    TURNLOG,
    V1,
    Key,
    Server,
    clean_environment,
    create_conversation,
    error_of,
    message,
    parse_response,
    run_cli,
    wait_for,
)
from tests.stores import path_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx


def exchange(server: Server, *pieces: bytes) -> bytes:
    """Everything that comes back for ``pieces`` until the server closes."""
    with server.connection() as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # refused half way: what was answered is still to be read
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def post(key: Key, path: str, *fields: str) -> bytes:
    """The head of a POST that closes the connection behind its answer."""
    credentials = [f"{name}: {value}" for name, value in key.headers.items()]
    lines = [f"POST {path} HTTP/1.1", "Host: here", "Connection: close", *credentials, *fields]
    return "\r\n".join([*lines, "", ""]).encode()


def resident_kib(pid: int) -> int:
    """The process's memory."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(status.partition("VmRSS:")[2].split()[0])


def test_trailers_are_bounded_and_are_no_headers(start: Callable[..., Server]) -> None:
    """16 MiB of trailers are refused long before their end; credentials in a trailer are none."""
    server = start()
    before = resident_kib(server.worker_pid)
    head = b"POST /conversation/v1/conversations HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"
    head += b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
    answer = exchange(server, head, *[b"a:b\r\n" * 13_000] * 256)
    assert parse_response(answer)[0] in (400, 401)
    assert resident_kib(server.worker_pid) - before < 60 * 1024
    key = server.create_key("trailing")
    trailers = "".join(f"{name}: {value}\r\n" for name, value in key.headers.items()).encode()
    assert parse_response(exchange(server, head + trailers + b"\r\n"))[0] == 401


def test_a_trailer_without_an_end_is_bounded(start: Callable[..., Server]) -> None:
    """One trailer of 32 MiB, with credentials that let its request wait for the body."""
    server = start()
    key = server.create_key("endless")
    with server.client(key):
        before = resident_kib(server.worker_pid)
        head = post(key, f"{V1}/conversations", "Content-Type: application/json", "Transfer-Encoding: chunked")
        answer = exchange(server, head + b"2\r\n{}\r\n0\r\nendless: ", *[b"x" * 65536] * 512)
    assert parse_response(answer)[0] == 400
    assert resident_kib(server.worker_pid) - before < 60 * 1024


def test_a_body_in_two_pieces_behind_pipelined_requests_is_read(server: Server, client: httpx.Client, key: Key) -> None:
    """What came in one piece with its head is not taken for framing, however much it is."""
    path = f"{V1}/conversations/{create_conversation(client, 'in-two-pieces')}/messages"
    body = json.dumps(message("the last one")).encode()
    fields = ("Content-Type: application/json", f"Content-Length: {len(body)}")
    live = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n" * 1000
    answers = exchange(server, live + post(key, path, *fields) + body[:1], body[1:])
    assert answers.count(b"HTTP/1.1 200 ") == 1001
    assert client.get(path).json()["items"][0]["text"] == "the last one"


@pytest.mark.parametrize("coding", ["gzip, chunked", "chunked, chunked", "identity"])
def test_only_chunked_is_a_transfer_coding(server: Server, key: Key, coding: str) -> None:
    """Another one is refused, in the envelope."""
    answer = exchange(server, post(key, f"{V1}/conversations", f"Transfer-Encoding: {coding}") + b"0\r\n\r\n")
    assert json.loads(parse_response(answer)[2])["error"]["code"] == "400-02"


def test_an_upgrade_with_a_chunked_body_is_refused_and_nobody_else(server: Server) -> None:
    """Alone, and pipelined behind two requests that get their own answers."""
    live = b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n"
    offer = b"POST /livez HTTP/1.1\r\nHost: here\r\nConnection: upgrade\r\nUpgrade: h2c\r\n"
    offer += b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    for before in (0, 2):
        answers = exchange(server, live * before + offer)
        assert answers.count(b"HTTP/1.1 200 ") == before
        assert answers.count(b"HTTP/1.1 400 ") == 1
        assert b'"code":"400-02"' in answers


def test_doubled_content_types_are_refused(server: Server, client: httpx.Client, key: Key) -> None:
    """Whichever of the two is right."""
    del client  # it has waited until the server knows the key
    fields = ("Content-Type: text/plain", "Content-Type: application/json", "Content-Length: 2")
    answer = exchange(server, post(key, f"{V1}/conversations", *fields) + b"{}")
    assert json.loads(parse_response(answer)[2])["error"]["code"] == "415-01"


def test_a_length_of_twenty_digits_is_over_the_limit(server: Server, key: Key) -> None:
    """It is answered at once, not waited for."""
    answer = exchange(server, post(key, f"{V1}/conversations", "Content-Length: 18446744073709551615"))
    assert parse_response(answer)[0] in (400, 413)


def test_a_malformed_page_size_is_told_before_an_unknown_conversation(client: httpx.Client) -> None:
    """The same for the listing by external id as for the one by id."""
    error_of(client.get(f"{V1}/conversation/messages", params={"externalId": "nobody", "limit": "x"}), "400-02")


def test_a_large_body_made_to_be_slow_holds_nobody_up(start: Callable[..., Server]) -> None:
    """While bodies of 8 MiB, with as many objects as there may be, are looked through, the others are answered."""
    server = start()
    key = server.create_key("large")
    with server.client(key) as client, server.client() as other:
        conversation_id = create_conversation(client, "large")
        unknown: tuple[object, str] = [{}] * 45_000, "[{,\\" * 1_600_000
        body = json.dumps({"messages": [message()], "unknown": unknown}, separators=(",", ":")).encode()
        done = threading.Event()
        statuses: list[int] = []

        def send() -> None:
            path = f"{V1}/conversations/{conversation_id}/messages/batch"
            headers = {"content-type": "application/json"}
            try:
                statuses.extend(client.post(path, content=body, headers=headers).status_code for _ in range(20))
            finally:
                done.set()

        sender = threading.Thread(target=send)
        sender.start()
        answered = 0
        while not done.is_set():
            assert other.get("/livez").status_code == 200
            answered += 1
        sender.join()
        assert statuses == [200] * 20
        assert answered > 20


def test_a_log_that_nobody_reads_stops_nobody(new_store: Callable[[], str]) -> None:
    """Standard error is a pipe whose reader has gone: requests are answered, and SIGTERM ends it with status 0."""
    store = new_store()
    command = [TURNLOG, "serve", "--port", "0", "--store", store]
    environment = clean_environment(TURNLOG_LOG_REQUESTS="all")
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if '"listening"' in line:
                break
        address = json.loads(line)["address"]
        process.stderr.close()
        key = json.loads(run_cli("keys", "create", "unheard", "--store", store, "--json").stdout)
        server = Server(store)
        server.base = address
        with server.client(Key(key["id"], key["secret"])) as client:
            path = f"{V1}/conversations/{create_conversation(client, 'unheard')}/messages"
            assert client.post(path, json=message()).status_code == 200
            error_of(client.get(f"{V1}/nowhere"), "404-01")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_stop_that_runs_out_of_patience_answers_in_the_envelope(start: Callable[..., Server]) -> None:
    """A body that never comes: 503-01, because nothing of it was queued."""
    server = start(environment={"TURNLOG_DRAIN_TIMEOUT_S": "0.3"})
    key = server.create_key("stopped")
    with server.client(key) as other, server.connection() as connection:
        head = post(key, f"{V1}/conversations", "Content-Type: application/json", "Content-Length: 10")
        connection.sendall(head + b"{")
        assert other.get("/livez").status_code == 200  # what was sent before this is under way when it is answered
        os.kill(server.pid, signal.SIGTERM)
        received = b""
        while part := connection.recv(65536):
            received += part
    status, headers, body = parse_response(received)
    assert (status, json.loads(body)["error"]["code"]) == (503, "503-01")
    assert headers["x-request-id"] == json.loads(body)["error"]["requestId"]


def test_a_slow_but_steady_reader_gets_everything(start: Callable[..., Server]) -> None:
    """Longer than the time that a reader of nothing has; the answer is whole."""
    server = start(environment={"TURNLOG_WRITE_TIMEOUT_S": "0.4"})
    key = server.create_key("steady")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'steady')}/messages"
        for _ in range(10):
            client.post(path, json=message("x" * 900_000)).raise_for_status()
        pause = threading.Event()
        with client.stream("GET", path) as answer:
            size = 0
            for part in answer.iter_raw(chunk_size=65536):
                size += len(part)
                pause.wait(0.01)  # this reader's own pace: about 5 MB/s, two seconds in all
    assert size > 9_000_000


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "create", "\udcff"),
        ("keys", "create", "x", "--account", "\udcff"),
        ("config", "--store", "sqlite:////tmp/\udcff/x.db"),
    ],
    ids=["name", "account", "store"],
)
def test_what_is_not_utf_8_is_one_line(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    """On the command line too."""
    done = run_cli(*arguments, cwd=tmp_path)
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 1, 2)
    assert done.returncode == 0 or done.stderr.startswith("turnlog: ")


@pytest.mark.sqlite_only("PostgreSQL lets many write at once")
def test_a_store_that_somebody_writes_to_is_one_line(start: Callable[..., Server]) -> None:
    """A key cannot be made while another program holds the file; nothing is half done."""
    server = start()
    hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE'); print(); input()"
    command = [str(Path(TURNLOG).with_name("python")), "-u", "-c", hold, str(path_of(server.url))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = run_cli("keys", "create", "late", "--store", server.url)
        holder.communicate("\n")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "nothing was changed" in done.stderr
    wait_for(lambda: run_cli("keys", "create", "later", "--store", server.url).returncode == 0)
