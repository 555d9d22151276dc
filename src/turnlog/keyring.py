"""Who may come in: keys in memory, checked on every request without asking the store, kept fresh by polling it.

The order of the checks is the contract's: credentials, then permission, then rate.
"""

from __future__ import annotations

import hmac
import math
from typing import TYPE_CHECKING

import msgspec
import structlog

from turnlog import secret as secrets
from turnlog.errors import ForbiddenError, OverloadedError, RateLimitedError, UnauthenticatedError
from turnlog.guesses import Guesses
from turnlog.model import ApiKey

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from turnlog.model import Permission
    from turnlog.store.protocol import KeyRecord, KeyStore

REFRESH_INTERVAL_S = 0.25
"""How often the store is asked whether a key has changed: a revocation is in force within a second."""

_ROUNDING = 1e-6
"""Whole requests and seconds come of fractions: a third of a request three times over is one."""
_REFUSED = "the asapp-api-id and asapp-api-secret headers must name a key and its secret, once each"
_log = structlog.get_logger()


class Bucket:
    """A token bucket of ``rate_per_s`` requests a second, which is also the largest burst.

    Where one of several ``workers`` counts, it is of that worker's share; the largest burst is one request at least.
    """

    def __init__(self, rate_per_s: float, now_s: float, workers: int = 1) -> None:
        self.rate_per_s = rate_per_s
        self._workers = workers
        self._share_per_s = rate_per_s / workers
        self._size = max(1.0, self._share_per_s)
        self._tokens = self._size
        self._filled_at = now_s

    def take(self, now_s: float) -> None:
        """Raises RateLimitedError where the rate is used up, saying when to come back, in whole seconds."""
        self._fill(now_s)
        if self._tokens < 1 - _ROUNDING:
            share = "" if self._workers == 1 else f" (of which each of {self._workers} workers takes its share)"
            raise RateLimitedError(
                f"this key may send {self.rate_per_s:g} requests a second{share}: wait, then retry",
                retry_after_s=max(1, self._seconds_for(1 - self._tokens)),
            )
        self._tokens = max(0.0, self._tokens - 1)

    def fields(self) -> tuple[tuple[str, str], ...]:
        """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers): what this bucket admits."""
        full_in_s = self._seconds_for(self._size - self._tokens)
        return (
            ("ratelimit-policy", f'"default";q={int(self._size)};w={max(1, self._seconds_for(self._size))}'),
            ("ratelimit", f'"default";r={int(self._tokens + _ROUNDING)};t={full_in_s}'),
        )

    def _seconds_for(self, tokens: float) -> int:
        return math.ceil(tokens / self._share_per_s - _ROUNDING)

    def _fill(self, now_s: float) -> None:
        self._tokens = min(self._size, self._tokens + max(0.0, now_s - self._filled_at) * self._share_per_s)
        self._filled_at = now_s


class Held(msgspec.Struct):
    """A key in memory, with what a request needs of it."""

    key: ApiKey
    secrets: tuple[tuple[bytes, int | None], ...]
    bucket: Bucket | None


class Keyring:
    """The keys that are good now. ``now_us`` is the wall clock (expiry), ``monotonic_s`` measures rates.

    Of a key's rate, one of several ``workers`` admits its share.
    """

    def __init__(self, now_us: Callable[[], int], monotonic_s: Callable[[], float], workers: int = 1) -> None:
        self._now_us = now_us
        self._workers = workers
        self._monotonic_s = monotonic_s
        self._held: dict[str, Held] = {}
        self._nobody: tuple[tuple[bytes, int | None], ...] = ((bytes(32), None),)
        self._version: int | None = None
        self.guesses = Guesses(monotonic_s)
        self.on_change: Callable[[], None] = _nothing
        """Called when the keys are others than before."""

    def load(self, records: Iterable[KeyRecord]) -> None:
        """Replace every key; a rate that did not change goes on being counted."""
        before, now_s = self._held, self._monotonic_s()
        held = {}
        for record in records:
            key = record.key
            if key.revoked_at is not None or not record.secrets:
                continue
            bucket = before[key.id].bucket if key.id in before else None
            if bucket is None or bucket.rate_per_s != key.rate_per_s:
                bucket = None if key.rate_per_s is None else Bucket(key.rate_per_s, now_s, self._workers)
            held[key.id] = Held(key, tuple((s.digest, s.expires_at) for s in record.secrets), bucket)
        self._held = held

    async def refresh(self, store: KeyStore) -> None:
        """Load the keys again where the store says that any changed."""
        version = await store.keys_version()
        if version != self._version:
            self.load(await store.keys())
            self._version = version
            self.on_change()

    async def follow(self, store: KeyStore, sleep: Callable[[float], Awaitable[object]]) -> None:
        """Refresh for ever. A store that does not answer is tried again: the keys known so far stay in force."""
        failing = False
        while True:
            await sleep(REFRESH_INTERVAL_S)
            try:
                await self.refresh(store)
            except Exception as error:  # noqa: BLE001 - whatever it was, the next round tries again
                if not failing:  # once, not four times a second for as long as it takes
                    _log.warning("keys_not_refreshed", error=f"{type(error).__name__}: {error}")
                failing = True
            else:
                failing = False

    def good_for_s(self, key_id: str, secret: bytes, permission: Permission) -> float | None:
        """For how many seconds these credentials will be good, unless they are revoked before; ``None``: for ever.

        Raises UnauthenticatedError and ForbiddenError as for a request with them; counts towards no rate.
        """
        held = self.authenticate(key_id, secret)
        if permission not in held.key.permissions:
            raise ForbiddenError(f"this key does not have the permission {permission}")
        digest = secrets.digest(secret)
        ends = [held.key.expires_at, *(end for stored, end in held.secrets if stored == digest)]
        end = min((end for end in ends if end is not None), default=None)
        return None if end is None else (end - self._now_us()) / 1e6

    def authenticate(self, key_id: str, secret: bytes) -> Held:
        """The key that these credentials are good for. Raises UnauthenticatedError, the same for every reason.

        An unknown id costs the same hash and comparison as a wrong secret, and a comparison takes the same time
        wherever the difference is. Raises OverloadedError where no keys could be loaded so far.
        """
        if self._version is None:
            raise OverloadedError("the store has not answered yet", retry_after_s=1)
        held = self._held.get(key_id)
        digest = secrets.digest(secret)
        good = False
        for stored, expires_at in self._nobody if held is None else held.secrets:
            good |= hmac.compare_digest(stored, digest) and (expires_at is None or self._now_us() < expires_at)
        if held is None or not good or (held.key.expires_at is not None and self._now_us() >= held.key.expires_at):
            raise UnauthenticatedError(_REFUSED)
        return held

    def admit(self, held: Held, permission: Permission | None) -> None:
        """Raises ForbiddenError where the key lacks ``permission``, then RateLimitedError where it is over its rate."""
        if permission is not None and permission not in held.key.permissions:
            raise ForbiddenError(f"this key does not have the permission {permission}")
        if held.bucket is not None:
            held.bucket.take(self._monotonic_s())


def _nothing() -> None:
    pass


def unauthenticated() -> UnauthenticatedError:
    """The refusal of credentials that are missing or sent twice: the same words as for wrong ones."""
    return UnauthenticatedError(_REFUSED)
