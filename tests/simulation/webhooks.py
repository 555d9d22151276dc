"""Webhooks as a store in memory keeps them: what store/webhooks.py specifies, without waiting for anything."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from turnlog.store.webhooks import MOST_REPLAYS, Delivery

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnlog.model import Blocked, DeadLetter, Webhook
    from turnlog.store.webhooks import Progress


class Kept:
    """A webhook as the store has it."""

    def __init__(self, webhook: Webhook, position: int) -> None:
        self.webhook = webhook
        self.position = position
        self.retry_from_at = webhook.created_at
        self.hold_until = 0
        self.revision = 1
        self.blocked: dict[str, Blocked] = {}
        self.dead: dict[int, DeadLetter] = {}
        self.owner: str | None = None
        self.claimed_until = 0.0


class WebhookRows:
    """Several processes may claim them, unless ``alone``: then whoever claims last has them all, without an end."""

    def __init__(self, *, alone: bool = False) -> None:
        self._alone = alone
        self.kept: dict[str, Kept] = {}
        self.version = 0

    def find(self, webhook_id: str) -> Delivery | None:
        kept = self.kept.get(webhook_id)
        if kept is None:
            return None
        replays = tuple(one for _, one in sorted(kept.dead.items()) if one.replayed)[:MOST_REPLAYS]
        blocked = tuple(kept.blocked.values())
        return Delivery(
            kept.webhook, kept.position, kept.retry_from_at, kept.revision, blocked, replays, kept.hold_until
        )

    def claim(self, owner: str, ttl_s: float) -> list[tuple[str, str]]:
        ours, now_s = [], asyncio.get_running_loop().time()
        for kept in self.kept.values():
            if not self._alone and kept.owner not in (None, owner) and kept.claimed_until > now_s:
                continue
            kept.revision += kept.owner != owner
            kept.owner, kept.claimed_until = owner, now_s + (float("inf") if self._alone else ttl_s)
            ours.append((kept.webhook.account, kept.webhook.id))
        return ours

    def release(self, owner: str) -> None:
        for kept in self.kept.values():
            if kept.owner == owner:
                kept.owner = None

    def save(self, owner: str, progress: Progress) -> bool:
        kept = self.kept.get(progress.webhook_id)
        if kept is None or kept.owner != owner or kept.revision != progress.revision:
            return False
        kept.position, kept.hold_until = progress.position, progress.hold_until
        kept.blocked.update((one.conversation, one) for one in progress.blocked)
        for conversation in progress.unblocked:
            kept.blocked.pop(conversation, None)
        kept.dead.update((one.position, one) for one in progress.dead)
        for position in progress.replayed:
            kept.dead.pop(position)
        if progress.disabled is not None:
            kept.webhook = replace(kept.webhook, disabled=progress.disabled)
        return True

    # What their owners do.

    def change(self, webhook_id: str) -> Kept:
        """Somebody outside is about to change it."""
        self.version += 1
        kept = self.kept[webhook_id]
        kept.revision += 1
        return kept

    def add(self, webhook: Webhook, position: int) -> None:
        self.kept[webhook.id] = Kept(webhook, position)
        self.version += 1

    def replace(self, webhook: Webhook, retry_from_at: int | None) -> None:
        kept = self.change(webhook.id)
        if kept.webhook.url != webhook.url:
            kept.hold_until = 0
            kept.blocked = {name: replace(blocked, next_at=0) for name, blocked in kept.blocked.items()}
        kept.webhook = webhook
        kept.retry_from_at = kept.retry_from_at if retry_from_at is None else retry_from_at

    def put_back(self, webhook_id: str, position: int, at: int) -> None:
        kept = self.change(webhook_id)
        kept.position, kept.retry_from_at, kept.blocked = position, at, {}
        kept.dead = {one: letter for one, letter in kept.dead.items() if one <= position}

    def revive(self, webhook_id: str) -> int:
        kept = self.change(webhook_id)
        marked = sum(not letter.replayed for letter in kept.dead.values())
        kept.dead = {one: replace(letter, replayed=True) for one, letter in kept.dead.items()}
        return marked

    def dead(self, webhook_id: str) -> Sequence[DeadLetter]:
        return sorted(self.kept[webhook_id].dead.values(), key=lambda letter: letter.position)
