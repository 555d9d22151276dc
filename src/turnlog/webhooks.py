"""Webhooks as their owner sees them: made, changed, tried out, looked into, sent again. Delivering is deliveries.py's.

Permissions are checked before (keyring.py). Everything is an account's own: what belongs to another is not there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, UnsetType

from turnlog import instants, limits
from turnlog.addresses import MAX_URL_CHARS, RefusedUrlError, check_url
from turnlog.errors import MalformedParameterError, NotFoundError, OutcomeUnknownError, UnprocessableError
from turnlog.feed import BEGINNING, NOW
from turnlog.ids import NotACursorError
from turnlog.model import EVERYTHING, DeadLetter, EventType, SigningSecret, Webhook
from turnlog.service import asking_the_store
from turnlog.signing import BadSecretError, check_secret, new_secret
from turnlog.store.protocol import StoreFailedError, StoreUncertainError
from turnlog.writer import RETRY_AFTER_S

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnlog.feed import Feed
    from turnlog.ids import Ulids
    from turnlog.sent import Sender, Sent
    from turnlog.store.webhooks import Delivery, WebhookStore

MAX_WEBHOOKS = 100
"""Of an account: each reads the account's log for itself."""
MAX_DESCRIPTION_CHARS = 255
OLD_SECRET_ENDS_S = 86_400
MAX_OLD_SECRET_S = 30 * 86_400
DISABLED_BY_OWNER = "disabled by its owner"
TEST_TYPE = "webhook.test"


class NewWebhook(msgspec.Struct, frozen=True):
    """What a caller says of a new webhook. ``after``: the cursor behind which it begins, or NOW, or BEGINNING."""

    url: str
    types: tuple[EventType, ...] | None = None
    description: str = ""
    after: str = NOW
    secret: str | None = None


class WebhookChange(msgspec.Struct, frozen=True):
    """What is to be changed of a webhook; what is left out stays. ``types`` ``None`` is "all"."""

    url: str | UnsetType = UNSET
    types: tuple[EventType, ...] | UnsetType | None = UNSET
    description: str | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class Replay(msgspec.Struct, frozen=True):
    """What is to be sent again: exactly one of these is given.

    ``failed``: all dead letters; ``events``: those of them with these ids; ``after``: everything behind a cursor;
    ``since``: everything from an instant on.
    """

    failed: bool = False
    events: tuple[str, ...] | None = None
    after: str | None = None
    since: int | None = None


class WebhookState(msgspec.Struct, frozen=True):
    """A webhook with how far it has got: the cursor behind what is done, and how many conversations wait.

    Of the one that is tried next: ``error``, what its last attempt came to, and ``next_at``.
    """

    webhook: Webhook
    cursor: str
    blocked: int
    error: str | None = None
    next_at: int | None = None


class Failed(msgspec.Struct, frozen=True):
    """A page of dead letters, each with its event's id; the cursor behind them where there is more."""

    items: list[tuple[str, DeadLetter]]
    next_cursor: str | None


class _ChangingTheStore:
    """As ``asking_the_store``; but what was under way when the store failed may have been carried out."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (StoreUncertainError, StoreFailedError)):
            raise OutcomeUnknownError(
                "the store failed while the webhook was changed: look whether it was", retry_after_s=RETRY_AFTER_S
            ) from error
        asking_the_store.__exit__(kind, error, trace)


_changing_the_store = _ChangingTheStore()


def no_such_webhook() -> NotFoundError:
    """The same for a webhook that never was and for another account's."""
    return NotFoundError("no such webhook in this account")


class Webhooks:
    """The webhooks of all accounts. What a method has changed is durable when it returns.

    Raises the refusals of errors.py; OverloadedError while the store does not answer, OutcomeUnknownError where it
    failed during a change. Changes of one account's webhooks come one after the other, within this process: each
    replaces the whole of a webhook.
    """

    def __init__(
        self,
        store: WebhookStore,
        feed: Feed,
        sender: Sender,
        ids: Ulids,
        now_us: Callable[[], int],
        random_bits: Callable[[int], int],
        *,
        allow_private: bool,
    ) -> None:
        self._store = store
        self._feed = feed
        self._sender = sender
        self._ids = ids
        self._now_us = now_us
        self._random_bits = random_bits
        self._allow_private = allow_private
        self._changes: dict[str, asyncio.Lock] = {}

    # Looking.

    async def list_webhooks(self, account: str) -> list[WebhookState]:
        """Every webhook of the account, in the order of creation."""
        with asking_the_store:
            found = await self._store.webhooks(account)
            deliveries = [await self._store.delivery(account, webhook.id) for webhook in found]
        return [await self._state(delivery) for delivery in deliveries if delivery is not None]

    async def read_webhook(self, account: str, webhook_id: str) -> WebhookState:
        """The webhook. Raises NotFoundError, as every method that names one."""
        return await self._state(await self._delivery(account, webhook_id))

    async def list_failed_events(
        self, account: str, webhook_id: str, *, limit: int, after: str | None = None
    ) -> Failed:
        """What was given up, in the order of the log. Raises MalformedParameterError where ``after`` is no cursor."""
        await self._delivery(account, webhook_id)
        cursors = await self._feed.cursors(account)
        try:
            position = 0 if after is None else cursors.position(after)
        except NotACursorError:
            raise MalformedParameterError(
                "[Query 'after'] not a cursor of this account's log: send a nextCursor as it was given"
            ) from None
        with asking_the_store:
            found = await self._store.dead_letters(account, webhook_id, after=position, limit=limit + 1)
        items = [(cursors.cursor(letter.position), letter) for letter in found[:limit]]
        return Failed(items, items[-1][0] if len(found) > limit else None)

    # Changing.

    async def create_webhook(self, account: str, new: NewWebhook) -> WebhookState:
        """Make a webhook; its only secret is the given one, or a fresh one."""
        self._check_url(new.url)
        _check_description(new.description)
        secret = self._secret(new.secret)
        position = await self._place(account, new.after)
        async with self._changing(account):
            with asking_the_store:
                present = await self._store.webhooks(account)
            if len(present) >= MAX_WEBHOOKS:
                raise UnprocessableError(f"{len(present)} webhooks are there: an account has at most {MAX_WEBHOOKS}")
            now = self._now_us()
            webhook = Webhook(
                self._ids.new(), account, new.url, (secret,), now, now, _distinct(new.types), new.description
            )
            with _changing_the_store:
                await self._store.add_webhook(webhook, position)
        return WebhookState(webhook, (await self._feed.cursors(account)).cursor(position), 0)

    async def change_webhook(self, account: str, webhook_id: str, change: WebhookChange) -> WebhookState:
        """Change what is given. A webhook that comes to be enabled again tries everything that waits anew."""
        if change.url is not UNSET:
            self._check_url(change.url)
        if change.description is not UNSET:
            _check_description(change.description)
        async with self._changing(account):
            delivery = await self._delivery(account, webhook_id)
            webhook, now = delivery.webhook, self._now_us()
            disabled = webhook.disabled
            if change.enabled is not UNSET:
                disabled = None if change.enabled else disabled or DISABLED_BY_OWNER
            changed = Webhook(
                webhook.id,
                account,
                webhook.url if change.url is UNSET else change.url,
                self._live(webhook, now),
                webhook.created_at,
                now,
                webhook.types if change.types is UNSET else _distinct(change.types),
                webhook.description if change.description is UNSET else change.description,
                disabled,
            )
            enabled_again = webhook.disabled is not None and disabled is None
            await self._replace(changed, now if enabled_again else None)
        return await self._state(msgspec.structs.replace(delivery, webhook=changed))

    async def rotate_webhook(
        self, account: str, webhook_id: str, secret: str | None = None, old_ends_s: int = OLD_SECRET_ENDS_S
    ) -> WebhookState:
        """Add a secret, the given one or a fresh one, which is the last of the webhook's.

        The one before it ends in ``old_ends_s`` at the latest; until then both sign. One older still ends now.
        """
        added = self._secret(secret)
        async with self._changing(account):
            delivery = await self._delivery(account, webhook_id)
            now = self._now_us()
            ends_at = now + old_ends_s * instants.US_PER_S
            kept = [
                msgspec.structs.replace(old, expires_at=min(old.expires_at or ends_at, ends_at))
                for old in self._live(delivery.webhook, now)[-1:]
                if old_ends_s > 0
            ]
            changed = msgspec.structs.replace(delivery.webhook, secrets=(*kept, added), updated_at=now)
            await self._replace(changed)
        return await self._state(msgspec.structs.replace(delivery, webhook=changed))

    async def delete_webhook(self, account: str, webhook_id: str) -> None:
        """Forget the webhook with all that belongs to it. What is on its way may still arrive."""
        with _changing_the_store:
            there = await self._store.delete_webhook(account, webhook_id)
        if not there:
            raise no_such_webhook()

    # Sending.

    async def test_webhook(self, account: str, webhook_id: str) -> Sent:
        """Send one event of the type TEST_TYPE now, also where the webhook is disabled; what came back."""
        delivery = await self._delivery(account, webhook_id)
        event_id = self._ids.new()
        event = {"id": event_id, "type": TEST_TYPE, "time": instants.render(self._now_us())}
        return await self._sender.send(delivery.webhook, event_id, msgspec.json.encode(event))

    async def replay_webhook(self, account: str, webhook_id: str, replay: Replay) -> int | str:
        """Have it sent again: how many dead letters that was, or the cursor that the webhook was put to."""
        await self._delivery(account, webhook_id)
        if replay.failed or replay.events is not None:
            positions = None if replay.events is None else await self._positions(account, replay.events)
            with _changing_the_store:
                return await self._store.replay_dead(account, webhook_id, positions)
        if replay.since is not None:
            position = await self._place_since(account, replay.since)
        else:
            position = await self._place(account, replay.after or BEGINNING)
        with _changing_the_store:
            there = await self._store.replay_from(account, webhook_id, position, self._now_us())
        if not there:
            raise no_such_webhook()
        return (await self._feed.cursors(account)).cursor(position)

    # Parts of these.

    async def _delivery(self, account: str, webhook_id: str) -> Delivery:
        with asking_the_store:
            found = await self._store.delivery(account, webhook_id)
        if found is None:
            raise no_such_webhook()
        return found

    async def _state(self, delivery: Delivery) -> WebhookState:
        webhook = delivery.webhook
        cursors = await self._feed.cursors(webhook.account)
        live = msgspec.structs.replace(webhook, secrets=self._live(webhook, self._now_us()))
        cursor, blocked = cursors.cursor(delivery.position), delivery.blocked
        if not blocked:
            return WebhookState(live, cursor, 0)
        soonest = min(blocked, key=lambda one: one.next_at)
        return WebhookState(live, cursor, len(blocked), soonest.error, soonest.next_at)

    def _changing(self, account: str) -> asyncio.Lock:
        return self._changes.setdefault(account, asyncio.Lock())

    async def _replace(self, webhook: Webhook, retry_from_at: int | None = None) -> None:
        with _changing_the_store:
            there = await self._store.change_webhook(webhook, retry_from_at)
        if not there:
            raise no_such_webhook()

    @staticmethod
    def _live(webhook: Webhook, now: int) -> tuple[SigningSecret, ...]:
        return tuple(one for one in webhook.secrets if one.expires_at is None or one.expires_at > now)

    def _secret(self, given: str | None) -> SigningSecret:
        if given is None:
            return SigningSecret(new_secret(self._random_bits), self._now_us())
        try:
            check_secret(given)
        except BadSecretError as error:
            raise UnprocessableError(f"[Path '/secret'] {error}") from None
        return SigningSecret(given, self._now_us())

    def _check_url(self, url: str) -> None:
        limits.check_short_text(url, "/url", MAX_URL_CHARS)
        try:
            check_url(url, allow_private=self._allow_private)
        except RefusedUrlError as error:
            raise UnprocessableError(f"[Path '/url'] {error}") from None

    async def _place(self, account: str, after: str) -> int:
        try:
            return await self._feed.place(account, None if after == BEGINNING else after, "Path '/after'")
        except MalformedParameterError as error:  # it came in a body, which fits the schema
            raise UnprocessableError(error.message) from None

    async def _positions(self, account: str, event_ids: Sequence[str]) -> list[int]:
        cursors = await self._feed.cursors(account)
        positions = []
        for index, event_id in enumerate(event_ids):
            try:
                positions.append(cursors.position(event_id))
            except NotACursorError:
                raise UnprocessableError(f"[Path '/events/{index}'] not an event's id of this account") from None
        return positions

    async def _place_since(self, account: str, since: int) -> int:
        """The position before the first entry that is not older than ``since``, found in some forty reads.

        The log is in the order of its commits; times are those of the nodes, so among entries that are closer than the
        nodes' clocks it may be any.
        """
        low = await self._feed.place(account, None)
        high = max(low, await self._feed.end(account))
        while low < high:
            middle = (low + high) // 2
            part = await self._feed.part(account, EVERYTHING, middle, limit=1)
            if part.entries and part.entries[0].at < since:
                low = part.entries[0].position
            else:
                high = middle
        return low


def _distinct(types: tuple[EventType, ...] | None) -> tuple[EventType, ...] | None:
    return None if types is None else tuple(dict.fromkeys(types))


def _check_description(description: str) -> None:
    limits.check_short_text(description, "/description", MAX_DESCRIPTION_CHARS)
