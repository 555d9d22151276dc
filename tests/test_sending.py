"""What comes of one attempt at a webhook, whatever its receiver does: bounded in time and in size.

The receivers are real ones on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import gc
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.receiver import Receiver, drip, flood, hang, hang_up, raw, reset, status
from tests.sending import BODY, LONG_S, OK, SECRET, SHORT_S, measured, now_us, on_both_loops, outcome, sending, webhook
from turnlog.sending import CONNECTIONS, MAX_EXCERPT_BYTES, MAX_RETRY_AFTER_S, HttpSender, read_retry_after

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

    from tests.receiver import Behaviour
    from tests.sending import LoopFactory


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(SECRET) as made:
        yield made


# What a receiver answers.


@pytest.mark.parametrize("code", [201, 299, 400, 404, 410, 429, 500, 503])
def test_an_answer_is_an_outcome(receiver: Receiver, code: int) -> None:
    receiver.behaviour = raw(f"HTTP/1.1 {code} Whatever\r\nContent-Length: 4\r\n\r\nbody".encode(), kept=True)
    sent = outcome(webhook(receiver.url))
    assert (sent.status, sent.error, sent.excerpt, sent.delivered) == (code, "", "body", code < 300)
    assert len(receiver.received) == 1


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(receiver: Receiver, code: int) -> None:
    receiver.behaviour = status(code, Location=receiver.url_at("127.0.0.1", "/elsewhere"))
    sent = outcome(webhook(receiver.url))
    assert (sent.status, sent.delivered) == (code, False)
    assert [request.path for request in receiver.received] == ["/hook"]


def test_cookies_and_proxies_are_nobodys_business(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
    receiver.behaviour = status(200, Set_Cookie="a=b")

    async def twice(sender: HttpSender) -> None:
        for number in range(2):
            assert (await sender.send(webhook(receiver.url), f"ev_{number}", BODY)).delivered

    sending(twice)
    assert all("cookie" not in request.headers for request in receiver.received)


@pytest.mark.parametrize(
    ("text", "least", "most"),
    [("120", 120, 120), ("0", 0, 0), ("999999999999", MAX_RETRY_AFTER_S, MAX_RETRY_AFTER_S), ("-5", None, None),
     ("soon", None, None), ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0)],
)  # fmt: skip
def test_retry_after(receiver: Receiver, text: str, least: float | None, most: float | None) -> None:
    receiver.behaviour = status(429, Retry_After=text)
    after = outcome(webhook(receiver.url)).retry_after_s
    assert after is None if least is None or most is None else after is not None and least <= after <= most


def test_retry_after_may_be_a_date() -> None:
    now = 1_750_000_000
    assert read_retry_after(email.utils.formatdate(now + 600, usegmt=True), now * 1_000_000) == 600


@given(st.one_of(st.text(max_size=40), st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} [A-Z][a-z]{2} \d{1,6} \d+:\d+:\d+ \S*"),
                 st.integers().map(str)))  # fmt: skip
def test_no_retry_after_does_harm(text: str) -> None:
    found = read_retry_after(text, now_us())
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_S


def test_the_excerpt_is_short_and_fit_to_be_shown(receiver: Receiver) -> None:
    receiver.behaviour = status(500, b"\x1b[31mred\x00\xff\r\nline\xe2\x80\xae" + b"x" * 5000)
    excerpt = outcome(webhook(receiver.url)).excerpt
    assert excerpt.startswith("[31mred �  line x")
    assert len(excerpt.encode()) <= MAX_EXCERPT_BYTES + 2
    assert excerpt.isprintable()


# Receivers that mean harm, and those that fail.


@pytest.mark.parametrize(
    ("behaviour", "found"),
    [
        (hang, None),
        (drip(b"HTTP/1.1 200 ", b"a"), None),
        (drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"), None),
        (drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.2), None),
        (drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x"), 200),
        (drip(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"), 500),
    ],
    ids=["hangs", "drips its status", "drips headers", "drips 1xx", "drips its body", "drips chunks"],
)
@on_both_loops
def test_nobody_takes_longer_than_the_deadline(
    receiver: Receiver,
    behaviour: Behaviour,
    found: int | None,
    loop_factory: LoopFactory,
) -> None:
    receiver.behaviour = behaviour
    sent, took = measured(lambda: outcome(webhook(receiver.url), loop_factory, deadline_s=SHORT_S))
    assert sent.status == found
    assert took < LONG_S / 3
    assert 0 < sent.seconds < LONG_S / 3
    if found is None:
        assert sent.error == "timed out after 0.6 s"
    receiver.wait_closed()


@on_both_loops
def test_who_reads_nothing_holds_nothing(loop_factory: LoopFactory) -> None:
    """The request does not fit into the system's buffers, so that its rest waits for the receiver to read."""
    body = b"x" * 20_000_000
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        hook = webhook(f"http://127.0.0.1:{deaf.getsockname()[1]}/")
        sent, took = measured(lambda: outcome(hook, loop_factory, body=body, deadline_s=SHORT_S))
        assert sent.error == "timed out after 0.6 s"
        assert took < LONG_S / 3
        connection, _ = deaf.accept()
        came = 0
        with connection, contextlib.suppress(ConnectionResetError):
            connection.settimeout(LONG_S)
            while part := connection.recv(2**20):
                came += len(part)
        assert came < len(body)


FULL = "x" * MAX_EXCERPT_BYTES
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("behaviour", "excerpt"),
    [
        pytest.param(flood(OK % 2**30, b"x" * 2**16), FULL, id="length"),
        pytest.param(flood(CHUNKED, b"10000\r\n%s\r\n" % (b"x" * 2**16)), FULL, id="chunked"),
        pytest.param(flood(CHUNKED, b"1\r\nx\r\n" * 2**13), FULL, id="small chunks"),
        pytest.param(flood(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 2**16), FULL, id="to the end"),
        pytest.param(flood(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", b"x" * 2**16), FULL, id="gzip"),
        pytest.param(flood(b"", b"x" * 2**16), None, id="no HTTP"),
        pytest.param(flood(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n" * 2**13), None, id="headers"),
        pytest.param(flood(b"HTTP/1.1 200 OK\r\nA: ", b"b" * 2**16), None, id="one header"),
        pytest.param(flood(b"", b"HTTP/1.1 102 \r\n\r\n" * 2**12), None, id="interim answers"),
    ],
)
@on_both_loops
def test_a_gigabyte_is_not_read(
    receiver: Receiver, behaviour: Behaviour, excerpt: str | None, loop_factory: LoopFactory
) -> None:
    taken = 0

    def count(connection: socket.socket, over: threading.Event) -> bool:
        nonlocal taken
        with contextlib.suppress(OSError):
            behaviour(connection, over)
        taken = int.from_bytes(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)[120:128], "little")
        return False

    receiver.behaviour = count
    sent, took = measured(lambda: outcome(webhook(receiver.url), loop_factory))
    if excerpt is None:
        assert sent.status is None
        assert sent.error in {"the answer is not HTTP", "the connection was closed without an answer"}
    else:
        assert (sent.status, sent.excerpt) == (200, excerpt)
    assert took < LONG_S / 3
    receiver.wait_closed()
    assert 0 < taken < 2**25, "the system's buffers, not the gigabyte"


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (reset, "connection reset by peer"),
        (hang_up, "the connection was closed without an answer"),
        (drip(b"", b"HTTP/1.1 102 \r\n\r\n", 0), "the connection was closed without an answer"),
        (raw(b"HTTP/1.1 2"), "the connection was closed without an answer"),
        (raw(b"SSH-2.0-OpenSSH_9.2\r\n"), "the answer is not HTTP"),
        (raw(b"HTTP/1.1 999999 No\r\n\r\n"), "the answer is not HTTP"),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n"), "the answer is not HTTP"),
    ],
)
@on_both_loops
def test_what_is_no_answer_is_told_apart(
    receiver: Receiver,
    behaviour: Behaviour,
    error: str,
    loop_factory: LoopFactory,
) -> None:
    receiver.behaviour = behaviour
    sent = outcome(webhook(receiver.url), loop_factory)
    assert (sent.status, sent.error) == (None, error)
    assert len(receiver.received) == 1, "a fresh connection's failure is not tried again at once"


def test_an_answer_that_breaks_off_stands(receiver: Receiver) -> None:
    receiver.behaviour = raw(OK % 100 + b"taken")
    sent = outcome(webhook(receiver.url))
    assert (sent.status, sent.excerpt) == (200, "taken")


@on_both_loops
def test_nobody_listens(loop_factory: LoopFactory) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        sent = outcome(webhook(f"http://127.0.0.1:{bound.getsockname()[1]}/"), loop_factory)
    assert (sent.status, sent.error) == (None, "connection refused")


@on_both_loops
def test_a_connection_that_is_never_made_is_given_up(loop_factory: LoopFactory) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with contextlib.ExitStack() as waiting:
            for _ in range(3):
                one = waiting.enter_context(socket.socket())
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            sent = outcome(webhook(f"http://127.0.0.1:{port}/"), loop_factory, deadline_s=SHORT_S)
    assert (sent.status, sent.error) == (None, "no connection within 0.2 s")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# Connections.


@on_both_loops
def test_connections_are_used_again(receiver: Receiver, loop_factory: LoopFactory) -> None:
    receiver.behaviour = status(200, b"y" * 60_000)

    async def work(sender: HttpSender) -> None:
        for number in range(10):
            assert (await sender.send(webhook(receiver.url), f"ev_{number}", BODY)).delivered

    sending(work, loop_factory)
    assert receiver.connections == 1


@pytest.mark.parametrize("ending", [reset, hang_up])
def test_a_kept_connection_that_its_receiver_has_closed_is_no_failure(receiver: Receiver, ending: Behaviour) -> None:
    """It closes while the next request is on its way: here, without an answer to it."""
    receiver.next.extend([status(200), ending])

    async def work(sender: HttpSender) -> None:
        for number in range(2):
            assert (await sender.send(webhook(receiver.url), f"ev_{number}", BODY)).status == 200

    sending(work)
    assert receiver.connections == 2
    assert [request.id for request in receiver.received] == ["ev_0", "ev_1", "ev_1"]


def test_connections_are_bounded_and_none_is_left_open(receiver: Receiver) -> None:
    """As many as are bounded to, all of them to a receiver that hangs, and then given up."""
    before = open_files()

    async def work(sender: HttpSender) -> None:
        receiver.behaviour = hang
        hook = webhook(receiver.url)
        tasks = [asyncio.create_task(sender.send(hook, f"ev_{number}", BODY)) for number in range(CONNECTIONS + 20)]
        await asyncio.to_thread(receiver.wait, CONNECTIONS)
        await asyncio.sleep(0)
        assert receiver.connections == CONNECTIONS
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(each, asyncio.CancelledError) for each in await asyncio.gather(*tasks, return_exceptions=True)
        )
        await asyncio.to_thread(receiver.wait_closed)
        receiver.behaviour = status(200)
        assert (await sender.send(hook, "ev_x", BODY)).delivered

    sending(work)
    receiver.wait_closed()
    gc.collect()
    assert open_files() <= before


def test_a_cancelled_attempt_leaves_no_connection(receiver: Receiver) -> None:
    async def work(sender: HttpSender) -> None:
        receiver.behaviour = hang
        task = asyncio.create_task(sender.send(webhook(receiver.url), "ev_1", BODY))
        await asyncio.to_thread(receiver.wait, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(receiver.wait_closed)

    sending(work)


def test_after_its_end_it_answers_still(receiver: Receiver) -> None:
    async def work(sender: HttpSender) -> None:
        await sender.close()
        assert (await sender.send(webhook(receiver.url), "ev_1", BODY)).error.startswith("failed: ")

    sending(work)
