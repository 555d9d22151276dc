"""A node: the writer, the service, the feed and the deliveries as cli/node.py puts them together, in one process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from tests.simulation.loop import Process
from tests.simulation.network import reset
from tests.simulation.store import SimulatedStore
from tests.simulation.world import HOUR_S, US
from turnlog.deliveries.claims import Deliveries
from turnlog.deliveries.means import Means
from turnlog.feed import Feed
from turnlog.http.operations import Context
from turnlog.http.streams import Streams
from turnlog.ids import Ulids
from turnlog.pace import Pace
from turnlog.service import Service
from turnlog.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.simulation.loop import SimulatedFuture, SimulatedTask
    from tests.simulation.receivers import Receivers
    from tests.simulation.store import Door
    from tests.simulation.world import World
    from turnlog.http.requests import Request
    from turnlog.model import Webhook
    from turnlog.sent import Sent
    from turnlog.store.protocol import Write

TTL_US = int(24 * HOUR_S) * US
STOP_S = 10.0
"""How long a node that is asked to stop may take at the most."""
_SLACK_S = 0.6
"""Beyond a deadline: the interval of the writer's watch, timers that are late, a busy loop."""
_RESTART_S = (0.2, 2.0)


class _WatchedWriter(Writer):
    """Looks at every submission: is the queue bounded, is each answered in time, is nobody told too late."""

    def __init__(self, node: Node) -> None:
        plan, world = node.world.plan, node.world
        store: Any = node.store
        super().__init__(
            store,
            max_rows=plan.max_rows,
            max_chars=1 << 20,
            deadline_s=plan.deadline_s,
            monotonic_s=world.loop.time,
            on_batch=node.recorded,
            on_failure=lambda _failure: world.figures.add("store failed"),
        )
        self._node = node

    def submit(self, write: Write) -> asyncio.Future[object]:
        node, world = self._node, self._node.world
        queued, began = self.queued_rows, world.now_s
        answer = super().submit(write)  # raises where the queue is full
        if queued:
            world.check(self.queued_rows <= world.plan.max_rows, f"{self.queued_rows} rows wait in {node.name}")
        answer.add_done_callback(lambda future: self._answered(future, began))
        return answer

    def _answered(self, future: Any, began: float) -> None:
        node, world = self._node, self._node.world
        done: SimulatedFuture = future
        if done.cancelled() or done.done_at is None:
            return
        took_s, deadline_s = done.done_at - began, world.plan.deadline_s
        if took_s <= deadline_s:
            return
        world.check(done.exception() is not None, f"{node.name}: acknowledged after {took_s:.2f} s")
        for since, until in node.process.stopped_at:
            took_s -= max(0.0, min(until, done.done_at) - max(since, began))
        world.check(took_s <= deadline_s + _SLACK_S, f"{node.name}: answered after {took_s:.2f} s")


class _SimulatedPace(Pace):
    """What a turn costs is the seed's, not this machine's."""

    def __init__(self, world: World) -> None:
        super().__init__(world.loop.time)
        self._world = world

    def spent(self, seconds: float) -> None:
        del seconds
        super().spent(self._world.random.random() * 0.002)


class _OpenKeyring:
    def good_for_s(self, *_key: object) -> None:
        """Every key is good for ever."""


class Node:
    """``machine`` is its number: a node that is started again has it, too."""

    def __init__(self, world: World, door: Door, receivers: Receivers, machine: int, name: str) -> None:
        self.world = world
        self.machine = machine
        self.name = name
        self.process = Process(world.loop, name)
        self.store = SimulatedStore(world, door, self.process)
        self.accepts = True
        """Whether new connections are taken."""
        self.connections: dict[int, tuple[SimulatedFuture, SimulatedTask]] = {}
        """What it has not answered yet."""
        self.streams: list[Request] = []
        self.owner = ""
        self._receivers = receivers
        self.process.run(self._build)

    def _build(self) -> None:
        world = self.world
        self.ids = Ulids(self.now_us, world.random.getrandbits)
        self.pace = _SimulatedPace(world)
        self.writer = _WatchedWriter(self)
        store: Any = self.store
        self.service = Service(store, self.writer, self.ids, self.now_us, refuse_repeats=world.plan.refuse_repeats)
        self.feed = Feed(store)
        keyring: Any = _OpenKeyring()
        streams = Streams(self.feed, self.pace, keyring, 100, 5.0)
        nothing: Any = None
        self.context = Context(self.service, nothing, self.feed, streams, nothing)
        self.owner = self.ids.new()
        self.deliveries = Deliveries(
            Means(
                store=store,
                feed=self.feed,
                sender=_Sender(self, self._receivers),
                render=lambda entry, event_id: f"{entry.position} {entry.conversation_id} {event_id}".encode(),
                owner=self.owner,
                now_us=self.now_us,
                monotonic_s=world.loop.time,
                sleep=asyncio.sleep,
                random=world.random.random,
                turn=self._turn_to_deliver,
                on_attempt=lambda _webhook, outcome: world.figures.add(f"attempts {outcome}"),
            )
        )
        works: list[Coroutine[Any, Any, None]] = [
            self.service.forget_idempotency(TTL_US, asyncio.sleep),
            store.follow(self.feed.moved),
        ]
        if world.plan.webhooks:
            works.append(self.deliveries.run())
        self._background = [self.process.start(work) for work in works]

    def now_us(self) -> int:
        return self.world.now_us(self.machine)

    async def _turn_to_deliver(self) -> None:
        await self.pace.turn()
        self.pace.spent(0.0003)

    def recorded(self, _rows: int, _seconds: float) -> None:
        self.pace.recorded()

    @property
    def has_failed(self) -> bool:
        """Fail stop: the process is about to end by itself (cli/node.py watches for that)."""
        return self.store.failure is not None

    @property
    def is_alive(self) -> bool:
        return self.process.is_alive

    @property
    def is_stopped(self) -> bool:
        return self.process.held is not None

    # Ends.

    def kill(self) -> None:
        """As kill -9: all of its connections are reset."""
        self.process.kill()
        self.store.crash()
        self.world.note("killed", self.name)
        for future, _task in list(self.connections.values()):
            reset(future)
        self.connections.clear()
        for request in self.streams:
            request.lose()

    async def stop(self) -> None:
        """As SIGTERM; nothing of it is left then."""
        world, began = self.world, self.world.now_s
        world.note("stopping", self.name)
        self.accepts = False
        await self.process.start(self._finish())
        self.process.is_alive = False
        if not self.process.stopped_at:
            took_s = world.now_s - began
            most_s = STOP_S + world.plan.deadline_s + 2 * _SLACK_S  # one batch behind another
            world.check(took_s <= most_s, f"{self.name}: took {took_s:.1f} s to stop")
        await asyncio.sleep(0.5)
        left = [task for task in self.process.tasks if not task.done()]
        world.check(not left, f"{self.name}: left behind {left}")
        self.store.crash()

    async def _finish(self) -> None:
        for request in self.streams:
            request.stop()
        if self.world.plan.webhooks:
            await self.deliveries.stop()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        while self.connections:
            await asyncio.wait([task for _, task in self.connections.values()])
            await asyncio.sleep(0)
        await self.writer.drain()


class _Sender:
    def __init__(self, node: Node, receivers: Receivers) -> None:
        self._node = node
        self._receivers = receivers

    async def send(self, webhook: Webhook, event_id: str, body: bytes) -> Sent:
        return await self._receivers.take(self._node, webhook, event_id, body)
