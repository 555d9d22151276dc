"""A06. Guessing credentials: slowed for each source and each id, whatever the guess; nobody else is."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import statistics
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.harness import V1, Key, Server, create_conversation, message, wait_for
from tests.stores import files
from tests.wire import HOST, answers, check_refusal, credentials, read, request
from turnlog.errors import RateLimitedError
from turnlog.guesses import LATE_S, MOST_LATE, MOST_REMEMBERED, OF_A_SOURCE, OF_AN_ID, Guesses, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

QUICK_S = LATE_S / 2
_PATIENCE_S = 20


def _guess(key_id: str = "nobody", *more: bytes) -> bytes:
    headers = credentials(Key(key_id, "turnlog_sk_wrong"))
    return request(b"GET /v1/health HTTP/1.1", HOST, *headers, *more)


@contextmanager
def _from(server: Server, source: str) -> Iterator[socket.socket]:
    """A connection from another address of this machine."""
    address = ("127.0.0.1", server.port)
    with socket.create_connection(address, timeout=_PATIENCE_S, source_address=(source, 0)) as connection:
        yield connection


def _answer(connection: socket.socket) -> bytes:
    raw = b""
    while not raw.endswith(b"}}"):
        part = connection.recv(65536)
        if not part:
            break
        raw += part
    return raw


@contextmanager
def _held_back(server: Server, source: str, ids: Callable[[int], str], *more: bytes) -> Iterator[socket.socket]:
    """A connection whose guess is one too many: its refusal has not come yet."""
    with _from(server, source) as connection:
        for n in range(4 * int(OF_A_SOURCE.at_once)):
            connection.sendall(_guess(ids(n), *more))
            if not select.select([connection], [], [], QUICK_S)[0]:
                yield connection
                return
            _answer(connection)
    raise AssertionError("never slowed")


def _time_of(server: Server, source: str, raw: bytes) -> float:
    """Seconds until an answer."""
    with _from(server, source) as connection:
        began_s = time.monotonic()
        connection.sendall(raw)
        assert _answer(connection)
        return time.monotonic() - began_s


def test_a_source_that_guesses_is_slowed_and_the_right_key_beside_it_is_not(start: Callable[..., Server]) -> None:
    """From one address, as from behind one proxy: each guess for another id; the good key goes on as ever."""
    server = start()
    key = server.create_key("good")
    with server.client(key):
        pass
    good = request(b"GET /v1/health HTTP/1.1", HOST, *credentials(key))
    with _from(server, "127.0.0.2") as connection:
        connection.sendall(_guess("first"))
        first = _answer(connection)
    with _held_back(server, "127.0.0.2", lambda n: f"id {n}") as guessing:
        for _ in range(20):
            with _from(server, "127.0.0.2") as connection:
                began_s = time.monotonic()
                connection.sendall(good)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
                assert time.monotonic() - began_s < QUICK_S
        assert _time_of(server, "127.0.0.3", _guess("elsewhere")) < QUICK_S
        late = _answer(guessing)
    assert _faceless(first) == _faceless(late)


def _faceless(raw: bytes) -> list[bytes]:
    """Everything but what differs between any two answers."""
    _, headers, body = answers(raw)[0]
    own = headers["x-request-id"].encode()
    body = body.replace(own, b"*")
    return [
        line for line in raw.partition(b"\r\n\r\n")[0].split(b"\r\n") if not line.startswith((b"date", b"x-req"))
    ] + [body]


def test_an_id_that_is_guessed_at_is_slowed_everywhere_and_its_owner_gets_in(start: Callable[..., Server]) -> None:
    """Nobody is locked out by somebody else's guesses; a second address guessing at the same id is slowed at once."""
    server = start()
    key = server.create_key("victim")
    with server.client(key) as owner:
        path = f"{V1}/conversations/{create_conversation(owner, 'c')}/messages"
        with _held_back(server, "127.0.0.4", lambda _: key.id):
            began_s = time.monotonic()
            assert owner.post(path, json=message()).status_code == 200
            assert time.monotonic() - began_s < QUICK_S
            with _from(server, "127.0.0.5") as other:
                for _ in range(int(OF_AN_ID.per_s * LATE_S)):  # no more than are forgiven meanwhile
                    other.sendall(_guess(key.id))
                    if not select.select([other], [], [], QUICK_S)[0]:
                        return
                    _answer(other)
    pytest.fail("another address was not slowed")


def test_how_late_a_refusal_is_tells_nothing_of_the_key(start: Callable[..., Server]) -> None:
    """A01: an id that there is, and one that never was: slowed after as many guesses, as much."""
    server = start()
    ids = [server.create_key("one").id, "turnlog_id_0000000000000000"]
    with server.client(server.create_key("last")):
        pass
    for n, key_id in enumerate(ids):
        sent: list[float] = []

        def once_more(_: int, key_id: str = key_id, sent: list[float] = sent) -> str:
            sent.append(time.monotonic())
            return key_id

        with _held_back(server, f"127.0.1.{n}", once_more) as held:
            _answer(held)
            took_s = time.monotonic() - sent[-1]
        assert OF_AN_ID.at_once < len(sent) < OF_A_SOURCE.at_once
        assert LATE_S - 0.1 < took_s < LATE_S + 2


def test_the_time_of_a_refusal_tells_nothing_while_it_is_quick(server: Server, client: httpx.Client, key: Key) -> None:
    """A01: medians over many, in turns; a difference that could be used would stand out of the noise of one machine."""
    del client
    wrong = key.secret[:-1] + ("y" if key.secret.endswith("x") else "x")
    kinds = {
        "unknown": [f"asapp-api-id: turnlog_id_{'0' * 16}".encode(), f"asapp-api-secret: {key.secret}".encode()],
        "wrong": [f"asapp-api-id: {key.id}".encode(), f"asapp-api-secret: {wrong}".encode()],
        "wrong at once": [f"asapp-api-id: {key.id}".encode(), b"asapp-api-secret: " + b"x" * len(key.secret)],
    }
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for turn in range(1, 6):
        with _from(server, f"127.0.2.{turn}") as connection:
            for _ in range(6):
                for kind, headers in kinds.items():
                    began_s = time.perf_counter()
                    connection.sendall(request(b"GET /v1/health HTTP/1.1", HOST, *headers))
                    _answer(connection)
                    times[kind].append(time.perf_counter() - began_s)
    medians = [statistics.median(found) for found in times.values()]
    assert max(medians) < 3 * min(medians) + 0.001


def test_guesses_beyond_what_is_held_back_are_turned_away(start: Callable[..., Server]) -> None:
    """429-01 with Retry-After, and the connection is closed; nothing is logged for each, nothing is written."""
    server = start(environment={"TURNLOG_LOG_REQUESTS": "all"})
    key = server.create_key("good")
    with server.client(key) as client:
        before = _written(server)
        with contextlib.ExitStack() as stack:
            guessing = []
            for n in range(4 * MOST_LATE):  # the first are refused at once, the next held back, then one is too many
                guessing.append(stack.enter_context(_from(server, "127.0.0.6")))
                guessing[-1].sendall(_guess(f"id {n}"))
                if n > MOST_LATE and any(one.recv(12, socket.MSG_PEEK).endswith(b"429") for one in _answered(guessing)):
                    break
            began_s = time.monotonic()
            assert client.get("/v1/health").status_code == 200
            assert time.monotonic() - began_s < QUICK_S
            assert _gauge(client) <= MOST_LATE
            got = [answers(_answer(one))[0] for one in guessing]
        assert {answer[0] for answer in got} == {401, 429}
        turned_away = next(answer for answer in got if answer[0] == 429)
        check_refusal(turned_away, "429-01")
        assert int(turned_away[1]["retry-after"]) >= 1
        wait_for(lambda: _gauge(client) == 0)
        assert _written(server) == before
    told = [event for event in server.log if event["event"] == "credentials_guessed"]
    assert told[0]["source"] == "127.0.0.6"
    assert len(told) < 5
    lines = [event for event in server.log if event.get("status") in (401, 429)]
    assert len(lines) < OF_A_SOURCE.at_once + OF_A_SOURCE.per_s * 20


def _written(server: Server) -> dict[Path, int]:
    """When each file of an SQLite store was last written; what PostgreSQL writes by itself is nobody's doing."""
    return {path: path.stat().st_mtime_ns for path in files(server.url)} if server.url.startswith("sqlite") else {}


def _answered(connections: list[socket.socket]) -> list[socket.socket]:
    poll = select.poll()
    for one in connections:
        poll.register(one, select.POLLIN)
    by_number = {one.fileno(): one for one in connections}
    return [by_number[number] for number, _ in poll.poll(0)]


def _gauge(client: httpx.Client) -> float:
    return float(client.get("/metrics").text.partition("\nturnlog_late_refusals ")[2].partition("\n")[0])


def test_a_stop_does_not_wait_for_late_refusals(start: Callable[..., Server]) -> None:
    """C06: they are answered at once; and a guesser that leaves is forgotten."""
    server = start()
    with server.client() as anyone:
        with _held_back(server, "127.0.0.7", lambda n: f"id {n}"):
            assert _gauge(anyone) == 1
        wait_for(lambda: _gauge(anyone) == 0, timeout_s=QUICK_S)
        with _held_back(server, "127.0.0.7", lambda n: f"id {n}") as waiting:
            began_s = time.monotonic()
            assert server.stop() == 0
            assert time.monotonic() - began_s < 6
            assert [status for status, _, _ in answers(read(waiting))] == [401]


def test_what_forwards_say_of_a_source_is_ignored(start: Callable[..., Server]) -> None:
    """H16: a guesser cannot pass for somebody else, nor have somebody else slowed."""
    server = start()
    says = [b"X-Forwarded-For: 203.0.113.1", b"Forwarded: for=203.0.113.1", b"X-Real-IP: 203.0.113.1"]
    with _held_back(server, "127.0.0.8", lambda n: f"id {n}", *says):
        assert _time_of(server, "127.0.0.9", _guess("another", *says)) < QUICK_S


# What is remembered, on a clock of the test's own.


class _Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_failures_are_forgiven_with_time() -> None:
    clock = _Clock()
    guesses = Guesses(clock)
    for n in range(int(OF_A_SOURCE.at_once)):
        assert not guesses.are_many("192.0.2.1", str(n))
    assert guesses.are_many("192.0.2.1", "x")
    assert not guesses.are_many("192.0.2.2", "y")
    clock.now_s += 1
    found = [guesses.are_many("192.0.2.1", f"z {n}") for n in range(int(OF_A_SOURCE.per_s) + 1)]
    assert found == [False] * int(OF_A_SOURCE.per_s) + [True]
    for _ in range(int(OF_AN_ID.at_once)):
        assert not guesses.are_many("192.0.2.3", "id")
    assert guesses.are_many("192.0.2.4", "id")
    assert not guesses.are_many("192.0.2.3", None)


def test_what_is_remembered_is_bounded() -> None:
    """A million sources and ids of 16 KB each: as many as there is room for, and no more."""
    guesses = Guesses(_Clock())
    for n in range(3 * MOST_REMEMBERED):
        guesses.are_many(f"198.51.{n >> 8 & 255}.{n & 255}", f"{n} " + "x" * 16_000)
    remembered = (guesses._of_sources, guesses._of_ids)
    assert [len(one) for one in remembered] == [MOST_REMEMBERED] * 2
    assert len(json.dumps([list(one._left) for one in remembered])) < 200 * MOST_REMEMBERED
    with contextlib.ExitStack() as stack:
        for _ in range(MOST_LATE):
            stack.enter_context(guesses.holding_back("192.0.2.1"))
        with pytest.raises(RateLimitedError), guesses.holding_back("192.0.2.1"):
            pass
        with guesses.holding_back("192.0.2.2"):
            assert guesses.late == MOST_LATE + 1
    assert guesses.late == 0


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("", "not an address", False),
    ],
)
def test_an_ipv6_source_is_a_network(one: str, other: str, *, same: bool) -> None:
    assert (source_of(one) == source_of(other)) is same
