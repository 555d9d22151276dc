"""The ids that this program makes (ULIDs) and the places in a listing that it hands out (opaque cursors)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_LOW_BITS = 20
_LOW_MASK = (1 << _LOW_BITS) - 1


def _crockford(number: int, pairs: int) -> str:
    """``number`` in 2 * ``pairs`` digits of Crockford's base 32."""
    return "".join(_PAIRS[(number >> shift) & 1023] for shift in range(10 * (pairs - 1), -1, -10))


class Ulids:
    """A source of ULIDs: 26 characters, strictly increasing within the source, whatever the wall clock does.

    Within a millisecond, and while the clock stands behind the last id, the random part counts up (ULID
    specification, "Monotonicity"); its upper 60 bits are then rendered already and only the lower 20 change, which
    makes an id cost well under a microsecond.
    """

    def __init__(self, now_us: Callable[[], int], random_bits: Callable[[int], int]) -> None:
        self._now_us = now_us
        self._random_bits = random_bits
        self._ms = -1
        self._high = 0
        self._low = 0
        self._prefix = ""

    def new(self) -> str:
        """The next id."""
        ms = self._now_us() // 1000
        if ms > self._ms:
            self._start(ms, self._random_bits(60), self._random_bits(_LOW_BITS))
        elif self._low < _LOW_MASK:
            self._low += 1
        elif self._high < (1 << 60) - 1:
            self._start(self._ms, self._high + 1, 0)
        else:
            self._start(self._ms + 1, self._random_bits(60), self._random_bits(_LOW_BITS))
        low = self._low
        return self._prefix + _PAIRS[low >> 10] + _PAIRS[low & 1023]

    def _start(self, ms: int, high: int, low: int) -> None:
        self._ms, self._high, self._low = ms, high, low
        self._prefix = _crockford(ms, 5) + _crockford(high, 6)


class Place(NamedTuple):
    """Where a page of a listing ended: listings are ordered by ``client_at``, then by ``position``."""

    client_at: int
    position: int


class NotACursorError(ValueError):
    """The text is no cursor of this conversation, or of this log."""


_PLACE = struct.Struct(">qq")
_POSITION = struct.Struct(">q")
_TAG_BYTES = 8


def _tag(payload: bytes, conversation: str) -> bytes:
    return hashlib.blake2b(payload + conversation.encode(), digest_size=_TAG_BYTES, person=b"turnlog cursor").digest()


def cursor(place: Place, conversation: str) -> str:
    """``place`` as an opaque text that only ``conversation``'s listing takes back.

    The tag finds mistakes, not forgers: a made-up place shows nothing that the listing would not show anyway.
    """
    payload = _PLACE.pack(*place)
    return base64.urlsafe_b64encode(payload + _tag(payload, conversation)).decode()


def place(text: str, conversation: str) -> Place:
    """The place that ``cursor`` gave this text for. Raises NotACursorError."""
    try:
        raw = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise NotACursorError(text) from None
    payload, tag = raw[: _PLACE.size], raw[_PLACE.size :]
    if len(raw) != _PLACE.size + _TAG_BYTES or not hmac.compare_digest(tag, _tag(payload, conversation)):
        raise NotACursorError(text)
    return Place(*_PLACE.unpack(payload))


class LogCursors:
    """Positions of one account's log as opaque texts, which are at once the ids of the events there.

    ``log_name`` is the store's: another store, restored or new, takes none of them for its own.
    """

    def __init__(self, log_name: str, account: str) -> None:
        self._tagged = hashlib.blake2b(f"{log_name}/{account}".encode(), digest_size=_TAG_BYTES, person=b"turnlog log")

    def cursor(self, position: int) -> str:
        """The place behind ``position``; 22 characters that stand in no need of quoting."""
        payload = _POSITION.pack(position)
        tag = self._tagged.copy()
        tag.update(payload)
        return base64.urlsafe_b64encode(payload + tag.digest())[:22].decode()

    def position(self, text: str) -> int:
        """What ``cursor`` gave this text for. Raises NotACursorError."""
        try:
            raw = base64.b64decode(text + "==", altchars=b"-_", validate=True)
            position = int(_POSITION.unpack_from(raw)[0])
            same = hmac.compare_digest(text.encode(), self.cursor(position).encode())
        except (binascii.Error, ValueError, struct.error):
            raise NotACursorError(text) from None
        if not same:
            raise NotACursorError(text)
        return position
