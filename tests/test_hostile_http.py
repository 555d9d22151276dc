"""H01, H06, H14, H16. Heads that a hostile peer writes, by the hundred: what an independent, strict reader of RFC 9112
refuses is refused here, and nothing behind it is served; whatever comes, the server lives and answers in its envelope.
"""

from __future__ import annotations

import json
import random
import re
import socket
from typing import TYPE_CHECKING

import pytest

from tests.harness import V1, Key, Server, create_conversation, message
from tests.wire import Answer, answers, credentials, read

if TYPE_CHECKING:
    import httpx

CASES = 300
STATUSES = {200, 204, 400, 401, 404, 405, 408, 413, 414, 415, 422, 431}
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_LINE = re.compile(rb"(?P<method>" + _TOKEN + rb") (?P<target>/[\x21-\x7e]*) HTTP/1\.(?P<minor>[01])")
_FIELD = re.compile(
    rb"(?P<name>"
    + _TOKEN
    + rb"):[ \t]*(?P<value>(?:[\x21-\x7e\x80-\xff](?:[ \t\x21-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?)[ \t]*"
)
_LENGTH = re.compile(rb"[0-9]{1,19}")
_CODINGS = (
    b"chunked",
    b"Chunked",
    b"gzip, chunked",
    b"chunked, gzip",
    b"identity",
    b"x",
    b"",
    b"\x0bchunked",
    b"chunked;q=1",
    b",chunked",
)
_LENGTHS = (
    b"0",
    b"5",
    b"-1",
    b"+5",
    b"5, 5",
    b"5 5",
    b"0x5",
    b"5\x00",
    b"",
    b"1e1",
    b"99999999999999999999",
    b"\xb2",
    b"05",
    b" 5",
)
_NASTY = (
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b"\t",
    b"\x0b",
    b"\x7f",
    b"\x80",
    b"\xff",
    b":",
    b",",
    b"\r\n",
    b"\r\n ",
    b"\r\n\t",
    b"\n\r",
    b"\r\r\n",
    b"\r\n\r\n",
    b"/",
    b"?",
    b"#",
    b"%",
    b"\x1b",
)
_EXTRA = (
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding : chunked",
    b"transfer_encoding: chunked",
    b"Content-Length: 0",
    b"Content-Length : 0",
    b"Host: other",
    b"host:",
    b"Connection: close, te",
    b"Connection: upgrade",
    b"Upgrade: h2c",
    b"Expect: 200-ok",
    b"TE: trailers",
    b"X-Forwarded-For: 1.2.3.4",
    b"X-Http-Method-Override: DELETE",
    b"Content-Encoding: gzip",
    b"asapp-api-id: x",
    b"X-Request-Id: forged",
    b":authority: x",
)


def strict(head: bytes) -> bool:
    """Whether a head, its last empty line left out, may be read in one way only, and is for us to answer.

    Ends of lines before it are skipped, as RFC 9112 has it (2.2).
    """
    first, *rest = head.lstrip(b"\r\n").split(b"\r\n")
    line = _LINE.fullmatch(first)
    fields = [_FIELD.fullmatch(one) for one in rest]
    if line is None or not all(fields):
        return False
    values: dict[bytes, list[bytes]] = {}
    for field in fields:
        assert field is not None
        values.setdefault(field["name"].lower(), []).append(field["value"])
    hosts, lengths = values.get(b"host", []), values.get(b"content-length", [])
    codings = values.get(b"transfer-encoding", [])
    if len(hosts) > 1 or (not hosts and line["minor"] == b"1"):
        return False
    if codings:
        return not lengths and line["minor"] == b"1" and [one.lower() for one in codings] == [b"chunked"]
    return not lengths or (len(lengths) == 1 and _LENGTH.fullmatch(lengths[0]) is not None)


class Writer:
    """Writes requests, most of them broken, from a seed."""

    def __init__(self, seed: int, key: Key, path: str) -> None:
        self._random = random.Random(seed)  # noqa: S311 - a test that can be repeated
        self._key = key
        self._path = path

    def write(self) -> tuple[bytes, bytes]:
        """A head, its last empty line left out, and a body."""
        choose = self._random.choice
        body = json.dumps(message("intruder")).encode()
        lines = [
            f"POST {self._path} HTTP/1.1".encode(),
            b"Host: localhost",
            *credentials(self._key),
            b"Content-Type: application/json",
            b"Content-Length: %d" % len(body),
        ]
        if self._random.random() < 0.3:
            lines[-1] = b"Transfer-Encoding: chunked"
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        for _ in range(self._random.randint(1, 3)):
            what = self._random.randrange(8)
            if what == 0:
                lines.insert(self._random.randint(1, len(lines)), choose(_EXTRA))
            elif what == 1:
                lines.insert(self._random.randint(1, len(lines)), choose(lines[1:] or _EXTRA))
            elif what == 2:
                lines.append(b"Content-Length: " + choose(_LENGTHS))
            elif what == 3:
                lines[-1] = choose((b"Transfer-Encoding: ", b"transfer-encoding:")) + choose(_CODINGS)
            elif what == 4 and len(lines) > 2:
                del lines[self._random.randrange(1, len(lines))]
            else:
                at = self._random.randrange(len(lines))
                place = self._random.randint(0, len(lines[at]))
                lines[at] = lines[at][:place] + choose(_NASTY) + lines[at][place + self._random.randint(0, 1) :]
        return b"\r\n".join(lines), body


@pytest.mark.parametrize("seed", [1, 2])
def test_no_head_that_may_be_read_in_two_ways_is_served(
    server: Server, client: httpx.Client, key: Key, external_id: str, seed: int
) -> None:
    """H01, H06. Nothing is stored of a request that was refused, nor of what stood behind it."""
    path = f"{V1}/conversations/{create_conversation(client, external_id)}/messages"
    writer, stored, ambiguous = Writer(seed, key, path), 0, 0
    behind = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    for _ in range(CASES):
        head, body = writer.write()
        got = _exchange(server, head + b"\r\n\r\n" + body + behind)
        _check(got, head)
        if not strict((head + b"\r\n\r\n").partition(b"\r\n\r\n")[0]):
            ambiguous += 1
            assert len(got) == 1, head
            assert got[0][0] in (400, 405, 414, 431), head
        stored += sum(1 for status, _, _ in got if status == 200)
    assert ambiguous > CASES / 4
    assert len(client.get(path).json()["items"]) == stored


def _exchange(server: Server, raw: bytes) -> list[Answer]:
    """Send it and say that this was all; the answers, to the end of the connection."""
    with server.connection() as connection:
        connection.settimeout(15)
        connection.sendall(raw)
        connection.shutdown(socket.SHUT_WR)
        return answers(read(connection))


def _check(got: list[Answer], head: bytes) -> None:
    for status, headers, body in got:
        assert status in STATUSES, head
        assert "server" not in headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert "strict-transport-security" not in headers
        if status >= 400:
            assert json.loads(body)["error"]["requestId"] == headers["x-request-id"]
            assert b"smuggled" not in body


@pytest.mark.parametrize("seed", [1])
def test_bytes_that_are_nothing_at_all_are_refused(server: Server, seed: int) -> None:
    """Noise, other protocols' first words, heads that end in the middle: an answer or none, and the server lives."""
    chance = random.Random(seed)  # noqa: S311 - a test that can be repeated
    openings = (
        b"",
        b"\x16\x03\x01\x02\x00",
        b"SSH-2.0-x\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
        b"HELO x\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"GET ",
        b"GET / HTTP/1.1\r\nHost: ",
        b"\r\n" * 1000,
        b"\n" * 1000,
        b"OPTIONS * RTSP/1.0\r\n\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    )
    for n in range(120):
        raw = openings[n % len(openings)] + chance.randbytes(chance.choice((0, 1, 10, 1000, 30_000)))
        try:
            got = _exchange(server, raw)
        except ConnectionResetError:  # it was refused, and went on sending
            continue
        _check(got, raw[:100])
        assert {status for status, _, _ in got} <= {400, 405, 414, 431}, raw[:100]


TARGETS = (
    "/%2e%2e/%2e%2e/etc/passwd",
    "/..%2f..%2fetc/passwd",
    "/conversation/v1/../../livez",
    "/./livez",
    "/livez;x",
    "/livez/.",
    "/conversation%2Fv1%2Fconversations",
    "//localhost/livez",
    "/\\livez",
    "/livez%0d%0aX: y",
    "/livez%20",
    "/livez%2500",
    "/%256c%2569vez",
    "/livez%c0%af",
    "/conversation/v1/conversations/%00",
    "/conversation/v1/conversations/%2e",
    "/conversation/v1/conversations/ABC%2Fmessages",
    "/conversation/v1/conversations/abc",
    "/conversation/v1/conversations/" + "A" * 4000,
    "/conversation/v1/conversations/ABC/messages/..",
    "/conversation/v1//conversations",
    "/turnlog/v1/webhooks/%2e%2e",
    "/livez%u002e",
    "/%",
    "/%f",
    "/?" + "&" * 4000,
    "/livez#x",
    "/docs/",
    "/metrics%3f",
    "/openapi.json%00.html",
)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[:40])
def test_a_target_is_decoded_once_and_leads_nowhere_else(server: Server, key: Key, target: str) -> None:
    """H14."""
    raw = f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n".encode()
    got = _exchange(server, raw + b"".join(one + b"\r\n" for one in credentials(key)) + b"\r\n")
    assert [status for status, _, _ in got] in ([400], [404])
    _check(got, raw)


FORWARDS = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Real-IP": "203.0.113.9",
    "Forwarded": "for=203.0.113.9;host=evil;proto=https",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Prefix": "/evil",
    "X-Original-URL": "/livez",
    "X-Rewrite-URL": "/livez",
    "X-HTTP-Method-Override": "DELETE",
    "X-Request-Id": "forged",
    "X-Correlation-Id": "forged",
    "Traceparent": "00-forged",
    "Front-End-Https": "on",
    "True-Client-IP": "203.0.113.9",
    "Via": "1.1 evil.example",
}


def test_what_others_say_of_a_request_changes_nothing(server: Server, client: httpx.Client, external_id: str) -> None:
    """H16: neither the answer, nor its id, nor what is logged or described."""
    path = f"{V1}/conversations/{create_conversation(client, external_id)}"
    for url, status in ((path, 200), (f"{V1}/nowhere", 404), ("/docs", 200), ("/openapi.json", 200)):
        plain, forwarded = client.get(url), client.get(url, headers=FORWARDS)
        assert (plain.status_code, forwarded.status_code) == (status, status)
        own, its = plain.headers["x-request-id"], forwarded.headers["x-request-id"]
        assert forwarded.text.replace(its, own) == plain.text
        assert "evil" not in str(forwarded.headers)
        assert its != "forged"
    assert not any("203.0.113.9" in line or "forged" in line for line in server.log_lines)
