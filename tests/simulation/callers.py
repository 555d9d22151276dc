"""Callers of the API as published clients are, and those that insist; what each was told is kept for the check."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from turnlog.model import ApiKey, NewAuthentication, NewConversation, NewMessage, Participant

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.simulation.network import Answer, Network
    from tests.simulation.node import Node
    from tests.simulation.world import World

PAUSES_S = (0.25, 0.5, 1.0)
"""Before each retry of a published client."""
RETRIED = frozenset({"503-01", "503-02", "500-01"})
RECORDED = "409-01"
BURST, LATER_BURST = 50, 8
CLIENT_AT = 1_600_000_000_000_000


@dataclass(eq=False)
class Messages:
    """One request to record messages, and all that its sender heard."""

    account: str
    conversation: str
    texts: tuple[str, ...]
    key: str | None
    began: float
    client_at: int = CLIENT_AT
    ended: float | None = None
    told: list[Answer] = field(default_factory=list)
    must_be_refused: bool = False
    has_twin: bool = False
    """A proxy sent it more often than its sender knows."""
    at_once: bool = False
    """It was sent by many at the same time."""

    @property
    def acknowledged(self) -> bool:
        return any(answer.code in ("", RECORDED) for answer in self.told)

    @property
    def refused(self) -> bool:
        """Whether it is certain that nothing of it is stored."""
        known = bool(self.told) and not self.has_twin
        return known and not self.acknowledged and all(answer.is_certain for answer in self.told)

    @property
    def ids(self) -> tuple[str, ...] | None:
        return next((tuple(answer.value) for answer in self.told if not answer.code), None)


@dataclass(eq=False)
class Put:
    """One request to create or update a conversation."""

    account: str
    external_id: str
    version: int
    told: list[Answer] = field(default_factory=list)


@dataclass(eq=False)
class Fact:
    """One request to record that a customer authenticated."""

    account: str
    stream_id: str
    told: list[Answer] = field(default_factory=list)


@dataclass
class History:
    messages: list[Messages] = field(default_factory=list)
    puts: list[Put] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)


class Callers:
    def __init__(self, world: World, network: Network) -> None:
        self._world = world
        self._network = network
        self._keys = {
            account: ApiKey(f"key-{account}", account, account, (), 0, refuse_repeats=world.plan.refuse_repeats)
            for account in ("acme", "globex")
        }
        self._versions = self._bursts = 0
        self.history = History()
        self.conversations: list[tuple[str, str, str]] = []
        """Account, external id and id of those that are known."""
        self.calm = False

    async def prepare(self, conversations: int) -> None:
        """The first conversations, before anything goes wrong."""
        for number in range(conversations):
            account = "globex" if number % 3 == 2 else "acme"
            await self.put(account, f"x{number}", insists=True)

    async def run(self, number: int) -> None:
        """One caller: a request after the other."""
        world = self._world
        insists = world.dice(0.5)
        for count in range(world.plan.requests):
            await world.sleep((0.0, 2 * world.plan.trouble_s / world.plan.requests))
            kind = world.random.random()
            if kind < 0.1:
                known = world.random.choice(self.conversations)
                new = world.dice(0.3)
                await self.put(known[0], f"new {number} {count}" if new else known[1], insists=insists)
            elif kind < 0.2:
                await self._authenticate(f"fact {number} {count}")
            elif kind < 0.23:
                await self._misuse(f"{number}/{count}")
            else:
                await self._record(f"{number}/{count}", insists=insists)

    # Messages.

    async def _record(self, name: str, *, insists: bool) -> None:
        world = self._world
        account, _, conversation = world.random.choice(self.conversations)
        size = world.random.choice((1, 1, 1, 1, 2, 5))
        key = f"key {name}" if world.dice(0.6) else None
        texts = tuple(f"{name}/{index}" for index in range(size))
        if world.dice(0.03):
            conversation = "NOWHERE"
        client_at = CLIENT_AT + world.random.randrange(3)
        request = Messages(account, conversation, texts, key, world.now_s, client_at)
        request.must_be_refused = conversation == "NOWHERE"
        self.history.messages.append(request)
        await self._insist(lambda: self.send(request), insists=insists and key is not None)
        request.ended = world.now_s
        if request.acknowledged and key is not None and world.dice(0.2):  # it forgets that it was told
            await self.send(request)

    async def burst(self, name: str) -> None:
        """The same request under one key, very many times at once."""
        world = self._world
        account, _, conversation = world.random.choice(self.conversations)
        request = Messages(account, conversation, (f"{name}/0", f"{name}/1"), f"key {name}", world.now_s)
        request.at_once = True
        self._bursts += 1
        self.history.messages.append(request)
        async with asyncio.TaskGroup() as group:
            for _ in range(BURST if self._bursts == 0 else LATER_BURST):
                group.create_task(self.send(request))
            self._world.figures.add("bursts")
        request.ended = world.now_s

    async def say(self, name: str) -> None:
        """One message where some webhook's account has a conversation, until it is acknowledged."""
        account, _, conversation = self._world.random.choice(self.conversations)
        request = Messages(account, conversation, (name,), f"key {name}", self._world.now_s)
        self.history.messages.append(request)
        await self._insist(lambda: self.send(request), insists=True)
        request.ended = self._world.now_s

    async def _misuse(self, name: str) -> None:
        """A key that stands for another request already."""
        world = self._world
        old = [one for one in self.history.messages if one.key and one.acknowledged and not one.must_be_refused]
        if not old:
            return
        used = world.random.choice(old)
        request = Messages(used.account, used.conversation, (f"other {name}",), used.key, world.now_s)
        request.must_be_refused = True
        self.history.messages.append(request)
        await self.send(request)
        request.ended = world.now_s

    async def send(self, request: Messages) -> Answer:
        world = self._world
        messages = [NewMessage(text, "agent", "a", request.client_at) for text in request.texts]
        key = self._keys[request.account]

        async def work(node: Node) -> list[str]:
            service = node.service
            if len(messages) == 1:
                return [await service.create_message(key, request.conversation, messages[0], request.key)]
            return await service.create_messages(key, request.conversation, messages, request.key)

        def on_twin() -> None:
            request.has_twin = True

        answer = await self._network.ask(work, on_twin if request.key is not None else None)
        request.told.append(answer)
        world.note("told", request.texts[0], answer.code, answer.value if not answer.code else "")
        world.figures.add(f"told {answer.code or '200'}")
        return answer

    async def _insist(self, send: Callable[[], Coroutine[Any, Any, Answer]], *, insists: bool) -> Answer:
        """Retries as published; whoever ``insists`` goes on until it knows."""
        tried = 0
        while True:
            answer = await send()
            if answer.code in RETRIED and tried < len(PAUSES_S):
                await asyncio.sleep(PAUSES_S[tried])
            elif insists and (answer.code in RETRIED or answer.code in ("lost", "refused")):
                await asyncio.sleep(1.0)
            else:
                return answer
            tried += 1

    # Everything else.

    async def put(self, account: str, external_id: str, *, insists: bool) -> None:
        self._versions += 1
        version = self._versions
        put = Put(account, external_id, version)
        self.history.puts.append(put)
        new = NewConversation(external_id, Participant("c"), CLIENT_AT, metadata={"version": str(version)})

        async def work(node: Node) -> str:
            return await node.service.create_conversation(self._keys[account], new)

        async def send() -> Answer:
            put.told.append(await self._network.ask(work))
            return put.told[-1]

        answer = await self._insist(send, insists=insists)
        if not answer.code and (account, external_id, answer.value) not in self.conversations:
            self.conversations.append((account, external_id, answer.value))

    async def _authenticate(self, stream_id: str) -> None:
        account, _, conversation = self._world.random.choice(self.conversations)
        fact = Fact(account, stream_id)
        self.history.facts.append(fact)

        async def work(node: Node) -> None:
            new = NewAuthentication("c", ("password",), stream_id)
            await node.service.authenticate(self._keys[account], conversation, new)

        async def send() -> Answer:
            fact.told.append(await self._network.ask(work))
            return fact.told[-1]

        await self._insist(send, insists=False)
