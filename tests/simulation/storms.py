"""What goes wrong, and when: nodes killed and stopped and frozen, the store refusing or cut off, clocks put back."""

from __future__ import annotations

import asyncio
from math import inf
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tests.simulation.world import HOUR_S, US, Weather

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.simulation.callers import Callers
    from tests.simulation.network import Network
    from tests.simulation.node import Node
    from tests.simulation.receivers import Receivers
    from tests.simulation.world import World

RESTART_S = (0.2, 2.0)
FAILED_S = 1.0
"""How long a process may go on whose store has failed."""
YEAR_S = 365 * 24 * HOUR_S


class Storms:
    def __init__(
        self,
        world: World,
        network: Network,
        callers: Callers,
        receivers: Receivers,
        new_node: Callable[[int], None],
    ) -> None:
        self._world = world
        self._network = network
        self._callers = callers
        self._receivers = receivers
        self._new_node = new_node
        self._under_way: list[asyncio.Task[None]] = []
        self._is_calm = False

    async def run(self) -> None:
        """Until the trouble is over."""
        world, plan = self._world, self._world.plan
        until = world.now_s + plan.trouble_s
        watching = asyncio.create_task(self._watch())
        self._under_way.append(watching)
        while world.now_s < until:
            self._change_weather()
            await world.sleep((0.0, 2 * plan.storms))
            if world.now_s < until:
                self._strike()

    def _change_weather(self) -> None:
        world = self._world
        some = (0.0, 0.0, 0.02, 0.1, 0.3)
        choice = world.random.choice
        away_until = world.weather.away_until
        weather = world.weather
        weather.refused, weather.uncertain, weather.unread = choice(some), choice(some), choice(some)
        weather.unsaved = choice((0.0, 0.0, 0.5))
        weather.failed = choice((0.0, 0.0, 0.01, 0.05))
        weather.cut, weather.replayed = choice(some), choice((0.0, 0.0, 0.1))
        weather.commit_s = choice(((0.001, 0.01), (0.001, 0.01), (0.01, 0.3), (0.3, 1.0), (1.0, 5.0)))
        weather.way_s = choice(((0.0005, 0.005), (0.0005, 0.005), (0.01, 0.2)))
        weather.away_until = away_until

    def _strike(self) -> None:
        """Something large happens."""
        world = self._world
        strike = world.random.choice(
            (self._kill, self._kill, self._terminate, self._freeze, self._away, self._step, self._burst, self._owner)
        )
        world.figures.add(f"strike {strike.__name__[1:]}")
        strike()

    def _some_node(self) -> Node | None:
        nodes = [
            node
            for _, node in sorted(self._network.nodes.items())
            if node.is_alive and not node.is_stopped and node.accepts and not node.has_failed
        ]
        return self._world.random.choice(nodes) if nodes else None

    def _start(self, work: object) -> None:
        self._under_way.append(asyncio.create_task(work))  # type: ignore[arg-type]

    def _kill(self) -> None:
        node = self._some_node()
        if node is not None:
            self._start(self._replace(node))

    async def _replace(self, node: Node) -> None:
        """Kill it, and start another one on its machine."""
        world = self._world
        busy = bool(node.connections)
        world.figures.add("kills busy" if busy else "kills idle")
        node.kill()
        if self._network.nodes.get(node.machine) is node:
            del self._network.nodes[node.machine]
            await world.sleep(RESTART_S)
            self._new_node(node.machine)

    def _terminate(self) -> None:
        node = self._some_node()
        if node is not None:
            self._start(self._stop(node))

    async def _stop(self, node: Node) -> None:
        del self._network.nodes[node.machine]
        await node.stop()
        self._new_node(node.machine)

    def _freeze(self) -> None:
        node = self._some_node()
        if node is not None:
            self._start(self._stop_a_while(node))

    async def _stop_a_while(self, node: Node) -> None:
        world = self._world
        if world.plan.webhooks and world.dice(0.7):  # with something under way that the others need
            asked = world.loop.create_future()
            node.store.on_change = lambda: None if asked.done() else asked.set_result(None)
            await asyncio.wait([asked], timeout=2.0)
            node.store.on_change = None
            await asyncio.sleep(world.random.random() * 0.01)
            if node.is_stopped or not node.is_alive:
                return
        world.note("frozen", node.name)
        node.process.stop()
        await asyncio.sleep(world.random.choice((0.1, 3.0, 12.0, 30.0)))
        if node.is_alive:
            world.note("goes on", node.name)
            node.process.go_on(world.random)

    def _away(self) -> None:
        world = self._world
        world.weather.away_until = world.now_s + world.random.choice((0.1, 2.0, 10.0))
        for node in self._network.nodes.values():
            node.store.generation += 1  # the connections are new ones afterwards

    def _step(self) -> None:
        world = self._world
        machine = world.random.randrange(world.plan.nodes)
        seconds = world.random.choice((-HOUR_S, HOUR_S, YEAR_S if world.plan.year else 60.0))
        if seconds == YEAR_S:
            world.wrong_year = (min(world.wrong_year[0], world.now_s), inf)
        world.figures.add("clocks stepped")
        world.note("clock", machine, seconds)
        world.clock_offset_us[machine] = int(seconds * US)

    def _burst(self) -> None:
        self._start(self._callers.burst(f"burst {self._world.now_s:.6f}"))

    def _owner(self) -> None:
        """The owner of a webhook does something to it."""
        world = self._world
        if not self._receivers.all:
            return
        receiver = world.random.choice(list(self._receivers.all.values()))
        account, webhook_id = receiver.webhook.account, receiver.webhook.id
        what = world.random.choice(("enable", "replay", "put back", "url"))
        world.note("owner", webhook_id, what)
        now_us = world.now_us(-1)
        if what == "put back":
            world.database.replay_from(account, webhook_id, receiver.begins_behind, now_us)
            receiver.accepted.clear()
        elif what == "replay":
            world.database.replay_dead(account, webhook_id)
        else:
            delivery = world.database.delivery(account, webhook_id)
            assert delivery is not None
            if what == "url":
                changed = replace(delivery.webhook, url=f"https://{world.now_s}")
                world.database.change_webhook(changed, None)
            elif delivery.webhook.disabled is not None:
                world.database.change_webhook(replace(delivery.webhook, disabled=None), now_us)

    async def _watch(self) -> None:
        """A supervisor: a process whose store has failed ends, and another one is started."""
        while True:
            await asyncio.sleep(0.5)
            for node in list(self._network.nodes.values()):
                if node.has_failed and node.is_alive and not node.is_stopped and node.accepts:
                    left = [name for name, (answer, _) in node.connections.items() if not answer.done()]
                    self._world.figures.add("fail stops")
                    self._world.figures.add("fail stops waiting", len(left))
                    self._start(self._replace(node))

    def end_holds(self) -> None:
        """What a receiver asked for on a machine whose clock was wrong is ended by its owner: another address."""
        world = self._world
        for receiver in self._receivers.all.values():
            delivery = world.database.delivery(receiver.webhook.account, receiver.webhook.id)
            if delivery is not None and delivery.hold_until > world.now_us(-1):
                world.figures.add("holds ended")
                world.database.change_webhook(replace(delivery.webhook, url=f"https://{world.now_s}"), None)

    async def calm(self) -> None:
        """From now on nothing goes wrong any more; return once everybody is back."""
        world = self._world
        world.note("calm")
        world.weather.__dict__.update(Weather().__dict__)
        world.clock_offset_us.clear()
        world.wrong_year = (world.wrong_year[0], world.now_s + 1.0)
        self._receivers.calm()
        await asyncio.sleep(3 * FAILED_S)
        watching, *others = self._under_way
        for task in others:
            await task
        await asyncio.sleep(FAILED_S)
        watching.cancel()
        for task in self._under_way[1:]:
            await task
        self.enable()
        for receiver in self._receivers.all.values():
            world.database.replay_dead(receiver.webhook.account, receiver.webhook.id)

    def enable(self) -> None:
        """What was disabled is enabled again."""
        database = self._world.database
        for receiver in self._receivers.all.values():
            delivery = database.delivery(receiver.webhook.account, receiver.webhook.id)
            if delivery is not None and delivery.webhook.disabled is not None:
                database.change_webhook(replace(delivery.webhook, disabled=None), self._world.now_us(-1))
