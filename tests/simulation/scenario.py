"""A seed, played: some minutes of trouble in a simulated world, then calm, then the verdict."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import traceback
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from tests.simulation.callers import Callers
from tests.simulation.database import MemoryDatabase
from tests.simulation.loop import SimulatedLoop, end_all, run
from tests.simulation.network import Network
from tests.simulation.node import Node
from tests.simulation.readers import Reader
from tests.simulation.receivers import Receiver, Receivers, wait_until
from tests.simulation.sqlite import SqliteDatabase
from tests.simulation.store import Door
from tests.simulation.storms import Storms
from tests.simulation.verdict import check_history, check_reader
from tests.simulation.world import ACCOUNTS, BEGINNING_US, HOUR_S, Plan, Weather, World
from turnlog.deliveries import claims, window
from turnlog.model import ApiKey, EventType, LogFilter, Message, Webhook

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping
    from contextlib import AbstractContextManager
    from types import ModuleType

    from tests.simulation.database import Database

CALM_S = 900.0
"""Behind the trouble: by then everything must be as it should be."""

MESSAGES_ONLY: tuple[EventType, ...] = ("message.created",)
SOON_S = 90.0
PROMPT_TRIES, PROMPT_S = 3, 10.0
WRONG_CLOCK_S = 8 * HOUR_S
"""Or by then, where a clock was wrong: an event that seems to fail for hours is tried as rarely (retries.PAUSES_S)."""


class Outcome(NamedTuple):
    """What came of one seed; all of it is the same whenever and wherever it is played."""

    seed: int
    problems: tuple[str, ...]
    digest: str
    counts: dict[str, int]
    trace: tuple[str, ...]


async def list_all(node: Node, account: str, conversation: str, limit: int) -> list[str]:
    """The ids of all messages, as the API lists them in pages."""
    key = ApiKey("key", "key", account, (), 0)
    found: list[str] = []
    after: str | None = None
    while True:
        listing = await node.service.list_messages(key, conversation, limit=limit, after=after)
        part = await listing.part()
        while not part.last:
            found += [message.id for message in part.items]
            part = await listing.part()
        found += [message.id for message in part.items]
        after = part.next_cursor
        if after is None:
            return found


def plan_of(seed: int) -> Plan:
    random = Random(f"plan {seed}")  # noqa: S311
    database = random.choice(("memory", "shared", "shared", "sqlite"))
    return Plan(
        database=database,
        nodes=random.choice((1, 2, 3)) if database == "shared" else 1,
        callers=random.choice((1, 2, 4)),
        requests=random.choice((4, 8, 12)),
        webhooks=random.choice((0, 0, 1, 1, 2)),
        readers=random.choice((0, 1, 2)),
        max_rows=random.choice((8, 30, 1000)),
        deadline_s=random.choice((0.5, 2.0, 10.0)),
        refuse_repeats=random.random() < 0.15,
        trouble_s=random.choice((5.0, 10.0, 20.0)),
        storms=random.choice((2.0, 5.0, 20.0)),
        year=random.random() < 0.1,
        window=random.choice((4, 20, window.WINDOW_EVENTS)),
    )


def play(seed: int) -> Outcome:
    """Play a seed. What goes wrong in the simulation itself is a problem of the seed, too."""
    plan = plan_of(seed)
    dice = Random(f"loop {seed}").random  # noqa: S311
    loop = SimulatedLoop(lambda: 0.001 * dice() if dice() < 0.99 else 0.2 * dice())
    database: Database = _database(plan, seed)
    world = World(seed, plan, database, loop)
    loop.set_exception_handler(lambda _loop, context: _complain(world, context))
    was_enabled = gc.isenabled()
    gc.disable()  # what is collected when is not the seed's
    try:
        with listening(world), setting(window, WINDOW_EVENTS=plan.window):
            run(_Run(world).play(), loop)
    except Exception as error:  # noqa: BLE001 - it belongs to the seed
        world.is_over = False
        world.problem(f"{type(error).__name__}: {error}")
    finally:
        database.close()
        if was_enabled:
            gc.enable()
    return Outcome(seed, tuple(world.problems), world.digest(), dict(world.figures.counts), tuple(world.trace))


def _database(plan: Plan, seed: int) -> Database:
    if plan.database == "sqlite":
        return SqliteDatabase(ACCOUNTS)
    scanned = Random(f"scanned {seed}").choice((3, 50, 500))  # noqa: S311
    return MemoryDatabase(ACCOUNTS, shared=plan.database == "shared", scanned=scanned)


def _complain(world: World, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if not isinstance(error, asyncio.CancelledError):
        world.problem(f"{context.get('message')}: {type(error).__name__}: {error}")


class _Run:
    def __init__(self, world: World) -> None:
        self._world = world
        self._network = Network(world)
        self._door = Door(world)
        self._receivers = Receivers(world)
        self._callers = Callers(world, self._network)
        self._readers: list[Reader] = []
        self._storms = Storms(world, self._network, self._callers, self._receivers, self._new_node)
        self._started = 0
        self._asking_rarely = ExitStack()
        self._all_nodes: list[Node] = []

    async def play(self) -> None:
        with self._asking_rarely:
            await self._play()

    async def _play(self) -> None:
        world, plan = self._world, self._world.plan
        for machine in range(plan.nodes):
            self._new_node(machine)
        await self._callers.prepare(world.random.choice((1, 3, 8)))
        self._add_webhooks()
        self._add_readers()
        reading = [asyncio.create_task(reader.run()) for reader in self._readers]
        storms = asyncio.create_task(self._storms.run())
        calling = [asyncio.create_task(self._callers.run(number)) for number in range(plan.callers)]
        await asyncio.wait([storms])
        await storms
        await self._storms.calm()
        await asyncio.gather(*calling)
        await self._settle()
        for reader in self._readers:
            check_reader(world, reader)
        if not world.problems:
            await self._look_prompt()
        check_history(world, self._callers.history)
        await self._check_listings()
        for node in list(self._network.nodes.values()):
            await node.stop()
        self._judge_claims()
        world.note("end", {account: len(world.log(account)) for account in ACCOUNTS})
        world.digest()
        world.is_over = True
        await end_all(reading)  # type: ignore[arg-type]
        for node in self._all_nodes:
            if node.process.held is not None:
                await node.process.bury()
        await end_all([task for node in self._all_nodes for task in node.process.tasks])

    def _new_node(self, machine: int) -> None:
        self._started += 1
        node = Node(self._world, self._door, self._receivers, machine, f"n{machine}.{self._started}")
        self._network.nodes[machine] = node
        self._all_nodes.append(node)
        self._world.note("started", node.name)

    def _add_webhooks(self) -> None:
        random = self._world.random
        for number in range(self._world.plan.webhooks):
            account = random.choice(ACCOUNTS)
            types: tuple[EventType, ...] | None = random.choice((None, None, MESSAGES_ONLY))
            end = self._world.database.last_position(account)
            webhook = Webhook(f"hook{number}", account, "https://x", (), BEGINNING_US, BEGINNING_US, types)
            receiver = Receiver(webhook, random.choice((0, end)))
            receiver.sour = random.choice((0.0, 0.05, 0.4, 1.0))
            receiver.lost = random.choice((0.0, 0.1))
            receiver.gone = random.choice((0.0, 0.0, 0.02))
            receiver.seconds = random.choice(((0.005, 0.05), (0.05, 2.0)))
            self._receivers.add(receiver)

    def _add_readers(self) -> None:
        random = self._world.random
        for _ in range(self._world.plan.readers):
            account, _, conversation = random.choice(self._callers.conversations)
            wanted = random.choice(
                (
                    LogFilter(),
                    LogFilter(),
                    LogFilter(types=frozenset(("message.created",))),
                    LogFilter(conversation_id=conversation),
                )
            )
            kind = random.choice(("pages", "waiting", "stream"))
            self._readers.append(Reader(self._world, self._network, account, wanted, kind))

    async def _settle(self) -> None:
        """Wait until everything has come where it should; what never does is a problem."""
        world = self._world
        began = world.now_s
        await wait_until(self._all_read, CALM_S)
        for reader in self._readers:
            reader.is_done = True
        most_s = WRONG_CLOCK_S if world.figures.counts["clocks stepped"] else CALM_S
        while world.now_s < began + most_s and not self._is_settled():
            late = world.now_s > began + SOON_S
            if late:
                self._ask_rarely()
            await asyncio.sleep(60.0 if late else 1.0)
            self._storms.enable()  # a 410 from before may be stored only now
            if began + CALM_S < world.now_s < began + CALM_S + 60.0:
                self._storms.end_holds()
        for receiver in self._receivers.all.values():
            missing = self._receivers.missing(receiver)
            world.check(not missing, f"{receiver.webhook.id} never got {missing[:10]}")

    def _is_settled(self) -> bool:
        return not any(self._receivers.missing(receiver) for receiver in self._receivers.all.values())

    async def _look_prompt(self) -> None:
        """In a calm world, what is recorded is delivered at once: also where two come shortly after each other."""
        world = self._world
        well = [receiver for receiver in self._receivers.all.values() if self._is_well(receiver)]
        if not well:
            return
        world.weather.way_s = (0.01, 0.2)
        for number in range(PROMPT_TRIES):
            for which in range(2):
                await self._callers.say(f"prompt {number}/{which}")
                await world.sleep((0.0, 0.4))
            prompt = await wait_until(lambda: not any(map(self._receivers.missing, well)), PROMPT_S, 0.5)
            world.check(prompt, f"not delivered within {PROMPT_S} s")
        world.weather.way_s = Weather().way_s

    def _is_well(self, receiver: Receiver) -> bool:
        """Whether nothing waits for a time to come: what it took, and was not known to have taken, is sent again."""
        nodes = {node.name for node in self._network.nodes.values()}
        if self._receivers.is_busy(receiver, nodes):  # it may hang until its sender's deadline
            return False
        delivery = self._world.database.delivery(receiver.webhook.account, receiver.webhook.id)
        return delivery is not None and not delivery.blocked and delivery.hold_until <= self._world.now_us(-1)

    def _ask_rarely(self) -> None:
        if claims.CLAIM_INTERVAL_S < 100:
            self._asking_rarely.enter_context(asking_rarely())

    def _all_read(self) -> bool:
        return all(len(reader.seen) >= len(reader.expected()) for reader in self._readers)

    async def _check_listings(self) -> None:
        """Some conversations, page by page, are what the log says of them."""
        world = self._world
        node = self._network.nodes[min(self._network.nodes)]
        for account, _, conversation in world.random.sample(self._callers.conversations, 1):
            found = await node.process.start(list_all(node, account, conversation, world.random.choice((1, 4, 100))))
            subjects = [entry.subject for entry in world.log(account) if entry.conversation_id == conversation]
            messages = [subject for subject in subjects if isinstance(subject, Message)]
            messages.sort(key=lambda message: (message.client_at, message.position))
            wanted = [message.id for message in messages]
            world.check(found == wanted, f"{conversation} is listed as {found} and is {wanted}")

    def _judge_claims(self) -> None:
        """Who stops gives its claims back, and leaves what was delivered stored."""
        for receiver in self._receivers.all.values():
            owner, _ = self._world.database.owner_of(receiver.webhook.id)
            self._world.check(owner is None, f"{receiver.webhook.id} is {owner}'s still")


def asking_rarely() -> AbstractContextManager[None]:
    """Hours are to pass: what a node asks for every second would be all that a run does."""
    return setting(claims, CLAIM_INTERVAL_S=120.0, CLAIM_TTL_S=360.0, VERSION_INTERVAL_S=120.0, LAG_INTERVAL_S=120.0)


@contextmanager
def setting(module: ModuleType, **values: float) -> Iterator[None]:
    """These of a module's figures are others for a while."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


@contextmanager
def listening(world: World) -> Iterator[None]:
    """What the code under test logs as an error is a bug that it has outlived; nothing is written."""

    def note(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        error = sys.exc_info()[1]
        if world.is_over:
            raise structlog.DropEvent
        world.problem(f"logged: {event.get('event')}: {type(error).__name__}: {error} {_where(error)}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        structlog.configure(**before)


def _where(error: BaseException | None) -> str:
    trace = None if error is None else error.__traceback__
    places = [] if trace is None else traceback.extract_tb(trace)
    return " < ".join(f"{Path(place.filename).name}:{place.lineno}" for place in reversed(places))
