"""A world in which days pass in milliseconds: a loop whose clock jumps to the next timer, a store in memory, receivers
that do what a test says. Nothing in it is real but the code under test.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import Counter, defaultdict
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.loop import SimulatedLoop, run
from tests.simulation.webhooks import WebhookRows
from turnlog.deliveries.claims import Deliveries
from turnlog.deliveries.means import Means
from turnlog.feed import Feed
from turnlog.ids import LogCursors
from turnlog.model import Entry, LogFilter, Message, Webhook
from turnlog.sent import Sent
from turnlog.store.protocol import LogPart, StoreUnavailableError, StoreUncertainError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from turnlog.store.webhooks import Delivery, Progress

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


def simulate(main: Coroutine[Any, Any, None]) -> None:
    run(main, SimulatedLoop())


def now_s() -> float:
    return asyncio.get_running_loop().time()


def now_us() -> int:
    return BEGINNING_US + int(now_s() * US)


class SimulatedStore(WebhookRows):
    """As much of LogReader and WebhookStore as deliveries need. ``away``: it does not answer. ``fault`` may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.entries: list[Entry] = []
        self.of_conversation: dict[str, list[int]] = defaultdict(list)
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
        return self.find(webhook_id)

    async def claim_webhooks(self, owner: str, ttl_s: float) -> list[tuple[str, str]]:
        await self._answer("claim")
        return self.claim(owner, ttl_s)

    async def release_webhooks(self, owner: str) -> None:
        self.release(owner)

    async def save_progress(self, owner: str, progress: Progress) -> bool:
        await self._answer("save")
        assert progress.position <= len(self.entries)
        if not self.save(owner, progress):
            return False
        self.saves.append(progress)
        self.fault("saved")
        return True


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
        self.clock_ahead_us = 0
        """How far the nodes' wall clock is ahead of what it should be."""
        self.attempts_of: list[tuple[float, str, str]] = []
        """When, which owner, which webhook: the beginning of each request."""
        self._feeds: list[Feed] = []
        self._nodes: dict[str, tuple[Deliveries, asyncio.Task[None]]] = {}

    def add(
        self, name: str, behave: Callable[[int, str], Sent] = lambda _position, _conversation: OK, seconds: float = 0.05
    ) -> SimulatedReceiver:
        webhook = Webhook(name, ACCOUNT, f"https://{name}.example", (), now_us(), now_us())
        self.store.add(webhook, len(self.store.entries))
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
            now_us=lambda: now_us() + self.clock_ahead_us,
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
