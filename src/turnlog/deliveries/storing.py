"""All that a session has to do with the store: what it has achieved is stored, what others changed is learned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from turnlog.deliveries.attempts import STORE_AWAY_S
from turnlog.deliveries.means import Bell
from turnlog.deliveries.retrying import MANY_DEAD
from turnlog.store.protocol import StoreFailedError, StoreUnavailableError, StoreUncertainError
from turnlog.store.webhooks import MOST_REPLAYS

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.deliveries.attempts import Attempts
    from turnlog.deliveries.retrying import Retrying
    from turnlog.store.webhooks import Delivery

SAVE_INTERVAL_S = 1.0
STORE_ERRORS = (StoreUnavailableError, StoreUncertainError, StoreFailedError)
_log = structlog.get_logger()


class Storing:
    """``end`` ends the session, which then begins anew with what the store says."""

    def __init__(self, attempts: Attempts, retrying: Retrying, end: Callable[[], None]) -> None:
        self._attempts = attempts
        self._retrying = retrying
        self._window = attempts.window
        self._end = end
        self._more_replays = len(attempts.delivery.replays) >= MOST_REPLAYS
        self._bell = Bell(attempts.means.sleep)
        self._save_at: float | None = None
        self._look = False
        self.lost = False
        """The store says that the webhook is not this process's any more."""

    def touched(self) -> None:
        """There may be something to be stored: within the interval, so that many events are one row's change."""
        if self._save_at is None and self._window.is_dirty:
            self._save_at = self._attempts.means.monotonic_s() + SAVE_INTERVAL_S
            self._bell.ring()
        elif self._is_urgent:
            self._bell.ring()

    def look_again(self) -> None:
        """Somebody may have changed the webhook."""
        self._look = True
        self._bell.ring()

    def ring(self) -> None:
        """The session may have ended, or the claim been renewed."""
        self._bell.ring()

    @property
    def _is_urgent(self) -> bool:
        settled = self._attempts.disabled is not None and not self._window.busy
        return settled or len(self._window.dead) >= MANY_DEAD

    async def run(self) -> None:
        """Until the session ends."""
        attempts = self._attempts
        while not attempts.ended:
            left_s = None if self._save_at is None else self._save_at - attempts.means.monotonic_s()
            if not attempts.has_claim:
                await self._bell.wait(None)
            elif self._look:
                await self._look_again()
            elif self._is_urgent or (left_s is not None and left_s <= 0):
                await self.save()
            else:
                await self._bell.wait(left_s)

    async def save(self) -> None:
        """Store what was achieved; where the store does not answer, it stays what is to be stored."""
        attempts, window = self._attempts, self._window
        if not attempts.is_current:  # it may be ahead of the log
            self._end()
            return
        webhook, revision = attempts.delivery.webhook, attempts.delivery.revision
        progress = window.progress(webhook.account, webhook.id, revision, attempts.disabled)
        try:
            stored = await attempts.means.store.save_progress(attempts.means.owner, progress)
        except STORE_ERRORS as error:
            window.back(progress)
            _log.warning("webhook_progress_not_saved", webhook=webhook.id, error=str(error))
            self._save_at = attempts.means.monotonic_s() + STORE_AWAY_S
            if not attempts.ended:
                await self._bell.wait(STORE_AWAY_S)
            return
        if not stored:
            window.back(progress)
            await self._look_again(expected=revision + 1)
            return
        window.saved(progress)
        self._save_at = None
        if attempts.disabled is not None:
            _log.warning("webhook_disabled", webhook=webhook.id, reason=attempts.disabled)
            self._end()
            return
        self.touched()
        self._retrying.give_up_old()
        attempts.on_news()  # there may be room again: for what is read, and for dead letters
        if self._more_replays and self._retrying.replays_settled and not (window.dead or window.replayed):
            self._look = True

    async def _look_again(self, expected: int = 0) -> None:
        """Ask what others have changed: go on with it, or end. Below revision ``expected``, the claim is lost."""
        attempts = self._attempts
        webhook = attempts.delivery.webhook
        self._look = False
        try:
            delivery = await attempts.means.store.delivery(webhook.account, webhook.id)
        except STORE_ERRORS:
            self._look = True
            if not attempts.ended:
                await self._bell.wait(STORE_AWAY_S)
            return
        if delivery is not None and delivery.revision < expected:
            self.lost = True
        elif delivery is not None and _goes_on(attempts.delivery, delivery):
            attempts.delivery = delivery
            self._more_replays = len(delivery.replays) >= MOST_REPLAYS
            self._retrying.expect(delivery.replays)
            attempts.on_news()
            return
        self._end()


def _goes_on(before: Delivery, now: Delivery) -> bool:
    """Whether cursor and blocked conversations are still those that the session has left there, and the receiver is.

    Whoever moves them or enables the webhook also sets ``retry_from_at``; another owner would have had to have the
    claim, which then was not ours without a break, and that ends a session by itself.
    """
    same = (before.webhook.types, before.webhook.url) == (now.webhook.types, now.webhook.url)
    return same and before.retry_from_at == now.retry_from_at and now.webhook.disabled is None
