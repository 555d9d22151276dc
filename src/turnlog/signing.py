"""How a webhook's requests are signed: by the Standard Webhooks specification (https://www.standardwebhooks.com).

What is signed, symmetrically, is ``id.timestamp.body``, so that nobody can change one of them or send an old request
again as a new one. The secrets are kept as they are, since who signs needs them; nothing here puts one into a message.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from turnlog.model import SigningSecret

PREFIX = "whsec_"
MIN_SECRET_BYTES = 24
MAX_SECRET_BYTES = 64
NEW_SECRET_BYTES = 32
"""As many as SHA-256 gives: more would add nothing."""
_VERSION = "v1"


class BadSecretError(ValueError):
    """The text cannot be used as a signing secret; the message says why and never what the text was."""


def new_secret(random_bits: Callable[[int], int]) -> str:
    """A fresh secret. ``random_bits`` must be cryptographically strong."""
    key = random_bits(8 * NEW_SECRET_BYTES).to_bytes(NEW_SECRET_BYTES, "big")
    return PREFIX + base64.b64encode(key).decode("ascii")


def check_secret(text: str) -> None:
    """Raises BadSecretError where ``text`` is not ``whsec_`` and the base64 of 24 to 64 bytes."""
    size = len(_key(text))
    if not MIN_SECRET_BYTES <= size <= MAX_SECRET_BYTES:
        raise BadSecretError(f"the secret has {size} bytes: {MIN_SECRET_BYTES} to {MAX_SECRET_BYTES} are accepted")


def _key(text: str) -> bytes:
    """The bytes that ``text`` stands for. Raises BadSecretError."""
    if not text.startswith(PREFIX):
        raise BadSecretError(f"the secret does not begin with {PREFIX}")
    encoded = text[len(PREFIX) :]
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    # Receivers' libraries do not agree on what else they take for base64: what they all read alike is the one canonical
    # form.
    if not key or base64.b64encode(key).decode("ascii") != encoded:
        raise BadSecretError(f"what follows {PREFIX} is not base64, of the alphabet with + and /, padded with =")
    return key


def live(secrets: Iterable[SigningSecret], now_us: int) -> list[str]:
    """The secrets that requests are signed with at ``now_us``, in the order in which they are given."""
    return [each.secret for each in secrets if each.expires_at is None or now_us < each.expires_at]


def signed_headers(secrets: Sequence[str], event_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
    """The three headers of a request, signed with each of ``secrets`` so that a receiver may know any one of them.

    Raises BadSecretError where there is none, or one that ``check_secret`` would refuse for its form.
    """
    if not secrets:
        raise BadSecretError("there is no secret to sign with: each of them has expired")
    content = f"{event_id}.{timestamp_s}.".encode() + body
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(_signature(_key(secret), content) for secret in secrets),
    }


def _signature(key: bytes, content: bytes) -> str:
    return f"{_VERSION},{base64.b64encode(hmac.digest(key, content, 'sha256')).decode('ascii')}"
