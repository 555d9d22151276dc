"""Failed credentials: beyond a few a second, from one source or for one id, each is refused late.

Right credentials are let in at once wherever they come from and however often their id is guessed at: nobody can lock
a key out, or those who share an address with a guesser. What is counted is what was sent, not whether there is such a
key, so how late a refusal comes tells nothing about that. 160 random bits keep guesses from succeeding; this keeps them
from taking the time of others, and what it remembers is bounded.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import structlog

from turnlog.errors import RateLimitedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LATE_S = 2.0
"""How late a refusal is that is late."""
MOST_LATE = 256
"""How many refusals of one source are held back at once; one more is turned away at once, and its connection closed."""
MOST_REMEMBERED = 4096
"""Of how many sources, and of how many ids, failures are remembered: of those that failed last."""
_ID_CHARS = 64
"""Longer than any id of a key: what is longer is cut, so that what is remembered is bounded."""
_TELL_EVERY_S = 10.0
_log = structlog.get_logger()


class Allowance(NamedTuple):
    """``at_once`` failures are refused at once, and then ``per_s`` a second."""

    at_once: float
    per_s: float


OF_A_SOURCE = Allowance(at_once=200, per_s=100)
OF_AN_ID = Allowance(at_once=50, per_s=10)


class _Failures:
    """What is left of an allowance, for each of those that failed last."""

    def __init__(self, allowance: Allowance) -> None:
        self._allowance = allowance
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def are_many(self, name: str, now_s: float) -> bool:
        """Count one more; whether that is one too many."""
        at_once, per_s = self._allowance
        left, counted_at_s = self._left.pop(name, (at_once, now_s))
        left = min(at_once, left + (now_s - counted_at_s) * per_s)
        many = left < 1
        self._left[name] = (left if many else left - 1, now_s)
        if len(self._left) > MOST_REMEMBERED:
            self._left.popitem(last=False)
        return many

    def __len__(self) -> int:
        return len(self._left)


class Guesses:
    """The failed credentials of one process. ``monotonic_s`` measures their rate."""

    def __init__(self, monotonic_s: Callable[[], float]) -> None:
        self._now_s = monotonic_s
        self._of_sources = _Failures(OF_A_SOURCE)
        self._of_ids = _Failures(OF_AN_ID)
        self._late: Counter[str] = Counter()
        self._untold = 0
        self._told_at_s: float | None = None

    @property
    def late(self) -> int:
        """How many refusals are held back."""
        return self._late.total()

    def are_many(self, address: str, key_id: str | None) -> bool:
        """Count credentials from ``address`` that failed; whether their refusal is to come late.

        ``key_id`` is what they named, ``None`` where they named none, or several.
        """
        now_s, source = self._now_s(), source_of(address)
        many = self._of_sources.are_many(source, now_s)
        if key_id is not None:
            many |= self._of_ids.are_many(key_id[:_ID_CHARS], now_s)
        if many:
            self._tell(source, now_s)
        return many

    @contextmanager
    def holding_back(self, address: str) -> Iterator[None]:
        """While this lasts, a refusal is held back. Raises RateLimitedError where too many of this source's are."""
        source = source_of(address)
        if self._late[source] >= MOST_LATE:
            raise RateLimitedError(
                "too many failed attempts from this address: wait, then retry", retry_after_s=int(LATE_S)
            )
        self._late[source] += 1
        try:
            yield
        finally:
            self._late[source] -= 1
            if not self._late[source]:
                del self._late[source]

    def _tell(self, source: str, now_s: float) -> None:
        """Log it now and then: not for each guess."""
        self._untold += 1
        if self._told_at_s is None or now_s >= self._told_at_s + _TELL_EVERY_S:
            _log.warning("credentials_guessed", source=source, refused_late=self._untold)
            self._untold, self._told_at_s = 0, now_s


def source_of(address: str) -> str:
    """Who an IP address belongs to: itself, or of IPv6 the /64, which is one household's or one machine's."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, 64), strict=False))
