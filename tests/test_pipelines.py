"""Requests behind requests: what waits is bounded, what follows a last answer is not carried out, nobody is cut early.

Over bare sockets; that answers are still due is had by listings larger than what the kernel keeps for a slow reader.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.harness import V1, Key, Server, create_conversation, message, wait_for
from tests.wire import ALIVE, GOOD, HOST, answers, check_refusal, credentials, exchange, posting, read, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from io import BufferedReader

    import httpx

    from tests.stores import Stores
    from tests.wire import Answer

DEADLINE_S = 0.8
MESSAGES = 300
LISTINGS = 12
"""So many whole listings of ``MESSAGES`` messages are well over what the kernel keeps."""
VAST = 27
"""So many messages of 800 kB are as much in one listing."""
MOST_TAKEN = 8_000_000
"""Bytes of a body that may leave its sender while nobody takes it: the kernel's, and little more."""
SOME = json.dumps(message()).encode()


class Place(NamedTuple):
    """A server, a key for it, and the paths of the messages of two conversations, one long and one vast."""

    server: Server
    key: Key
    path: str
    vast: str

    def get(self, *fields: bytes, path: str = "", version: str = "1.1") -> bytes:
        line = f"GET {path or self.path} HTTP/{version}".encode()
        return request(line, HOST, *credentials(self.key), *fields)

    def post(self, *fields: bytes, path: str, body: bytes = SOME) -> bytes:
        return posting(self.server, self.key, path, *fields, length=len(body)) + body

    def new_path(self, external_id: str) -> str:
        """The path of the messages of a new conversation."""
        with self.server.client(self.key) as client:
            return f"{V1}/conversations/{create_conversation(client, external_id)}/messages"

    def stored(self, path: str) -> list[str]:
        """The texts of a conversation's messages."""
        with self.server.client(self.key) as client:
            return [item["text"] for item in client.get(path).json()["items"]]


def _place(server: Server) -> Place:
    key = server.create_key("tests")
    with server.client(key) as client:
        long, vast = (f"{V1}/conversations/{create_conversation(client, name)}/messages" for name in ("long", "vast"))
        batches = [(long, [message("a" * 3000)] * MESSAGES)] + [(vast, [message("a" * 800_000)] * 9)] * (VAST // 9)
        for path, batch in batches:
            assert client.post(path + "/batch", json={"messages": batch}).status_code == 200
    return Place(server, key, long, vast)


@pytest.fixture(scope="module")
def place(stores: Stores) -> Iterator[Place]:
    """A server with ordinary deadlines."""
    with Server(stores.new()) as running:
        yield _place(running)


def _hurried(url: str, *names: str) -> Server:
    return Server(url, environment={f"TURNLOG_{name}_S": str(DEADLINE_S) for name in names})


@pytest.fixture(scope="module")
def hurried(stores: Stores) -> Iterator[Place]:
    """A server that waits for nothing longer than ``DEADLINE_S``."""
    with _hurried(stores.new(), "HEADER_TIMEOUT", "BODY_TIMEOUT", "WRITE_TIMEOUT", "KEEP_ALIVE") as running:
        yield _place(running)


@pytest.fixture(scope="module")
def hurried_for_bodies(stores: Stores) -> Iterator[Place]:
    """A server that has time for slow readers, and little for heads and bodies."""
    with _hurried(stores.new(), "HEADER_TIMEOUT", "BODY_TIMEOUT") as running:
        yield _place(running)


def _answer(stream: BufferedReader) -> Answer:
    """The next answer, whose body may come in chunks."""
    line = stream.readline()
    assert line.startswith(b"HTTP/1.1 "), line
    headers = {}
    while (field := stream.readline()) != b"\r\n":
        name, _, value = field.decode().partition(":")
        headers[name.lower()] = value.strip()
    if "content-length" in headers:
        body = stream.read(int(headers["content-length"]))
    elif headers.get("transfer-encoding") != "chunked":
        body = stream.read()
    else:
        body = b""
        while size := int(stream.readline(), 16):
            body += stream.read(size + 2)[:-2]
        assert stream.readline() == b"\r\n"
    return int(line.split()[1]), headers, body


def _check_listing(answer: Answer, count: int = MESSAGES) -> None:
    assert answer[0] == 200, answer
    assert len(json.loads(answer[2])["items"]) == count


def _push(connection: socket.socket, data: bytes) -> int:
    """Send until nothing has been taken for a second; how many bytes were."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    connection.settimeout(1)
    sent = 0
    while sent < len(data):
        try:
            sent += connection.send(data[sent : sent + 65536])
        except TimeoutError:
            break
    connection.settimeout(30)
    return sent


def _wait(seconds: float) -> None:
    ends_at = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() > ends_at)


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


# What waits is bounded.


def test_a_body_behind_unread_answers_is_not_taken_and_is_recorded_once_they_are_read(place: Place) -> None:
    """A legal batch, larger than what the kernel keeps of it."""
    path = place.new_path("waits")
    texts = [str(n) + "a" * 900_000 for n in range(8)]
    body = json.dumps({"messages": [message(text) for text in texts]}).encode()
    raw = place.post(b"Connection: close", path=path + "/batch", body=body)
    with place.server.connection() as connection, connection.makefile("rb") as stream:
        connection.sendall(place.get() * LISTINGS)
        sent = _push(connection, raw)
        assert sent < len(raw) - 1_000_000
        rest = threading.Thread(target=connection.sendall, args=(raw[sent:],), daemon=True)
        rest.start()
        for _ in range(LISTINGS):
            _check_listing(_answer(stream))
        assert _answer(stream)[0] == 200
        assert stream.read() == b""
        rest.join(10)
    assert place.stored(path) == texts


ENDLESS = {
    "chunked POST": (b"POST", b"Transfer-Encoding: chunked\r\n\r\nffffffff", 413),
    "chunked GET": (b"GET", b"Transfer-Encoding: chunked\r\n\r\nffffffff", 200),
    "long POST": (b"POST", b"Content-Length: 4294967295\r\n", 413),
}


@pytest.mark.parametrize(("method", "framing", "status"), ENDLESS.values(), ids=ENDLESS)
def test_an_endless_body_behind_unread_answers_takes_no_memory(
    place: Place, method: bytes, framing: bytes, status: int
) -> None:
    """What does not ask for a body is answered without it."""
    line = b"%b %b HTTP/1.1" % (method, place.path.encode())
    fields = (HOST, *credentials(place.key), b"Content-Type: application/json")
    endless = b"\r\n".join((line, *fields, framing, b""))
    with place.server.connection() as connection, connection.makefile("rb") as stream:
        before = _resident_bytes(place.server.worker_pid)
        connection.sendall(place.get() * LISTINGS + endless)
        assert _push(connection, b"a" * 60_000_000) < MOST_TAKEN
        assert _resident_bytes(place.server.worker_pid) - before < 40_000_000
        for _ in range(LISTINGS):
            _check_listing(_answer(stream))
        connection.sendall(b"a" * 1_500_000)
        assert _answer(stream)[0] == status


def test_an_endless_body_of_the_request_whose_answer_is_unread_takes_no_memory(place: Place) -> None:
    with place.server.connection() as connection, connection.makefile("rb") as stream:
        connection.sendall(place.get(b"Transfer-Encoding: chunked", path=place.vast) + b"ffffffff\r\n")
        assert _push(connection, b"a" * 60_000_000) < MOST_TAKEN
        _check_listing(_answer(stream), VAST)


def test_forty_requests_in_one_piece_are_answered_in_order_and_others_meanwhile(place: Place) -> None:
    path = place.new_path("forty")
    with place.server.client(place.key) as client:
        batch = {"messages": [message(str(n)) for n in range(40)]}
        ids = client.post(path + "/batch", json=batch).json()["ids"]
    raw = b"".join(place.get(path=f"{path}/{one}") for one in ids)
    with place.server.connection() as many, place.server.connection() as one, many.makefile("rb") as stream:
        for _ in range(5):
            many.sendall(raw)
            one.sendall(GOOD)
            with one.makefile("rb") as other:
                assert _answer(other)[2] == ALIVE
            assert [json.loads(_answer(stream)[2])["text"] for _ in range(40)] == [str(n) for n in range(40)]


# Nothing is carried out behind a last answer.

LAST = {
    "HTTP/1.0": ("1.0", [b"Connection: keep-alive"]),
    "close": ("1.1", [b"Connection: close"]),
    "upgrade": ("1.1", [b"Connection: Upgrade", b"Upgrade: websocket"]),
}


@pytest.mark.parametrize("target", ["/livez", "listing"])
@pytest.mark.parametrize("last", LAST)
def test_nothing_behind_a_last_answer_is_stored_or_answered(place: Place, last: str, target: str) -> None:
    """An answer that is there at once, and one that the store has to give."""
    version, fields = LAST[last]
    path = place.new_path(f"behind {last} {target}")
    first = place.get(*fields, path=path if target == "listing" else target, version=version)
    got = exchange(place.server, first + place.post(path=path) * 3)
    assert [(status, headers["connection"]) for status, headers, _ in got] == [(200, "close")]
    assert place.stored(path) == []


BEHIND = {
    "garbage": b"\x16\x03\x01\r\n\r\n",
    "broken chunk": request(b"POST /livez HTTP/1.1", HOST, b"Transfer-Encoding: chunked", body=b"zz\r\n\r\n"),
    "endless target": b"GET /" + b"a" * 100_000,
    "half a body": request(b"POST /livez HTTP/1.1", HOST, b"Content-Length: 9", body=b"{"),
    "half a head": b"GET /livez HTTP/1.1\r\nHost",
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_a_last_answer_is_whole_and_the_last_whatever_follows(hurried_for_bodies: Place, behind: bytes) -> None:
    """Only its end ends the body of an answer to HTTP/1.0; nor does a deadline cut it that is that of what follows."""
    last = hurried_for_bodies.get(b"Connection: keep-alive", path=hurried_for_bodies.vast, version="1.0")
    with hurried_for_bodies.server.connection() as connection, connection.makefile("rb") as stream:
        connection.sendall(last + behind)
        _wait(1.5 * DEADLINE_S)
        _check_listing(_answer(stream), VAST)
        assert stream.read() == b""


def test_nothing_sent_after_a_stop_is_stored_and_what_was_under_way_is_whole(start: Callable[..., Server]) -> None:
    place = _place(start())
    path = place.new_path("stopped")
    with (
        place.server.connection() as idle,
        place.server.connection() as connection,
        idle.makefile("rb") as told,
        connection.makefile("rb") as stream,
    ):
        idle.sendall(GOOD)
        assert _answer(told)[2] == ALIVE
        connection.sendall(place.get(path=place.vast))
        assert stream.peek(1)
        os.kill(place.server.pid, signal.SIGTERM)
        assert told.read() == b""  # the server is stopping
        connection.sendall(place.post(path=path))
        _check_listing(_answer(stream), VAST)
        assert stream.read() == b""
    assert place.server.wait() == 0
    place.server.start()
    assert place.stored(path) == []


# Deadlines.


@pytest.mark.parametrize("parts", [0, 1, 20])
def test_a_connection_is_closed_that_goes_silent_behind_an_early_refusal(hurried: Place, parts: int) -> None:
    """A body has its deadline, answered or not. Once it is whole, the connection is as idle as any."""
    head = posting(hurried.server, Key(hurried.key.id, "wrong"), hurried.path, length=20 * 250)
    with hurried.server.connection() as connection, connection.makefile("rb") as stream:
        connection.sendall(head)
        assert _answer(stream)[0] == 401
        for _ in range(parts):
            connection.sendall(b"a" * 250)
            _wait(DEADLINE_S / 40)
        assert stream.read() == b""


def test_a_connection_goes_on_behind_the_rest_of_a_body_that_was_refused(place: Place) -> None:
    head = posting(place.server, Key(place.key.id, "wrong"), place.path, length=100_000)
    path = place.new_path("goes on")
    with place.server.connection() as connection, connection.makefile("rb") as stream:
        connection.sendall(head)
        assert _answer(stream)[0] == 401
        for _ in range(100):
            connection.sendall(b"a" * 1000)
        connection.sendall(place.post(b"Connection: close", path=path))
        assert _answer(stream)[0] == 200
        assert stream.read() == b""
    assert place.stored(path) == ["Hello!"]


def test_a_body_is_not_late_while_the_answers_before_it_are_read_slowly(hurried_for_bodies: Place) -> None:
    """The server does not take it; from when it does, the body has its time."""
    place = hurried_for_bodies
    path = place.new_path("slow reader")
    raw = place.post(b"Connection: close", path=path)
    with place.server.connection() as connection, connection.makefile("rb") as stream:
        connection.sendall(place.get(path=place.vast) + raw[:-20])
        _wait(2.7 * DEADLINE_S)
        _check_listing(_answer(stream), VAST)
        _wait(0.5 * DEADLINE_S)
        connection.sendall(raw[-20:])
        assert _answer(stream)[0] == 200
    assert place.stored(path) == ["Hello!"]


@contextlib.contextmanager
def _sipping(server: Server) -> Iterator[socket.socket]:
    """A connection for which the kernel keeps little: small segments make small buffers, on both sides."""
    with socket.socket() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 500)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", server.port))
        yield connection


def _open_connections(client: httpx.Client) -> int:
    text = client.get("/metrics").text
    return int(float(text.partition("\nturnlog_open_connections ")[2].partition("\n")[0]))


def test_who_takes_nothing_of_a_last_answer_is_cut_however_little_is_left(hurried: Place) -> None:
    """About 60 kB are the kernel's; what is left is too little for the connection to be told that it waits."""
    path = hurried.new_path("little")
    with hurried.server.client(hurried.key) as client, contextlib.ExitStack() as stack:
        raws = []
        for length in range(64_000, 128_000, 8_000):
            made = client.post(path, json=message("a" * length)).json()["id"]
            raws.append(hurried.get(b"Connection: close", path=f"{path}/{made}"))
        connections = [stack.enter_context(_sipping(hurried.server)) for _ in raws]
        wait_for(lambda: _open_connections(client) == 1 + len(raws))
        for connection, raw in zip(connections, raws, strict=True):
            connection.sendall(raw)
        wait_for(lambda: _open_connections(client) == 1)


# A peer that sends no more, or nonsense.


@pytest.mark.parametrize("target", ["/livez", "listing"])
def test_what_came_whole_before_the_peer_closed_its_side_is_answered_and_no_more(place: Place, target: str) -> None:
    path = place.new_path(f"half {target}")
    half = place.post(path=path)[:-5]
    with place.server.connection() as connection, connection.makefile("rb") as stream:
        connection.sendall(place.get(path=place.vast if target == "listing" else target) + half)
        connection.shutdown(socket.SHUT_WR)
        answer = _answer(stream)
        assert stream.read() == b""
    if target == "listing":
        _check_listing(answer, VAST)
    assert (answer[0], place.stored(path)) == (200, [])


@pytest.mark.parametrize("closes", [False, True])
def test_nonsense_is_refused_behind_the_answer_that_is_due(place: Place, *, closes: bool) -> None:
    with place.server.connection() as connection, connection.makefile("rb") as stream:
        connection.sendall(place.get() + BEHIND["garbage"])
        if closes:
            connection.shutdown(socket.SHUT_WR)
        _check_listing(_answer(stream))
        check_refusal(_answer(stream), "400-02")
        assert stream.read() == b""


def test_a_caller_of_http_1_0_is_not_told_to_continue(place: Place) -> None:
    path = place.new_path("1.0")
    raw = place.post(b"Expect: 100-continue", path=path).replace(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n")
    with place.server.connection() as connection:
        connection.sendall(raw[: -len(SOME)])
        _wait(0.3)
        connection.sendall(SOME)
        assert [status for status, _, _ in answers(read(connection))] == [200]
    assert place.stored(path) == ["Hello!"]
