"""Where a webhook's requests are not sent: to unknown certificates and to addresses inside.

The receivers are real ones on loopback; what a name means is made up, and for some tests which of them is "private".
"""

from __future__ import annotations

import asyncio
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.receiver import Receiver, flood, make_certificate, raw
from tests.sending import (
    BODY,
    LONG_S,
    OK,
    SECRET,
    SHORT_S,
    measured,
    on_both_loops,
    outcome,
    resolving,
    sending,
    webhook,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.receiver import Certificate
    from tests.sending import LoopFactory
    from turnlog.sending import HttpSender
    from turnlog.sent import Sent


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    assert shutil.which("openssl"), "these tests make a certificate with the openssl program"
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(SECRET) as made:
        yield made


# TLS.


@on_both_loops
def test_over_tls(certificate: Certificate, loop_factory: LoopFactory) -> None:
    with Receiver(SECRET, tls=certificate.server()) as receiver:
        resolve = resolving(["127.0.0.1"])
        for host in ("127.0.0.1", "receiver.example"):
            sent = outcome(webhook(receiver.url_at(host)), loop_factory, tls=certificate.client(), resolve=resolve)
            assert (sent.status, sent.error) == (200, "")
        assert receiver.received[1].headers["host"] == f"receiver.example:{receiver.port}"


def test_bad_certificates_are_refused(certificate: Certificate) -> None:
    with Receiver(SECRET, tls=certificate.server()) as receiver:
        unknown = outcome(webhook(receiver.url))
        assert unknown.error == "certificate: self-signed certificate"
        other = outcome(webhook(receiver.url_at("other.example")), tls=certificate.client(),
                        resolve=resolving(["127.0.0.1"]))  # fmt: skip
        assert other.error.startswith("certificate: Hostname mismatch")
        assert (unknown.status, other.status, receiver.received) == (None, None, [])


def test_a_receiver_that_does_not_speak_tls(receiver: Receiver, certificate: Certificate) -> None:
    sent = outcome(webhook(receiver.url.replace("http", "https")), deadline_s=SHORT_S)
    assert sent.status is None
    assert sent.error in {"no connection within 0.2 s", "connection reset by peer"} or sent.error.startswith("TLS: ")
    assert receiver.received == []
    with Receiver(SECRET, tls=certificate.server()) as encrypted:
        plain = outcome(webhook(encrypted.url.replace("https", "http")))
        assert plain.status is None


def test_a_gigabyte_over_tls(certificate: Certificate) -> None:
    with Receiver(SECRET, tls=certificate.server()) as receiver:
        receiver.behaviour = flood(OK % 2**30, b"x" * 2**16)
        sent, took = measured(lambda: outcome(webhook(receiver.url), tls=certificate.client()))
        assert sent.status == 200
        assert took < LONG_S / 3
        receiver.wait_closed()


# Where nothing is sent.


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::1",
                                     "10.0.0.1", "169.254.169.254", "fe80::1", "0.0.0.1", "fd00:ec2::254"])  # fmt: skip
@on_both_loops
def test_a_name_that_leads_inside_is_not_connected_to(
    address: str, certificate: Certificate, loop_factory: LoopFactory
) -> None:
    with Receiver(SECRET, tls=certificate.server()) as receiver:
        sent = outcome(webhook(receiver.url_at("receiver.example")), loop_factory, allow_private=False,
                       tls=certificate.client(), resolve=resolving([address]))  # fmt: skip
        assert sent.status is None
        assert sent.error.startswith(f"address {address} is ")
        assert receiver.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "[::ffff:7f00:1]", "2130706433", "0177.0.0.1", "0x7f.1",
                                  "127.1", "localhost", "a.localhost", "127.0.0.1."])  # fmt: skip
def test_a_literal_address_inside_is_not_connected_to(host: str, certificate: Certificate) -> None:
    """Should such a URL have been stored, by a copy or when private addresses were allowed."""
    with Receiver(SECRET, tls=certificate.server()) as receiver:
        sent = outcome(webhook(receiver.url_at(host)), allow_private=False, tls=certificate.client())
        assert sent.status is None
        assert sent.error
        plain = outcome(webhook(receiver.url_at(host).replace("https", "http")), allow_private=False)
        assert plain.error.startswith("the URL must begin with https://")
        assert receiver.connections == 0


def test_the_system_resolver_is_judged_like_any_other(certificate: Certificate) -> None:
    with Receiver(SECRET, tls=certificate.server()) as receiver:
        sent = outcome(webhook(receiver.url_at("localhost")), refuse=lambda address: f"{address}, not wanted")
        assert sent.error.startswith("address ")
        assert sent.error.endswith("not wanted")
        assert receiver.connections == 0


def only_the_first(address: str) -> str | None:
    """The judgement of a test: on loopback, the first address is everybody's and the others are private."""
    return None if address == "127.0.0.1" else "private"


def test_literal_addresses_are_judged_on_the_way_to_the_connection() -> None:
    with Receiver(SECRET, host="127.0.0.2") as inside:
        sent = outcome(webhook(inside.url), refuse=only_the_first)
        assert sent.error == "address 127.0.0.2 is private"
        assert inside.connections == 0


@on_both_loops
def test_a_name_that_changes_between_check_and_connection(receiver: Receiver, loop_factory: LoopFactory) -> None:
    """Public when it was looked at and when it was first sent to, and then this machine's network."""
    with Receiver(SECRET, host="127.0.0.2") as inside:
        receiver.behaviour = raw(OK % 0)
        hook = webhook(inside.url_at("name.example"))
        results: list[Sent] = []

        async def work(sender: HttpSender) -> None:
            outside = webhook(receiver.url_at("name.example"))
            results.append(await sender.send(outside, "ev_1", BODY))
            results.append(await sender.send(hook, "ev_2", BODY))

        sending(work, loop_factory, resolve=resolving(["127.0.0.1"], ["127.0.0.2"]), refuse=only_the_first)
        assert results[0].delivered
        assert results[1].error == "address 127.0.0.2 is private"
        assert inside.connections == 0


@on_both_loops
def test_a_mixture_of_addresses_only_ever_reaches_the_good_ones(receiver: Receiver, loop_factory: LoopFactory) -> None:
    with Receiver(SECRET, host="127.0.0.2") as inside:
        hook = webhook(receiver.url_at("name.example"))
        mixed = resolving(["127.0.0.2", "::1", "127.0.0.1"])
        assert outcome(hook, loop_factory, resolve=mixed, refuse=only_the_first).delivered
        closed = webhook(inside.url_at("name.example"))
        sent = outcome(closed, loop_factory, resolve=mixed, refuse=only_the_first)
        assert sent.error == "connection refused"
        assert inside.connections == 0


def test_what_a_resolver_can_do() -> None:
    async def failing(_: str) -> Sequence[str]:
        raise OSError(0, "no such name")

    async def hanging(_: str) -> Sequence[str]:
        return await asyncio.Future()

    hook = webhook("https://name.example/")
    assert outcome(hook, resolve=failing).error == "the name was not found: no such name"
    assert outcome(hook, resolve=hanging, deadline_s=SHORT_S).error == "timed out after 0.6 s"
    assert outcome(hook, resolve=resolving([])).error == "the name was not found: it has no address"
    for strange in ("name.example", "127.0.0.1%lo", "2130706433", ""):
        assert outcome(hook, resolve=resolving([strange])).error.startswith(f"address {strange} is ")
    assert outcome(webhook("https://no-such-name.invalid/")).error.startswith("the name was not found: ")
