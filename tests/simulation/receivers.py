"""The receivers of webhooks, and what they are promised: at least once, in order per conversation, by one node."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.simulation.database import LOG_NAME
from tests.simulation.loop import OUTSIDE
from turnlog.ids import LogCursors
from turnlog.sent import Sent

if TYPE_CHECKING:
    from tests.simulation.loop import SimulatedFuture
    from tests.simulation.node import Node
    from tests.simulation.world import World
    from turnlog.model import Entry, Webhook

OK = Sent(200, "", 0.0)
SENDER_WAITS_S = 15.0
"""As sending.py has it."""
_MOODS = (
    Sent(500, "", 0.0, excerpt="no"),
    Sent(302, "", 0.0),
    Sent(429, "", 0.0, retry_after_s=3.0),
    Sent(503, "", 0.0, retry_after_s=-1.0),
    Sent(None, "reset", 0.0),
    Sent(None, "timed out", 0.0),
)


@dataclass
class Receiver:
    """One webhook's. ``sour`` is the share of what it does not take; ``lost``, of what it takes and nobody learns."""

    webhook: Webhook
    begins_behind: int
    sour: float = 0.0
    lost: float = 0.0
    gone: float = 0.0
    seconds: tuple[float, float] = (0.005, 0.2)
    poisoned: str = ""
    """The one conversation of which it takes nothing."""
    accepted: set[int] = field(default_factory=set)
    """What it took since its cursor was put back last."""
    ever_accepted: set[int] = field(default_factory=set)
    events: Counter[int] = field(default_factory=Counter)
    open: dict[str, str] = field(default_factory=dict)
    """Conversations with a request under way, and whose."""
    hold_until: float = 0.0


class Receivers:
    def __init__(self, world: World) -> None:
        self._world = world
        self.all: dict[str, Receiver] = {}
        self._cursors: dict[str, LogCursors] = {}
        self._open: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)

    def add(self, receiver: Receiver) -> None:
        self.all[receiver.webhook.id] = receiver
        account = receiver.webhook.account
        self._cursors[account] = LogCursors(LOG_NAME, account)
        self._world.database.add_webhook(receiver.webhook, receiver.begins_behind)

    async def take(self, node: Node, webhook: Webhook, event_id: str, body: bytes) -> Sent:
        """One request, from the sender's side."""
        world, receiver = self._world, self.all[webhook.id]
        text_position, conversation, named_id = body.decode().split(" ")
        position = int(text_position)
        expected = self._cursors[webhook.account].cursor(position)
        world.check(event_id == named_id == expected, f"{webhook.id}: event {position} has another id")
        self._check_claim(node, webhook)
        self._check_order(receiver, position, conversation)
        open_now = self._open[webhook.id, conversation]
        world.check(not open_now[node.name], f"{webhook.id}: two at once in {conversation} from {node.name}")
        open_now[node.name] += 1
        receiver.events[position] += 1
        answer: SimulatedFuture = world.loop.create_future()
        seconds = world.between(receiver.seconds)
        sent = self._mood(receiver, conversation)
        if sent.error == "timed out":
            seconds = SENDER_WAITS_S
        world.loop.call_later(seconds, self._arrived, receiver, position, sent, answer, context=OUTSIDE)
        try:
            return await answer  # type: ignore[no-any-return]
        finally:
            open_now[node.name] -= 1

    def _arrived(self, receiver: Receiver, position: int, sent: Sent, answer: SimulatedFuture) -> None:
        world = self._world
        lost = sent.delivered and world.dice(receiver.lost)
        if sent.delivered:
            receiver.accepted.add(position)
            receiver.ever_accepted.add(position)
            world.figures.add("delivered")
        world.note("event", receiver.webhook.id, position, sent.status)
        if not answer.done():
            answer.set_result(Sent(None, "lost", 0.0) if lost else sent)

    def _mood(self, receiver: Receiver, conversation: str) -> Sent:
        world = self._world
        if world.dice(receiver.gone):
            return Sent(410, "", 0.0)
        if conversation == receiver.poisoned or world.dice(receiver.sour):
            return world.random.choice(_MOODS)
        return OK

    def _check_claim(self, node: Node, webhook: Webhook) -> None:
        world = self._world
        if not world.database.shared:
            return  # a file has one process
        owner, until = world.database.owner_of(webhook.id)
        mine = owner == node.owner and world.now_s <= until
        world.check(mine, f"{webhook.id}: {node.name} sends, and the claim is {owner}'s until {until:.1f}")

    def _check_order(self, receiver: Receiver, position: int, conversation: str) -> None:
        world, account = self._world, receiver.webhook.account
        dead: set[int] | None = None
        for entry in reversed(self._entries(account)[: position - 1]):
            if entry.conversation_id != conversation or not is_wanted(receiver, entry):
                continue
            if entry.position not in receiver.ever_accepted:
                if receiver.events[entry.position] and world.plan.year and world.figures.counts["clocks stepped"]:
                    return  # a year ahead, its three days may be over: given up, which may not be stored yet
                dead = {letter.position for letter in world.database.dead_letters(account, receiver.webhook.id)}
                world.check(
                    entry.position in dead, f"{receiver.webhook.id}: {position} is sent before {entry.position}"
                )
            return

    def is_busy(self, receiver: Receiver, nodes: set[str]) -> bool:
        """Whether one of the nodes waits for an answer of this receiver."""
        return any(
            open_now[node]
            for (webhook_id, _), open_now in self._open.items()
            for node in nodes
            if webhook_id == receiver.webhook.id
        )

    def _entries(self, account: str) -> list[Entry]:
        return self._world.log(account)

    def calm(self) -> None:
        """From now on everything is taken, and quickly."""
        for receiver in self.all.values():
            receiver.sour = receiver.lost = receiver.gone = 0.0
            receiver.poisoned, receiver.seconds = "", (0.001, 0.01)

    def missing(self, receiver: Receiver) -> list[int]:
        """What it should have, has not, and nobody has given up."""
        account = receiver.webhook.account
        dead = {letter.position for letter in self._world.database.dead_letters(account, receiver.webhook.id)}
        return [
            entry.position
            for entry in self._entries(account)[receiver.begins_behind :]
            if is_wanted(receiver, entry) and entry.position not in receiver.accepted and entry.position not in dead
        ]


def is_wanted(receiver: Receiver, entry: Entry) -> bool:
    types = receiver.webhook.types
    return entry.position > receiver.begins_behind and (types is None or entry.type in types)


async def wait_until(holds: object, seconds: float, every_s: float = 1.0) -> bool:
    """Whether ``holds`` came to be so in time."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    while not holds():  # type: ignore[operator]
        if loop.time() >= until:
            return False
        await asyncio.sleep(every_s)
    return True
