"""A key's secret: how it is made, recognised and hashed. The secret itself is shown once and kept nowhere.

``turnlog_sk_`` + 32 characters of Crockford's base 32 (160 random bits) + 7 characters that are the CRC-32 of the
rest, so that a scanner can tell a real secret in a leaked file from a look-alike, and a typo is seen without a look-up.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PREFIX = "turnlog_sk_"
RANDOM_BITS = 160
_DIGITS = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_CHARS = RANDOM_BITS // 5
_CHECKSUM_CHARS = 7


def _base32(number: int, chars: int) -> str:
    return "".join(_DIGITS[(number >> shift) & 31] for shift in range(5 * (chars - 1), -1, -5))


def _checksum(text: str) -> str:
    return _base32(zlib.crc32(text.encode()), _CHECKSUM_CHARS)


def new_secret(random_bits: Callable[[int], int]) -> str:
    """A fresh secret. ``random_bits`` must be cryptographically strong."""
    body = PREFIX + _base32(random_bits(RANDOM_BITS), _RANDOM_CHARS)
    return body + _checksum(body)


def new_key_id(random_bits: Callable[[int], int]) -> str:
    """A fresh public id of a key: 80 random bits behind ``turnlog_id_``; not a secret."""
    return "turnlog_id_" + _base32(random_bits(80), 16)


def looks_like_secret(text: str) -> bool:
    """Whether ``text`` has the form and the checksum of a secret."""
    body, checksum = text[:-_CHECKSUM_CHARS], text[-_CHECKSUM_CHARS:]
    return len(body) == len(PREFIX) + _RANDOM_CHARS and body.startswith(PREFIX) and _checksum(body) == checksum


def digest(secret: bytes) -> bytes:
    """What is stored of a secret. One round of SHA-256 is enough for 160 random bits: there is no list to try."""
    return hashlib.sha256(secret).digest()
