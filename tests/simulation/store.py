"""The store as one node has it: its way to the database, with all that may happen there. See store/protocol.py."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import TYPE_CHECKING, Any, TypeVar

from tests.simulation.loop import OUTSIDE
from turnlog.store.protocol import AppendMessages, StoreFailedError, StoreUnavailableError, StoreUncertainError

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from tests.simulation.loop import Process
    from tests.simulation.world import World
    from turnlog.model import Conversation, LogFilter, Message
    from turnlog.store.protocol import LogPart, Write
    from turnlog.store.webhooks import Delivery, Progress

T = TypeVar("T")
LATE_S = (0.05, 3.0)
"""How much later than its caller was told "unknown" a transaction may still be carried out."""


class Door:
    """The database's own side: who may record, and who is told of it. It outlives the nodes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.recording: dict[tuple[Hashable, str], asyncio.Lock] = defaultdict(asyncio.Lock)
        self.followers: list[tuple[Process, Callable[[str], None]]] = []

    def tell(self, accounts: set[str], to: Process | None = None) -> None:
        """Those who follow hear of it, late while the database is away, and sometimes for nothing."""
        world = self.world
        for process, moved in self.followers:
            if process.is_alive and to in (None, process):
                for account in sorted(accounts):
                    away_s = max(0.0, world.weather.away_until - world.now_s)
                    process.later(away_s + world.random.random() * 0.2, moved, account)


class SimulatedStore:
    """One node's; ``on_commit`` hears what its writes came to, at the moment in which they are durable."""

    def __init__(self, world: World, door: Door, process: Process) -> None:
        self._world = world
        self._database = world.database
        self._door = door
        self._process = process
        self._failure: BaseException | None = None
        self._committing: Sequence[Write] | None = None
        self._last_ids: dict[Hashable, str] = {}
        self.on_change: Callable[[], None] | None = None
        """Called when something but recording is asked for next."""
        self.generation = 0

    # Recording.

    @property
    def failure(self) -> BaseException | None:
        return self._failure

    @property
    def parallel(self) -> int:
        return 3 if self._database.shared else 1

    def lane(self, write: Write) -> Hashable:
        return getattr(write, "account", None) if self._database.shared else None

    async def append(self, writes: Sequence[Write]) -> list[object]:
        self._check()
        answer: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
        context = OUTSIDE if self._database.shared else self._process.context
        self._world.loop.create_task(self._record(list(writes), answer), context=context.copy())
        outcomes = await answer
        if not self._database.shared:
            for process, moved in self._door.followers:
                if process is self._process:
                    for account in sorted({getattr(write, "account", "") for write in writes}):
                        moved(account)
        return outcomes

    async def _record(self, writes: list[Write], answer: asyncio.Future[list[object]]) -> None:
        world, weather, database = self._world, self._world.weather, self._database
        place = self.lane(writes[0]), "" if database.shared else self._process.name
        await world.sleep(weather.way_s)
        if self._is_away or world.dice(weather.refused):
            await world.sleep((0.0, 0.5))
            _fail(answer, StoreUnavailableError("refused"))
            return
        async with self._door.recording[place]:
            self._committing = writes
            await world.sleep(weather.commit_s)
            self._committing = None
            fate = self._fate()
            if fate == "late":
                _fail(answer, StoreUncertainError("cut"))
                await world.sleep(LATE_S)
            if not self._process.is_alive and world.dice(0.5):
                return
            if fate not in ("lost", "failed"):
                fail_at = world.random.randint(1, 6) if world.dice(weather.refused) else 0
                try:
                    outcomes = database.commit(writes, fail_at)
                except StoreUnavailableError as error:
                    _fail(answer, error)
                    return
                self._note(writes, outcomes)
                if database.shared:
                    self._door.tell({getattr(write, "account", "") for write in writes})
        if fate in ("failed", "failed but stored"):
            self._failure = StoreFailedError("fsync")
            _fail(answer, self._failure)
        elif fate in ("lost", "cut"):
            _fail(answer, StoreUncertainError("cut"))
        elif fate != "late":
            await world.sleep(weather.way_s)
            if not answer.done():
                answer.set_result(outcomes)

    def _fate(self) -> str:
        world, weather = self._world, self._world.weather
        if self._database.shared and world.dice(weather.uncertain):
            return world.random.choice(("lost", "cut", "late"))
        if not self._database.shared and world.dice(weather.failed):
            return world.random.choice(("failed", "failed but stored"))
        return "well"

    def crash(self) -> None:
        """The process was killed: what its disk was asked for last happened still, or did not."""
        if self._committing is not None and not self._database.shared and self._world.dice(0.5):
            self._note(self._committing, self._database.commit(self._committing))
        self._database.restart()

    def _note(self, writes: Sequence[Write], outcomes: Sequence[object]) -> None:
        world = self._world
        world.figures.add("batches")
        world.figures.add("writes", len(writes))
        self._check_ids(writes, outcomes)
        world.note("commit", self._process.name, len(writes), [getattr(one, "code", one) for one in outcomes])

    def _check_ids(self, writes: Sequence[Write], outcomes: Sequence[object]) -> None:
        """The ids of a process rise in the order in which it records them, whatever its clock does."""
        for write, outcome in zip(writes, outcomes, strict=True):
            if isinstance(write, AppendMessages) and outcome == write.ids:
                lane = self.lane(write)
                for one_id in write.ids:
                    last = self._last_ids.get(lane, "")
                    self._world.check(last < one_id, f"{self._process.name}: the id {one_id} comes behind {last}")
                    self._last_ids[lane] = one_id

    def _check(self) -> None:
        if not self._process.is_alive:
            raise StoreUnavailableError("killed")
        if self._failure is not None:
            raise StoreFailedError("failed earlier")

    @property
    def _is_away(self) -> bool:
        return self._world.now_s < self._world.weather.away_until

    # Asking.

    async def _ask(self, call: Callable[..., T], *given: Any, **named: Any) -> T:
        """A read. In a file it is carried out at once, on the caller's thread."""
        world = self._world
        self._check_alive()
        if self._database.shared:
            await self._on_the_way()
        if self._is_away or world.dice(world.weather.unread):
            raise StoreUnavailableError("does not answer")
        return call(*given, **named)

    async def _change(self, call: Callable[..., T], *given: Any) -> T:
        """A change of another kind than recording: one transaction of its own."""
        world, weather = self._world, self._world.weather
        self._check()
        if self.on_change is not None:
            self.on_change()
        await self._on_the_way()
        if self._is_away or world.dice(weather.refused):
            raise StoreUnavailableError("refused")
        fate = self._fate()
        if fate in ("well", "cut", "failed but stored"):
            outcome = call(*given)
        if fate in ("failed", "failed but stored"):
            self._failure = StoreFailedError("fsync")
            raise self._failure
        if fate != "well":
            raise StoreUncertainError("cut")
        if self._database.shared:
            await self._on_the_way()
        return outcome

    async def _on_the_way(self) -> None:
        await self._world.sleep(self._world.weather.way_s)
        self._check_alive()

    def _check_alive(self) -> None:
        if not self._process.is_alive:
            raise StoreUnavailableError("killed")

    async def last_position(self, account: str) -> int:
        return await self._ask(self._database.last_position, account)

    async def log(
        self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int
    ) -> LogPart:
        return await self._ask(
            self._database.log, account, wanted, after=after, up_to=up_to, limit=limit, max_chars=max_chars
        )

    async def log_start(self, account: str) -> int:
        return await self._ask(self._database.log_start, account)

    async def log_name(self) -> str:
        return await self._ask(self._database.log_name)

    async def follow(self, moved: Callable[[str], None]) -> None:
        self._door.followers.append((self._process, moved))
        await asyncio.get_running_loop().create_future()

    async def conversation(self, account: str, conversation_id: str) -> Conversation | None:
        return await self._ask(self._database.conversation, account, conversation_id)

    async def conversation_by_external_id(self, account: str, external_id: str) -> Conversation | None:
        return await self._ask(self._database.conversation_by_external_id, account, external_id)

    async def message(self, account: str, conversation_id: str, message_id: str) -> Message | None:
        return await self._ask(self._database.message, account, conversation_id, message_id)

    async def messages(self, account: str, conversation_id: str, **bounds: Any) -> list[Message] | None:
        return await self._ask(self._database.messages, account, conversation_id, **bounds)

    # Webhooks.

    async def webhooks_version(self) -> int:
        return await self._ask(self._database.webhooks_version)

    async def delivery(self, account: str, webhook_id: str) -> Delivery | None:
        return await self._ask(self._database.delivery, account, webhook_id)

    async def claim_webhooks(self, owner: str, ttl_s: float) -> list[tuple[str, str]]:
        return await self._change(self._database.claim_webhooks, owner, ttl_s)

    async def release_webhooks(self, owner: str) -> None:
        await self._change(self._database.release_webhooks, owner)

    async def save_progress(self, owner: str, progress: Progress) -> bool:
        if self._world.dice(self._world.weather.unsaved):
            raise StoreUnavailableError("refused")
        return await self._change(self._save, owner, progress)

    def _save(self, owner: str, progress: Progress) -> bool:
        world = self._world
        end = self._database.last_position(progress.account)
        world.check(progress.position <= end, f"{progress.webhook_id}: progress {progress.position} of {end}")
        stored = self._database.save_progress(owner, progress)
        world.note("save", progress.webhook_id, progress.position, len(progress.blocked), stored)
        return stored


def _fail(answer: asyncio.Future[Any], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
