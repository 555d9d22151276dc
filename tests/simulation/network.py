"""Between callers and nodes: what arrives, what is lost on the way, and a balancer in front of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, NamedTuple

from tests.simulation.loop import OUTSIDE
from turnlog.errors import Error

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.simulation.loop import SimulatedFuture, SimulatedTask
    from tests.simulation.node import Node
    from tests.simulation.world import World

CALLER_WAITS_S = 15.0


class Answer(NamedTuple):
    """``code`` is empty for a 200, an error's code else, or ``lost``: nothing came, and nobody knows why."""

    code: str
    value: Any = None

    @property
    def is_certain(self) -> bool:
        """Whether it says that the request has left nothing behind, or that all of it is recorded."""
        return self.code not in ("lost", "503-02", "500-01")


LOST = Answer("lost")
REFUSED = Answer("refused")
"""Nobody listened."""


class Network:
    def __init__(self, world: World) -> None:
        self._world = world
        self._number = 0
        self.nodes: dict[int, Node] = {}
        """By machine, those that are there."""

    async def ask(
        self, work: Callable[[Node], Coroutine[Any, Any, Any]], on_twin: Callable[[], None] | None = None
    ) -> Answer:
        """One request, and what its sender hears of it. A proxy may send it twice: ``on_twin`` hears of that."""
        world = self._world
        weather = world.weather
        await world.sleep(weather.way_s)
        machines = sorted(self.nodes)
        if not machines:
            return REFUSED
        node = self.nodes[world.random.choice(machines)]
        if not node.accepts or not node.is_alive:
            return REFUSED
        if world.dice(weather.cut / 2):
            return LOST  # on the way there
        if on_twin is not None and world.dice(weather.replayed):
            on_twin()
            self._arrive(node, work)
        answer = self._arrive(node, work)
        if world.dice(weather.cut / 2):
            world.loop.call_later(world.random.random() * 0.1, reset, answer, context=OUTSIDE)
        try:
            async with asyncio.timeout(CALLER_WAITS_S):
                return await answer  # type: ignore[no-any-return]
        except (ConnectionError, TimeoutError):
            return LOST

    def _arrive(self, node: Node, work: Callable[[Node], Coroutine[Any, Any, Any]]) -> SimulatedFuture:
        answer = self._world.loop.create_future()
        self.open(node, answer, _answered(node, work))
        return answer

    def open(self, node: Node, answer: SimulatedFuture, work: Coroutine[Any, Any, Any]) -> None:
        """A connection on which ``work`` goes on in the node; ``answer`` is what the other side hears of it."""
        self._number = number = self._number + 1
        task = node.process.start(work)
        node.connections[number] = (answer, task)
        task.add_done_callback(lambda done: self._on_the_way_back(node, number, done, answer), context=OUTSIDE)

    def _on_the_way_back(self, node: Node, number: int, task: SimulatedTask, answer: SimulatedFuture) -> None:
        world = self._world
        if node.connections.pop(number, None) is None or task.cancelled():
            return
        world.loop.call_later(world.between(world.weather.way_s), _answer, answer, task.result(), context=OUTSIDE)


async def _answered(node: Node, work: Callable[[Node], Coroutine[Any, Any, Any]]) -> Answer:
    try:
        return Answer("", await work(node))
    except Error as error:
        return Answer(error.code, error.message)


def _answer(future: SimulatedFuture, answer: Answer) -> None:
    if not future.done():
        future.set_result(answer)


def reset(future: SimulatedFuture) -> None:
    if not future.done():
        future.set_exception(ConnectionResetError("reset"))
        future.exception()  # nobody may be waiting any more
