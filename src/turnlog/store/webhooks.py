"""The specification of storage for webhooks: a subscription is a cursor over the log.

Nothing is kept per message until its delivery fails.

Safe beside running servers, from any process. Where a call does not say otherwise, it raises StoreUnavailableError
while the store does not answer; what changes something raises StoreUncertainError where the way to the store was cut,
and StoreFailedError, as ``append`` does. All but ``add_webhook`` may then simply be asked for again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from turnlog.model import Blocked, DeadLetter, Webhook

MOST_REPLAYS = 1000
"""How many of the dead letters that are to be sent again a delivery comes with."""
BEING_DELETED = "it is being deleted"
"""Why a webhook is disabled that has too many dead letters to be forgotten at once."""


class Delivery(msgspec.Struct, frozen=True):
    """How far a webhook has got.

    Everything up to ``position`` was delivered, given up (a dead letter), or belongs to a ``blocked`` conversation.
    ``retry_from_at``: an event is tried for three days from its own time or from this one, whichever is later (the
    webhook's creation, its last replay, the end of being disabled). ``revision`` grows with every change from outside
    and with every new owner. ``replays`` are the first MOST_REPLAYS in the order of the log: as many mean that there
    may be more, to be asked for once these are settled. ``hold_until``: its receiver asked for nothing before.
    """

    webhook: Webhook
    position: int
    retry_from_at: int
    revision: int
    blocked: tuple[Blocked, ...] = ()
    replays: tuple[DeadLetter, ...] = ()
    hold_until: int = 0


class Progress(msgspec.Struct, frozen=True):
    """What a worker has achieved since it last said so. All of it is stored, or nothing.

    No text in it has a NUL, which PostgreSQL cannot keep.
    """

    account: str
    webhook_id: str
    revision: int
    position: int
    blocked: Sequence[Blocked] = ()
    """New ones, and those that have changed, by their conversations."""
    unblocked: Sequence[str] = ()
    """Conversations that are not blocked any more."""
    dead: Sequence[DeadLetter] = ()
    """Given up now. One that was replayed and failed again is among them with ``replayed`` false."""
    replayed: Sequence[int] = ()
    """The positions of replayed dead letters that were delivered: they are forgotten."""
    disabled: str | None = None
    """Why nothing is to be sent any more, where that is so."""
    hold_until: int = 0
    """See Delivery."""


class WebhookStore(Protocol):
    """The side of a store that keeps webhooks, and which process works for each of them."""

    async def webhooks_version(self) -> int:
        """A number that grows with every change to any webhook but for progress: cheap to ask for."""

    async def webhooks(self, account: str) -> list[Webhook]:
        """The account's webhooks, in the order of creation."""

    async def add_webhook(self, webhook: Webhook, position: int) -> None:
        """Keep a new webhook whose cursor stands at ``position``; its ``created_at`` is its ``retry_from_at``.

        Raises SettingError where there is no such account.
        """

    async def change_webhook(self, webhook: Webhook, retry_from_at: int | None = None) -> bool:
        """Replace everything but cursor and ``created_at``; whether it is there.

        Another URL is another receiver: ``hold_until`` ends, and what is blocked is due at once.
        Whoever reads, changes and writes is not kept from overwriting what another one wrote in between.
        """

    async def delete_webhook(self, account: str, webhook_id: str) -> bool:
        """Forget it with all that belongs to it; whether it was there.

        Where this is cut short, it may be there still, disabled (BEING_DELETED): it has to be asked for again.
        """

    async def delivery(self, account: str, webhook_id: str) -> Delivery | None:
        """How far it has got, with all blocked conversations and the first replays."""

    async def dead_letters(self, account: str, webhook_id: str, *, after: int, limit: int) -> list[DeadLetter]:
        """Those behind position ``after``, in the order of the log."""

    async def replay_from(self, account: str, webhook_id: str, position: int, at: int) -> bool:
        """Put the cursor back to ``position``, with nothing blocked and no dead letter behind it; whether it is there.

        ``at`` becomes ``retry_from_at``. A position ahead of the cursor skips what is between, blocked or not. Where
        this is cut short, the cursor may have been put back already, and dead letters be listed still that it passes.
        """

    async def replay_dead(self, account: str, webhook_id: str, positions: Sequence[int] | None) -> int:
        """Mark dead letters (``None``: all) as to be sent again; how many were marked that were not before.

        Where this is cut short, some may have been marked.
        """

    async def claim_webhooks(self, owner: str, ttl_s: float) -> list[tuple[str, str]]:
        """Become or stay the one that works for webhooks that nobody works for; account and id of all that are ours.

        A claim ends ``ttl_s`` after it was last made, by the store's own clock: count from before the call. Disabled
        ones are claimed, too. A store that one process records in gives that one all, with no end: whoever claims last
        owns them, and only the process that records may.
        """

    async def release_webhooks(self, owner: str) -> None:
        """End all claims of ``owner``."""

    async def save_progress(self, owner: str, progress: Progress) -> bool:
        """Store what was achieved; ``False``, with nothing stored, where it is not the worker's to say any more.

        That is where the webhook is not ``owner``'s any more, was deleted, or has another revision: the worker then
        has to ask for its delivery again. The same progress may be saved again, until another is.
        """
