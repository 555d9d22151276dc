"""TLS: what is spoken and what is refused, certificates and their renewal; and that all below HTTP holds over it."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V1, Key, Server, create_conversation, message, need, run_cli, wait_for
from tests.importing import json_lines, row
from tests.sse import Stream
from tests.tailing import Tail
from tests.test_deadlines import (  # noqa: F401 - collected here: the same over TLS
    test_a_body_that_drips_or_stops_is_cut_at_its_deadline,
    test_a_body_that_is_slow_but_steady_is_not_cut,
    test_a_caller_that_does_not_read_is_cut_and_its_slot_is_free,
    test_a_connection_too_many_is_told_so,
    test_a_head_that_drips_is_cut_at_its_deadline,
    test_an_idle_connection_is_closed_without_a_word,
)
from tests.test_hardening import (  # noqa: F401 - the same over TLS
    test_a_body_in_two_pieces_behind_pipelined_requests_is_read,
    test_a_slow_but_steady_reader_gets_everything,
    test_a_stop_that_runs_out_of_patience_answers_in_the_envelope,
)
from tests.test_streams import (  # noqa: F401 - the same over TLS
    place,
    test_a_server_that_stops_ends_its_streams_and_says_when_to_come_again,
    test_a_slow_reader_is_cut_and_finds_the_rest_later,
    test_from_history_to_live_without_a_gap_or_a_repeat,
)
from tests.test_transport import (  # noqa: F401 - the same over TLS
    test_a_caller_that_expects_100_continue_gets_it_and_only_where_its_body_is_wanted,
    test_a_head_over_its_limits_is_refused,
    test_a_hundred_pipelined_requests_are_answered_in_order,
    test_a_refusal_comes_behind_the_answers_that_are_due,
    test_a_refused_upload_gets_to_read_its_answer_and_the_connection_goes_on,
    test_a_refused_upload_in_chunks_gets_to_read_its_answer,
    test_it_makes_no_difference_in_how_many_pieces_it_comes,
)
from tests.tls import Authority, Pair, TlsServer, openssl
from tests.wire import ALIVE, GOOD, HOST, answers, check_refusal, exchange, posting, read, request
from turnlog.errors import SettingError
from turnlog.http.certificate import certificate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

    from tests.stores import Stores

DEADLINE_S = 0.3


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def pair(authority: Authority) -> Pair:
    return authority.issue("server")


@pytest.fixture(scope="module")
def server(stores: Stores, authority: Authority, pair: Pair) -> Iterator[Server]:
    with TlsServer(stores.new(), authority, pair) as running:
        yield running


@pytest.fixture(scope="module")
def key(server: Server) -> Key:
    return server.create_key("tests", "--permission", "feed", *(f"--permission={p}" for p in ("conversations:write",
                             "messages:write", "read")))  # fmt: skip


@pytest.fixture(scope="module")
def client(server: Server, key: Key) -> Iterator[httpx.Client]:
    with server.client(key) as client:
        yield client


@pytest.fixture(scope="module")
def hurried(stores: Stores, authority: Authority, pair: Pair) -> Iterator[tuple[Server, Key]]:
    """As the fixture of this name in test_deadlines.py."""
    names = ("HEADER_TIMEOUT_S", "BODY_TIMEOUT_S", "WRITE_TIMEOUT_S", "KEEP_ALIVE_S")
    environment = {f"TURNLOG_{name}": str(DEADLINE_S) for name in names}
    with TlsServer(stores.new(), authority, pair, environment=environment) as running:
        yield running, running.create_key("tests")


@pytest.fixture
def start(new_store: Callable[[], str], authority: Authority, pair: Pair) -> Iterator[Callable[..., Server]]:
    """As the fixture of this name in conftest.py."""
    started: list[Server] = []

    def start_one(*arguments: str, environment: dict[str, str] | None = None, own: Pair = pair) -> Server:
        started.append(TlsServer(new_store(), authority, own, *arguments, environment=environment))
        started[-1].start()
        return started[-1]

    yield start_one
    for one in started:
        one.kill()


@contextmanager
def raw(server: Server) -> Iterator[socket.socket]:
    """A connection without TLS."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=8) as connection:
        yield connection


# What is spoken.


def test_a_conversation_over_tls(server: Server, client: httpx.Client, external_id: str) -> None:
    """Verified by name and by address; HTTP/1.1 is agreed on; every answer asks browsers to stay with TLS."""
    path = f"{V1}/conversations/{create_conversation(client, external_id)}/messages"
    answer = client.post(path, json=message())
    assert server.base.startswith("https://")
    assert answer.status_code == 200
    for one in (answer, client.get(path), client.get("/nowhere"), client.get("/docs"), client.get("/livez")):
        assert one.headers["strict-transport-security"].startswith("max-age=")
        assert one.headers["x-content-type-options"] == "nosniff"
        assert one.headers["cache-control"] == "no-store"
        assert "server" not in one.headers
    assert client.get(path).json()["items"][0]["messageId"] == answer.json()["id"]
    assert server.trust is not None
    server.trust.set_alpn_protocols(["h2", "http/1.1"])
    with server.connection() as connection:
        assert isinstance(connection, ssl.SSLSocket)
        assert connection.selected_alpn_protocol() == "http/1.1"
        assert connection.version() == "TLSv1.3"
        assert connection.compression() is None


@pytest.mark.parametrize(
    ("version", "ciphers", "good"),
    [
        (ssl.TLSVersion.TLSv1_3, "DEFAULT", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+AESGCM", True),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+CHACHA20", True),
        (ssl.TLSVersion.TLSv1_2, "AES128-GCM-SHA256:DHE+AESGCM:ECDHE-ECDSA-AES128-SHA256:ECDHE+SHA1", False),
        (ssl.TLSVersion.TLSv1_1, "DEFAULT:@SECLEVEL=0", False),
        (ssl.TLSVersion.TLSv1, "DEFAULT:@SECLEVEL=0", False),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_only_modern_versions_and_ciphers_are_spoken(
    server: Server, authority: Authority, version: ssl.TLSVersion, ciphers: str, *, good: bool
) -> None:
    trust = authority.trust()
    trust.minimum_version = ssl.TLSVersion.TLSv1
    trust.maximum_version = version
    trust.set_ciphers(ciphers)
    with raw(server) as connection:
        if good:
            with trust.wrap_socket(connection, server_hostname="localhost") as secured:
                secured.sendall(GOOD)
                assert secured.recv(1000).startswith(b"HTTP/1.1 200 ")
        else:
            with pytest.raises(ssl.SSLError, match=r"alert|unsupported|version"):
                trust.wrap_socket(connection, server_hostname="localhost")


def test_a_renegotiation_is_refused(server: Server) -> None:
    """TLS 1.2's: it costs a server more than its caller."""
    command = [need("openssl"), "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"]
    done = subprocess.run(command, input="R\nQ\n", capture_output=True, text=True, timeout=20, check=False)
    assert "no renegotiation" in done.stderr


@pytest.mark.postgresql_only("only there may several workers serve")
def test_several_workers_speak_it(start: Callable[..., Server], authority: Authority) -> None:
    """And each takes up a renewed certificate."""
    own = authority.issue("shared")
    server = start("--workers", "2", own=own)
    first = _serial(server)
    with server.client(server.create_key("k")) as client:
        create_conversation(client, "c")
    authority.issue("shared")
    wait_for(lambda: {_serial(server) for _ in range(8)} != {first})
    wait_for(lambda: first not in {_serial(server) for _ in range(8)})


# What is not TLS.


@pytest.mark.parametrize("said", [GOOD, b"\0", b"SSH-2.0-x\r\n", b"\x80\x2e\x01\x00\x02"])
def test_plain_http_is_told_so_and_nothing_of_it_is_looked_at(server: Server, said: bytes) -> None:
    with raw(server) as connection:
        connection.sendall(said)
        [answer] = answers(read(connection))
    check_refusal(answer, "400-02")
    assert b"https://" in answer[2]


@pytest.mark.parametrize(
    "said", [b"\x16", b"\x16\x03\x01\xff\xff" + b"x" * 70_000, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00"]
)
def test_a_broken_handshake_ends_the_connection_and_nothing_else(server: Server, said: bytes) -> None:
    for _ in range(20):
        with raw(server) as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            with suppress(ConnectionResetError):
                read(connection)
    assert exchange(server, request(b"GET /livez HTTP/1.1", HOST, b"Connection: close"))[0][0] == 200


@pytest.mark.parametrize("said", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01"])
def test_a_handshake_has_the_time_of_a_head(hurried: tuple[Server, Key], said: bytes) -> None:
    """O06: silent, or begun and left; the slot is free again."""
    server, _ = hurried
    with raw(server) as connection:
        connection.sendall(said)
        assert read(connection) == b""


def test_a_handshake_counts_as_a_connection(start: Callable[..., Server]) -> None:
    """Those who never finish theirs take slots until their deadline, and who is too many is told so."""
    server = start(environment={"TURNLOG_MAX_CONNECTIONS": "3", "TURNLOG_HEADER_TIMEOUT_S": "2"})
    with raw(server), raw(server), raw(server):
        wait_for(lambda: (got := exchange(server, GOOD)) and got[0][0] == 503)
        wait_for(lambda: exchange(server, request(b"GET /livez HTTP/1.0"))[0][0] == 200)


# The end of a connection.


def _handshake(connection: socket.socket, trust: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    secured = trust.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            secured.do_handshake()
            break
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            incoming.write(connection.recv(65536))
    connection.sendall(outgoing.read())
    return secured, incoming, outgoing


@pytest.mark.parametrize("goodbye", [True, False])
def test_a_caller_that_closes_its_side_is_answered_over_tls(
    server: Server, client: httpx.Client, key: Key, external_id: str, *, goodbye: bool
) -> None:
    """N04: with TLS's own goodbye, and without; the answer is there, and ends with a goodbye."""
    path = f"{V1}/conversations/{create_conversation(client, external_id)}/messages"
    body = json.dumps(message()).encode()
    assert server.trust is not None
    with raw(server) as connection:
        secured, incoming, outgoing = _handshake(connection, server.trust)
        secured.write((posting(server, key, path, length=len(body)) + body) * 3)
        if goodbye:
            with pytest.raises(ssl.SSLWantReadError):
                secured.unwrap()
        connection.sendall(outgoing.read())
        connection.shutdown(socket.SHUT_WR)
        incoming.write(read(connection))
        got = b""
        with suppress(ssl.SSLZeroReturnError):  # how a goodbye is said to one who has said it
            while part := secured.read(65536):
                got += part
    assert [status for status, _, _ in answers(got)] == [200] * 3
    assert len(client.get(path).json()["items"]) == 3


def test_a_stop_waits_for_no_goodbye(start: Callable[..., Server]) -> None:
    """C06: idle callers that look away, as pools do, do not hold a stop up."""
    server = start()
    with server.connection() as idle, server.connection() as other:
        for connection in (idle, other):
            connection.sendall(GOOD)
            assert ALIVE in connection.recv(1000)
        began_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began_s < 6
        assert idle.recv(1) == b""


# Certificates.


def test_a_renewed_certificate_is_taken_up_without_a_restart(
    start: Callable[..., Server], authority: Authority
) -> None:
    """New connections get it; those that are open go on; a renewal that is half done changes nothing."""
    own = authority.issue("renewed")
    server = start(own=own)
    first = _serial(server)
    with server.connection() as open_before:
        own.key.write_text("half a key", "ascii")
        wait_for(lambda: any(event["event"] == "certificate_not_renewed" for event in server.log))
        assert _serial(server) == first
        authority.issue("renewed")
        wait_for(lambda: _serial(server) != first)
        open_before.sendall(GOOD)
        assert ALIVE in open_before.recv(1000)
    assert sum(event["event"] == "certificate_renewed" for event in server.log) <= 2


def _serial(server: Server) -> object:
    with server.connection() as connection:
        assert isinstance(connection, ssl.SSLSocket)
        certificate = connection.getpeercert()
        assert certificate is not None
        return certificate["serialNumber"]


def test_what_cannot_be_used_is_named(authority: Authority, pair: Pair, tmp_path: Path) -> None:
    """U02: a pair that is none, an encrypted key, a file that is not there; nobody is asked for a password."""
    other = authority.issue("other")
    encrypted, nonsense, none = tmp_path / "encrypted.key", tmp_path / "nonsense.pem", tmp_path / "none"
    openssl("pkey", "-in", pair.key, "-aes256", "-passout", "pass:x", "-out", encrypted)
    nonsense.write_text("nonsense", "ascii")
    faults: dict[tuple[Path | str, Path | str], str] = {
        (pair.cert, ""): "tls_cert goes with tls_key",
        ("", pair.key): "tls_key goes with tls_cert",
        (pair.cert, other.key): f"the key in {other.key} is not that of the certificate",
        (pair.cert, encrypted): f"the key in {encrypted} is encrypted",
        (pair.cert, none): f"cannot read {none}",
        (tmp_path, pair.key): f"cannot read {tmp_path}",
        (nonsense, pair.key): str(nonsense),
        (pair.cert, pair.cert): str(pair.cert),
    }
    for (cert, key), why in faults.items():
        with pytest.raises(SettingError, match=re.escape(why)):
            certificate(str(cert), str(key))
    done = run_cli("serve", "--port", "0", *Pair(pair.cert, encrypted).flags, cwd=tmp_path, text="x\n")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "is encrypted" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_key_that_every_user_can_read_is_warned_of(start: Callable[..., Server], authority: Authority) -> None:
    own = authority.issue("open")
    own.key.chmod(0o644)
    assert any(event["event"] == "tls_key_readable" for event in start(own=own).log)
    own.key.chmod(0o640)
    assert not any(event["event"] == "tls_key_readable" for event in start(own=own).log)


# The programs that speak to a server.


def test_tail_and_import_trust_what_they_are_told_to(
    server: Server, authority: Authority, key: Key, client: httpx.Client, tmp_path: Path
) -> None:
    """``SSL_CERT_FILE`` names a private authority; without it the server is not believed, and no key is sent."""
    (tmp_path / "rows.jsonl").write_text(json_lines(row("imported over TLS", "tls")), "utf-8")
    environment: dict[str, Any] = {"TURNLOG_API_ID": key.id, "TURNLOG_API_SECRET": key.secret}
    trusting = environment | {"SSL_CERT_FILE": str(authority.root)}
    arguments = ("import", str(tmp_path / "rows.jsonl"), "--url", server.base)
    for command in (arguments, ("tail", "--url", server.base)):
        done = run_cli(*command, **environment)
        assert done.returncode == 1
        assert "SSL_CERT_FILE" in done.stderr
        assert "Traceback" not in done.stderr
    assert run_cli(*arguments, **trusting).returncode == 0
    with Tail("--url", server.base, "--json", "--after", "beginning", "--external-id", "tls", **trusting) as tail:
        wait_for(lambda: any("imported over TLS" in line for line in tail.out))
        create_conversation(client, "tls", metadata={"live": "yes"})
        wait_for(lambda: any('"live"' in line for line in tail.out))


def test_many_speak_at_once(server: Server, key: Key) -> None:
    """Streams, listings and writes beside each other, each whole."""
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'many')}/messages"
    done: list[int] = []

    def work(number: int) -> None:
        with server.client(key) as one:
            for turn in range(20):
                assert one.post(path, json=message(f"{number}-{turn} {'x' * 20_000}")).status_code == 200
            done.append(len(one.get(path).content))

    with Stream(server, key, "externalId=many&types=message.created") as stream:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        assert len(stream.take(160)) == 160
        for thread in threads:
            thread.join()
    assert len(done) == 8
    assert max(done) > 160 * 20_000
