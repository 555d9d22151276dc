"""Below the application: what no HTTP client would send, over bare sockets."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest

from tests.harness import V1, create_conversation, message
from tests.wire import ALIVE, GOOD, HOST, answers, check_refusal, credentials, exchange, posting, read, request

if TYPE_CHECKING:
    from tests.harness import Key, Server


SMUGGLED = b"GET /livez HTTP/1.1\r\nHost: smuggled\r\n\r\n"
POST = b"POST /livez HTTP/1.1"

MALFORMED = {
    "no host": request(),
    "two hosts": request(b"GET /livez HTTP/1.1", HOST, HOST),
    "two different hosts": request(b"GET /livez HTTP/1.1", HOST, b"Host: other"),
    "length and coding": request(POST, HOST, b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "coding and length": request(POST, HOST, b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
    "two lengths": request(POST, HOST, b"Content-Length: 5", b"Content-Length: 6", body=b"12345"),
    "two equal lengths": request(POST, HOST, b"Content-Length: 5", b"Content-Length: 5", body=b"12345"),
    "list of lengths": request(POST, HOST, b"Content-Length: 5, 5", body=b"12345"),
    "negative length": request(POST, HOST, b"Content-Length: -5"),
    "signed length": request(POST, HOST, b"Content-Length: +5", body=b"12345"),
    "hexadecimal length": request(POST, HOST, b"Content-Length: 0x5", body=b"12345"),
    "fractional length": request(POST, HOST, b"Content-Length: 5.0", body=b"12345"),
    "empty length": request(POST, HOST, b"Content-Length: "),
    "length in words": request(POST, HOST, b"Content-Length: five", body=b"12345"),
    "length over 64 bits": request(POST, HOST, b"Content-Length: 18446744073709551617", body=b"1"),
    "unknown coding": request(POST, HOST, b"Transfer-Encoding: rot13", body=b"12345"),
    "coding behind chunked": request(POST, HOST, b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n"),
    "chunked twice": request(POST, HOST, b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "chunked misspelt": request(POST, HOST, b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n"),
    "chunked behind a bare CR": request(POST, HOST, b"Transfer-Encoding: \rchunked", body=b"0\r\n\r\n"),
    "coding folded": request(POST, HOST, b"Transfer-Encoding:\r\n chunked", body=b"0\r\n\r\n"),
    "broken chunk size": request(POST, HOST, b"Transfer-Encoding: chunked", body=b"zz\r\n\r\n"),
    "negative chunk size": request(POST, HOST, b"Transfer-Encoding: chunked", body=b"-1\r\n\r\n"),
    "chunk longer than said": request(POST, HOST, b"Transfer-Encoding: chunked", body=b"1\r\nabc\r\n0\r\n\r\n"),
    "chunk size over 64 bits": request(POST, HOST, b"Transfer-Encoding: chunked", body=b"1" * 17 + b"\r\na"),
    "folded header": request(b"GET /livez HTTP/1.1", HOST, b"X-Folded: a\r\n b"),
    "space before the colon": request(b"GET /livez HTTP/1.1", HOST, b"X-Spaced : a"),
    "space before the colon of a length": request(POST, HOST, b"Content-Length : 5", body=b"12345"),
    "no colon": request(b"GET /livez HTTP/1.1", HOST, b"X-Alone"),
    "empty name": request(b"GET /livez HTTP/1.1", HOST, b": a"),
    "bare CR in a value": request(b"GET /livez HTTP/1.1", HOST, b"X-Bare: a\rb"),
    "bare LF in the head": b"GET /livez HTTP/1.1\nHost: localhost\n\n",
    "bare LF behind a header": b"GET /livez HTTP/1.1\r\nHost: localhost\nX: y\r\n\r\n",
    "bare LF behind the head": b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\n",
    "NUL in a value": request(b"GET /livez HTTP/1.1", HOST, b"X-Nul: a\0b"),
    "NUL in a name": request(b"GET /livez HTTP/1.1", HOST, b"X-\0Nul: a"),
    "NUL in the target": request(b"GET /liv\0ez HTTP/1.1", HOST),
    "control in a value": request(b"GET /livez HTTP/1.1", HOST, b"X-Esc: \x1b[2J"),
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "HTTP/0.9": b"GET /livez\r\n\r\n",
    "HTTP/0.9 with a host": request(b"GET /livez", HOST),
    "HTTP/0.9 and a bare LF": b"GET /livez\nHost: localhost\r\n\r\n",
    "HTTP/0.9 by its name": request(b"GET /livez HTTP/0.9", HOST),
    "HTTP/2.0 by its name": request(b"GET /livez HTTP/2.0", HOST),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.2": request(b"GET /livez HTTP/1.2", HOST),
    "unknown protocol": request(b"GET /livez HTTQ/1.1", HOST),
    "lower-case protocol": request(b"GET /livez http/1.1", HOST),
    "space in the target": request(b"GET /li vez HTTP/1.1", HOST),
    "bytes beyond ASCII in the target": request("GET /livéz HTTP/1.1".encode(), HOST),
    "absolute form": request(b"GET http://localhost/livez HTTP/1.1", HOST),
    "absolute form of another host": request(b"GET http://other/livez HTTP/1.1", HOST),
    "authority form": request(b"CONNECT localhost:80 HTTP/1.1", HOST),
    "asterisk form": request(b"OPTIONS * HTTP/1.1", HOST),
    "relative target": request(b"GET livez HTTP/1.1", HOST),
}


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
def test_what_is_ambiguous_is_refused_and_nothing_behind_it_is_served(server: Server, raw: bytes) -> None:
    """H01, H06: one answer, the envelope, and the connection ends."""
    got = exchange(server, raw + SMUGGLED)
    assert len(got) == 1, got
    check_refusal(got[0], "400-02")


@pytest.mark.parametrize("raw", MALFORMED.values(), ids=MALFORMED)
def test_a_refusal_comes_behind_the_answers_that_are_due(server: Server, raw: bytes) -> None:
    got = exchange(server, GOOD + GOOD + raw + SMUGGLED)
    assert [status for status, _, _ in got] == [200, 200, 400]
    check_refusal(got[2], "400-02")


@pytest.mark.parametrize("name", ["no host", "two lengths", "folded header", "bare CR in a value", "HTTP/0.9"])
def test_it_makes_no_difference_in_how_many_pieces_it_comes(server: Server, name: str) -> None:
    with server.connection() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        raw = MALFORMED[name]
        try:
            for n in range(len(raw)):
                connection.sendall(raw[n : n + 1])
        except OSError:
            pytest.fail("closed in the middle of the sending")
        got = answers(read(connection))
    assert [status for status, _, _ in got] == [400]


LONG = {
    "target": (request(b"GET /" + b"a" * 9000 + b" HTTP/1.1", HOST), "414-01"),
    "endless target": (b"GET /" + b"a" * 100_000, "414-01"),
    "value": (request(b"GET /livez HTTP/1.1", HOST, b"X: " + b"a" * 17_000), "431-01"),
    "name": (request(b"GET /livez HTTP/1.1", HOST, b"X" * 17_000 + b": a"), "431-01"),
    "many": (request(b"GET /livez HTTP/1.1", HOST, *(b"X: %d" % n for n in range(100))), "431-01"),
    "many bytes": (request(b"GET /livez HTTP/1.1", HOST, *(b"X: " + b"a" * 190 for _ in range(90))), "431-01"),
    "endless value": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000, "431-01"),
    "endless headers": (b"GET /livez HTTP/1.1\r\nHost: localhost\r\n" + b"X: a\r\n" * 20_000, "431-01"),
}


@pytest.mark.parametrize(("raw", "code"), LONG.values(), ids=LONG)
def test_a_head_over_its_limits_is_refused(server: Server, raw: bytes, code: str) -> None:
    """H07."""
    for pieces in ([raw], [raw[:5000], raw[5000:]]):
        got = exchange(server, *pieces)
        assert len(got) == 1, got
        check_refusal(got[0], code)


def test_a_head_over_its_limits_is_refused_behind_another_request_too(server: Server) -> None:
    """H07. All of it in one piece: what came before is answered, and nothing behind it."""
    raw = request(b"GET /livez HTTP/1.1", HOST, b"X: " + b"a" * 17_000)
    got = exchange(server, GOOD + raw + SMUGGLED)
    assert [status for status, _, _ in got] == [200, 431]
    check_refusal(got[1], "431-01")


def test_a_head_within_its_limits_is_accepted(server: Server) -> None:
    """99 headers and Host; 16,000 bytes of them; a target of 8,000."""
    many = (b"X: %d" % n for n in range(98))
    long = b"GET /livez?" + b"a" * 8000 + b" HTTP/1.1"
    for raw in (
        request(b"GET /livez HTTP/1.1", HOST, *many, b"Connection: close"),
        request(b"GET /livez HTTP/1.1", HOST, b"X: " + b"a" * 16_000, b"Connection: close"),
        request(long, HOST, b"Connection: close"),
        request(b"GET /livez HTTP/1.0"),
    ):
        assert [(status, body) for status, _, body in exchange(server, raw)] == [(200, ALIVE)]


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"PATCH", b"TRACE", b"PROPFIND", b"BREW", b"get"])
def test_a_method_that_is_not_offered_is_answered_405_with_allow(server: Server, method: bytes) -> None:
    """H09; TRACE echoes nothing."""
    raw = request(method + b" /livez HTTP/1.1", HOST, b"X-Canary: canary", b"Connection: close")
    got = exchange(server, raw)
    assert len(got) == 1
    check_refusal(got[0], "405-01")
    assert "GET" in got[0][1]["allow"]
    assert b"canary" not in got[0][2]


@pytest.mark.parametrize(
    "path",
    ["/livez%00", "/%2Flivez", "/x/../livez", "/%2e%2e/livez", "//livez", "/livez/", "/livez%zz", "/livez%", "/LIVEZ"],
)
def test_a_path_is_decoded_once_and_never_resolved(server: Server, key: Key, path: str) -> None:
    """H14."""
    with server.client(key):
        pass  # waits until the key is known
    raw = request(f"GET {path} HTTP/1.1".encode(), HOST, *credentials(key), b"Connection: close")
    got = exchange(server, raw)
    assert len(got) == 1
    assert got[0][0] in (400, 404)
    assert json.loads(got[0][2])["error"]["code"] in ("400-02", "404-01")


def test_a_path_may_be_encoded(server: Server) -> None:
    raw = request(b"GET /%6c%69vez HTTP/1.1", HOST, b"Connection: close")
    assert [status for status, _, _ in exchange(server, raw)] == [200]


def test_a_hundred_pipelined_requests_are_answered_in_order(server: Server, key: Key) -> None:
    """N04; every one tells by its answer which it was."""
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'pipelined')}/messages"
    raw = b""
    for n in range(100):
        body = json.dumps(message(str(n))).encode()
        length = b"Content-Length: %d" % len(body)
        last = (b"Connection: close",) if n == 99 else ()
        post = f"POST {path} HTTP/1.1".encode()
        raw += request(post, HOST, *credentials(key), b"Content-Type: application/json", length, *last, body=body)
    got = exchange(server, raw)
    assert [status for status, _, _ in got] == [200] * 100
    ids = [json.loads(body)["id"] for _, _, body in got]
    with server.client(key) as client:
        listed = client.get(path).json()["items"]
    assert [(m["messageId"], m["text"]) for m in listed] == [(ids[n], str(n)) for n in range(100)]


def test_a_caller_that_expects_100_continue_gets_it_and_only_where_its_body_is_wanted(server: Server, key: Key) -> None:
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'continue')}/messages"
    body = json.dumps(message()).encode()
    expect = (b"Expect: 100-continue", b"Connection: close")
    with server.connection() as connection:
        connection.sendall(posting(server, key, path, *expect, length=len(body)))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert [status for status, _, _ in answers(read(connection))] == [200]
    with server.connection() as connection:
        connection.sendall(posting(server, key, path, *expect, length=2_000_000))
        assert [status for status, _, _ in answers(read(connection))] == [413]


@pytest.mark.parametrize("count", [1, 3])
def test_a_caller_that_closes_its_side_behind_the_request_is_answered(server: Server, key: Key, count: int) -> None:
    """N04: half-closed, as `nc -N` and some proxies do; the message is recorded, so its caller has to hear so."""
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, f'half-{count}')}/messages"
        body = json.dumps(message()).encode()
        with server.connection() as connection:
            connection.sendall((posting(server, key, path, length=len(body)) + body) * count)
            connection.shutdown(socket.SHUT_WR)
            assert [status for status, _, _ in answers(read(connection))] == [200] * count


def test_a_refused_upload_gets_to_read_its_answer_and_the_connection_goes_on(server: Server, key: Key) -> None:
    """H12: 5 MB where 1 MiB is the limit. Closed with bytes unread, a reset would eat the answer."""
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'upload')}/messages"
    with server.connection() as connection:
        connection.sendall(posting(server, key, path, length=5_000_000))
        for _ in range(50):
            connection.sendall(b"x" * 100_000)
        connection.sendall(request(b"GET /livez HTTP/1.1", HOST, b"Connection: close"))
        got = answers(read(connection))
    assert [status for status, _, _ in got] == [413, 200]
    assert json.loads(got[0][2])["error"]["code"] == "413-01"


def test_a_refused_upload_that_is_the_last_gets_to_read_its_answer(server: Server, key: Key) -> None:
    """H12, O08: it sends all of it before it reads; a reset meanwhile would eat the answer."""
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'last upload')}/messages"
    with server.connection() as connection:
        connection.sendall(posting(server, key, path, b"Connection: close", length=5_000_000))
        for _ in range(50):
            connection.sendall(b"x" * 100_000)
        got = answers(read(connection))
    assert [status for status, _, _ in got] == [413]


def test_a_refused_upload_in_chunks_gets_to_read_its_answer(server: Server, key: Key) -> None:
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'chunks')}/messages"
        parts = iter([b"x" * 100_000] * 50)
        answer = client.post(path, content=parts, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "413-01")


@pytest.mark.parametrize("upgrade", [b"websocket", b"h2c", b"TLS/1.2"])
def test_an_upgrade_is_not_offered_and_the_request_is_answered(server: Server, key: Key, upgrade: bytes) -> None:
    """Answered as HTTP/1.1, and closed: what follows may be another protocol's."""
    fields = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: " + upgrade, b"HTTP2-Settings: AAMAAABkAAQAAP__")
    got = exchange(server, request(b"GET /livez HTTP/1.1", HOST, *fields) + SMUGGLED)
    assert [(status, body) for status, _, body in got] == [(200, ALIVE)]
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, upgrade.decode())}/messages"
        body = json.dumps(message()).encode()
        got = exchange(server, posting(server, key, path, *fields, length=len(body)) + body + SMUGGLED)
        assert [status for status, _, _ in got] == [200]
        assert len(client.get(path).json()["items"]) == 1
