"""What is sent to a webhook, and that the published library verifies it."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING

import pytest
import standardwebhooks

from tests.receiver import Receiver, status
from tests.sending import BODY, OTHER, SECRET, now_us, on_both_loops, outcome, webhook
from turnlog.model import SigningSecret, Webhook
from turnlog.signing import BadSecretError, check_secret, live, new_secret, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.sending import LoopFactory


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver(SECRET) as made:
        yield made


@on_both_loops
def test_what_is_sent_and_that_it_is_signed(receiver: Receiver, loop_factory: LoopFactory) -> None:
    receiver.behaviour = status(204)
    sent = outcome(webhook(receiver.url_at("127.0.0.1", "/a%2Fb?sig=x%2By%3D%26&b=")), loop_factory)
    assert (sent.status, sent.error, sent.delivered, sent.excerpt, sent.retry_after_s) == (204, "", True, "", None)
    (request,) = receiver.received
    assert request.body == BODY
    assert request.path == "/a%2Fb?sig=x%2By%3D%26&b="
    assert request.id == "ev_1"
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 5
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("turnlog/")
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["content-length"] == str(len(BODY))
    assert set(request.headers) == {"host", "accept", "accept-encoding", "content-length", "content-type", "user-agent",
                                    "webhook-id", "webhook-timestamp", "webhook-signature"}  # fmt: skip


@pytest.mark.parametrize("known", [SECRET, OTHER])
def test_during_a_rotation_either_secret_verifies(known: str) -> None:
    with Receiver(known) as receiver:
        assert outcome(webhook(receiver.url, SECRET, OTHER)).delivered
        assert len(receiver.received[0].headers["webhook-signature"].split(" ")) == 2


def test_an_expired_secret_signs_nothing() -> None:
    now = now_us()
    kept = (SigningSecret(OTHER, 0, now - 1), SigningSecret(SECRET, 0, now + 60_000_000))
    with Receiver(OTHER) as receiver:
        hook = webhook(receiver.url)
        rotated = Webhook(hook.id, hook.account, hook.url, kept, 0, 0)
        assert outcome(rotated).status == 401
        receiver.secrets[:] = [SECRET]
        assert outcome(rotated).delivered
        receiver.sent_away.clear()
    gone = outcome(Webhook(hook.id, hook.account, hook.url, kept[:1], 0, 0))
    assert gone.status is None
    assert "expired" in gone.error
    assert live(kept, kept[1].expires_at or 0) == []


def test_a_changed_body_id_or_timestamp_does_not_verify() -> None:
    at = int(time.time())
    good = signed_headers([SECRET], "ev_1", at, BODY)
    verifier = standardwebhooks.Webhook(SECRET)
    assert verifier.verify(BODY, good) == {"type": "message.created", "text": "Grüße 🙂"}
    for headers, body in ((good, BODY + b" "), ({**good, "webhook-id": "ev_2"}, BODY),
                          ({**good, "webhook-timestamp": str(at + 1)}, BODY)):  # fmt: skip
        with pytest.raises(standardwebhooks.WebhookVerificationError):
            verifier.verify(body, headers)


def test_secrets_are_checked() -> None:
    for text in (SECRET, "whsec_" + "A" * 32, "whsec_" + "A" * 86 + "==", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"):
        check_secret(text)
    assert len({new_secret(secrets.randbits) for _ in range(100)}) == 100
    bad = [("", "begin"), ("A" * 32, "begin"), ("WHSEC_" + "A" * 32, "begin"), ("whsec_", "base64"),
           ("whsec_" + "A" * 28, "21 bytes"), ("whsec_" + "A" * 88, "66 bytes"), ("whsec_" + "A" * 33, "base64"),
           ("whsec_" + "A" * 42, "base64"), ("whsec_" + "-" * 32, "base64"), ("whsec_" + "A" * 32 + "\n", "base64"),
           ("whsec_" + "A" * 42 + "B=", "base64"), ("whsec_" + "ä" * 32, "base64")]  # fmt: skip
    for text, part in bad:
        with pytest.raises(BadSecretError) as refused:
            check_secret(text)
        assert part in str(refused.value)
        assert len(text) < 8 or text[6:] not in str(refused.value)
