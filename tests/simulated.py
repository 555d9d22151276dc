"""A world in which days pass in milliseconds: a loop whose clock jumps to the next timer, a store in memory, receivers
that do what a test says. Nothing in it is real but the code under test.
"""

from __future__ import annotations

import asyncio
import selectors
from bisect import bisect_right
from collections import Counter, defaultdict
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from turnlog.deliveries.claims import Deliveries
from turnlog.deliveries.means import Means
from turnlog.feed import Feed
from turnlog.ids import LogCursors
from turnlog.model import Blocked, DeadLetter, Entry, LogFilter, Message, Webhook
from turnlog.sent import Sent
from turnlog.store.protocol import LogPart, StoreUnavailableError, StoreUncertainError
from turnlog.store.webhooks import MOST_REPLAYS, Delivery, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

ACCOUNT = "acme"
LOG_NAME = "log"
US = 1_000_000
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
BEGINNING_US = 1_700_000_000 * US
OK = Sent(200, "", 0.0)
FAILED = Sent(500, "", 0.0, excerpt="no")
SILENT = Sent(None, "timed out", 0.0)
_SCANNED = 500


class _Jump(selectors.SelectSelector):
    """Waits for nothing: where the loop would, its clock has moved on already."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everybody waits, and nothing is ever going to happen"
        self.now += max(timeout, 0.0)
        return []


class SimulatedLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now


def simulate(main: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        runner.run(main)


def now_s() -> float:
    return asyncio.get_running_loop().time()


def now_us() -> int:
    return BEGINNING_US + int(now_s() * US)


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


class SimulatedStore:
    """As much of LogReader and WebhookStore as deliveries need. ``away``: it does not answer. ``fault`` may raise."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.of_conversation: dict[str, list[int]] = defaultdict(list)
        self.kept: dict[str, Kept] = {}
        self.version = 0
        self.away = False
        self.fault: Callable[[str], None] = lambda _call: None
        self.saves: list[Progress] = []

    async def _answer(self, call: str) -> None:
        await asyncio.sleep(0.001)
        if self.away:
            raise StoreUnavailableError("away")
        self.fault(call)

    # The log.

    generation = 0

    async def last_position(self, _account: str) -> int:
        await self._answer("log")
        return len(self.entries)

    async def log(
        self, _account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, **_bounds: int
    ) -> LogPart:
        await self._answer("log")
        if wanted.conversation_id is not None:
            positions = self.of_conversation[wanted.conversation_id]
            found = [one for one in positions[bisect_right(positions, after) :] if one <= up_to][:limit]
            entries = [self.entries[one - 1] for one in found]
            reached = entries[-1].position if len(entries) == limit else up_to
        else:
            reached = min(up_to, after + min(limit, _SCANNED))
            entries = self.entries[after:reached]
        return LogPart([one for one in entries if wanted.types is None or one.type in wanted.types], reached)

    async def log_name(self) -> str:
        await self._answer("log")
        return LOG_NAME

    # Webhooks.

    async def webhooks_version(self) -> int:
        await self._answer("version")
        return self.version

    async def delivery(self, _account: str, webhook_id: str) -> Delivery | None:
        await self._answer("delivery")
        kept = self.kept.get(webhook_id)
        if kept is None:
            return None
        replays = tuple(one for _, one in sorted(kept.dead.items()) if one.replayed)[:MOST_REPLAYS]
        blocked = tuple(kept.blocked.values())
        return Delivery(
            kept.webhook, kept.position, kept.retry_from_at, kept.revision, blocked, replays, kept.hold_until
        )

    async def claim_webhooks(self, owner: str, ttl_s: float) -> list[tuple[str, str]]:
        await self._answer("claim")
        ours = []
        for kept in self.kept.values():
            if kept.owner not in (None, owner) and kept.claimed_until > now_s():
                continue
            kept.revision += kept.owner != owner
            kept.owner, kept.claimed_until = owner, now_s() + ttl_s
            ours.append((kept.webhook.account, kept.webhook.id))
        return ours

    async def release_webhooks(self, owner: str) -> None:
        for kept in self.kept.values():
            if kept.owner == owner:
                kept.owner = None

    async def save_progress(self, owner: str, progress: Progress) -> bool:
        await self._answer("save")
        kept = self.kept.get(progress.webhook_id)
        if kept is None or kept.owner != owner or kept.revision != progress.revision:
            return False
        assert progress.position <= len(self.entries)
        kept.position, kept.hold_until = progress.position, progress.hold_until
        kept.blocked.update((one.conversation, one) for one in progress.blocked)
        for conversation in progress.unblocked:
            kept.blocked.pop(conversation, None)
        kept.dead.update((one.position, one) for one in progress.dead)
        for position in progress.replayed:
            kept.dead.pop(position)
        if progress.disabled is not None:
            kept.webhook = replace(kept.webhook, disabled=progress.disabled)
        self.saves.append(progress)
        self.fault("saved")
        return True

    def change(self, webhook_id: str) -> Kept:
        """Somebody outside is about to change it."""
        self.version += 1
        kept = self.kept[webhook_id]
        kept.revision += 1
        return kept


class Request(NamedTuple):
    at: float
    position: int
    conversation: str
    event_id: str
    accepted: bool


class SimulatedReceiver:
    """Answers as ``behave`` says, by the position and the conversation of an event, ``seconds`` later."""

    def __init__(self, world: World, behave: Callable[[int, str], Sent], seconds: float) -> None:
        self.behave = behave
        self.seconds: float | Callable[[], float] = seconds
        self.requests: list[Request] = []
        self.accepted: set[int] = set()
        self.accepted_at: dict[int, float] = {}
        self.most = 0
        self.out_of_order: list[tuple[float, int, int]] = []
        """When, a position, and the one before it in its conversation that was not accepted by then."""
        self._world = world
        self._open: Counter[str] = Counter()

    async def take(self, event_id: str) -> Sent:
        position = self._world.cursors.position(event_id)
        conversation = self._world.store.entries[position - 1].conversation_id
        self._note_order(position, conversation)
        self._open[conversation] += 1
        self.most = max(self.most, self._open.total())
        assert self._open[conversation] == 1 or self._world.kills, "two at once in one conversation"
        try:
            await asyncio.sleep(self.seconds() if callable(self.seconds) else self.seconds)
        finally:
            self._open[conversation] -= 1
        sent = self.behave(position, conversation)
        took = sent.delivered or sent.error == "lost"
        if took and position not in self.accepted:
            self.accepted.add(position)
            self.accepted_at[position] = now_s()
        self.requests.append(Request(now_s(), position, conversation, event_id, took))
        return sent

    def _note_order(self, position: int, conversation: str) -> None:
        for earlier in reversed(self._world.store.of_conversation[conversation]):
            if earlier < position:
                if earlier not in self.accepted:
                    self.out_of_order.append((now_s(), position, earlier))
                break


def recorded_s(entry: Entry) -> float:
    """When, on the simulated clock."""
    return (entry.at - BEGINNING_US) / US


class World:
    """One account's log, webhooks by name, and nodes that deliver."""

    def __init__(self, seed: int = 1) -> None:
        self.random = Random(seed)  # noqa: S311
        self.store = SimulatedStore()
        self.cursors = LogCursors(LOG_NAME, ACCOUNT)
        self.receivers: dict[str, SimulatedReceiver] = {}
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.kills = 0
        self.attempts_of: list[tuple[float, str, str]] = []
        """When, which owner, which webhook: the beginning of each request."""
        self._feeds: list[Feed] = []
        self._nodes: dict[str, tuple[Deliveries, asyncio.Task[None]]] = {}

    def add(
        self, name: str, behave: Callable[[int, str], Sent] = lambda _position, _conversation: OK, seconds: float = 0.05
    ) -> SimulatedReceiver:
        webhook = Webhook(name, ACCOUNT, f"https://{name}.example", (), now_us(), now_us())
        self.store.kept[name] = Kept(webhook, len(self.store.entries))
        self.store.version += 1
        receiver = self.receivers[name] = SimulatedReceiver(self, behave, seconds)
        return receiver

    def record(self, conversations: Sequence[str]) -> None:
        """One message in each of these conversations."""
        for conversation in conversations:
            position = len(self.store.entries) + 1
            message = Message(f"m{position}", position, "hello", "agent", "a", now_us(), now_us())
            self.store.entries.append(
                Entry(position, "message.created", now_us(), conversation, f"x-{conversation}", message)
            )
            self.store.of_conversation[conversation].append(position)
        for feed in self._feeds:
            feed.moved(ACCOUNT)

    async def record_along(self, seconds: float, every_s: float, conversations: Sequence[str]) -> None:
        """A message in one of them after the other."""
        until, index = now_s() + seconds, 0
        while now_s() < until:
            self.record([conversations[index % len(conversations)]])
            index += 1
            await asyncio.sleep(every_s)

    def start(self, owner: str) -> Deliveries:
        feed = Feed(self.store)  # type: ignore[arg-type]
        self._feeds.append(feed)
        means = Means(
            store=self.store,  # type: ignore[arg-type]
            feed=feed,
            sender=_Sender(self, owner),
            render=lambda entry, _event_id: entry.conversation_id.encode(),
            owner=owner,
            now_us=now_us,
            monotonic_s=now_s,
            sleep=asyncio.sleep,
            random=self.random.random,
            turn=lambda: asyncio.sleep(0),
            on_attempt=self._count,
        )
        deliveries = Deliveries(means)
        self._nodes[owner] = (deliveries, asyncio.create_task(deliveries.run()))
        return deliveries

    def kill(self, owner: str) -> None:
        self.kills += 1
        self._nodes.pop(owner)[1].cancel()

    async def stop(self) -> None:
        for deliveries, task in list(self._nodes.values()):
            await deliveries.stop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._nodes.clear()

    def _count(self, webhook_id: str, outcome: str) -> None:
        self.outcomes[webhook_id, outcome] += 1

    def check(self, name: str, *, from_position: int = 1) -> None:
        """At least once, under one id, and in order in every conversation; or it is a dead letter."""
        receiver, dead = self.receivers[name], self.store.kept[name].dead
        missing = [
            entry.position
            for entry in self.store.entries[from_position - 1 :]
            if entry.position not in receiver.accepted and entry.position not in dead
        ]
        assert not missing, f"{len(missing)} are missing: {missing[:10]}"
        wrong = [one for one in receiver.out_of_order if one[2] >= from_position and one[2] not in dead]
        assert not wrong, wrong[:10]
        assert all(request.event_id == self.cursors.cursor(request.position) for request in receiver.requests)


class _Sender:
    def __init__(self, world: World, owner: str) -> None:
        self._world = world
        self._owner = owner

    async def send(self, webhook: Webhook, event_id: str, _body: bytes) -> Sent:
        self._world.attempts_of.append((now_s(), self._owner, webhook.id))
        return await self._world.receivers[webhook.id].take(event_id)


def flaky(random: Random, share: float) -> Callable[[str], None]:
    """A store that now and then does not answer, or nobody knows whether it did what it was asked for."""

    def fault(call: str) -> None:
        if random.random() < share:
            raise StoreUncertainError("cut") if call == "saved" else StoreUnavailableError("busy")

    return fault
