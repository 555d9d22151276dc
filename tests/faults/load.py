"""Callers that retry as published clients do, and what each of them was told: the load beside every fault.

A request is sent again, with its key where it has one, after a connection error, 429 and 503, with exponential backoff
and full jitter, and no sooner than Retry-After says; after so many attempts its caller gives up. Without a key it is
sent again only where it is certain that it was not recorded: whatever is stored twice then is the server's doing.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.history import Caller, Load, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.history import Outcome

SIZES = (1, 1, 1, 1, 2, 7, 40)
"""Messages of a request, of which one is taken each time."""
_NOT_RECORDED = frozenset({"429-01", "503-01"})
_REMEMBERED = 20
"""Acknowledged requests of a connection, of which some are sent again."""


@dataclass(frozen=True)
class Backoff:
    """How often a request is sent at most, and the pause behind attempt 1, 2, …: up to ``first_s`` times 1, 2, 4, …"""

    attempts: int = 10
    first_s: float = 0.05
    most_s: float = 1.0

    def pause_s(self, attempt: int, chance: random.Random, asked_s: float) -> float:
        """Full jitter: anything up to the pause, and no less than the server has asked for."""
        return max(asked_s, chance.random() * min(self.most_s, self.first_s * 2.0 ** (attempt - 1)))


PUBLISHED = Backoff(attempts=4, first_s=0.25, most_s=1.0)
"""As the published clients have it for answers 5xx."""


class Clients(Load):
    """The load of tests/history.py, by callers that retry; some of what was acknowledged is sent again with its key.

    Among the requests are some that must be refused whole: of a wrong schema, or with a key that was used for another
    one. What is wanted is counted in messages.
    """

    def __init__(
        self,
        port: int,
        headers: Mapping[str, str],
        conversations: list[str],
        seed: int,
        *,
        backoff: Backoff | None = None,
        sizes: tuple[int, ...] = SIZES,
    ) -> None:
        super().__init__(port, headers, conversations, seed)
        self._backoff = backoff or Backoff()
        self._sizes = sizes
        self._under_way: dict[int, Request] = {}
        self._settled = asyncio.Event()
        self.messages = 0
        """Acknowledged so far."""
        self.unknown = 0
        """Requests whose callers gave up without knowing what became of them."""
        self.repeated = 0
        """Times that an acknowledged request was sent again and got its first ids."""
        self.retried = 0
        """Acknowledged requests that took more than one attempt."""
        self.turned_away = 0
        """Connections that were refused, as where nobody listens."""
        self.surprises: list[str] = []
        """What broke a promise and is not to be seen in a listing."""

    @property
    def under_way(self) -> int:
        """How many connections wait for the outcome of a request now."""
        return len(self._under_way)

    async def rotate(self, conversations: list[str]) -> list[Request]:
        """Go on in other conversations; every request of the former ones, once nothing is sent there any more."""
        former, self._conversations = set(self._conversations), conversations
        while any(request.conversation in former for request in self._under_way.values()):
            self._settled.clear()
            await self._settled.wait()
        closed = [request for request in self.history.requests if request.conversation in former]
        self.history.requests = [request for request in self.history.requests if request.conversation not in former]
        return closed

    def _caller(self) -> Caller:
        return Caller(self._ports[0], self._headers)

    async def _connection(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)  # noqa: S311 - a repeatable load, not a secret
        caller = self._caller()
        kept: list[Request] = []
        count = 0
        await self.up.wait()
        while not self.stopping:
            count += 1
            kept = [request for request in kept if request.conversation in self._conversations][-_REMEMBERED:]
            request = self._next(number, count, chance, kept)
            is_new = request.outcome == "unknown"
            broken = await self._settle(number, caller, chance, request)
            # Behind a fault it shows whether the keys of what was acknowledged last are still there.
            for one in kept[-2:] if broken else ():
                await self._settle(number, caller, chance, one)
            if is_new and request.key is not None and request.outcome == "acknowledged":
                kept.append(request)
        await caller.close()

    def _next(self, number: int, count: int, chance: random.Random, kept: list[Request]) -> Request:
        """A new request, or one that was acknowledged, with its key."""
        request = self._request(number, count, chance)
        if kept and request.good:
            luck = chance.random()
            if luck < 0.1:
                return chance.choice(kept)
            if luck < 0.13:
                request.key = chance.choice(kept).key  # for another request: to be refused
        self.history.requests.append(request)
        return request

    def _size(self, chance: random.Random) -> int:
        return chance.choice(self._sizes)

    async def _settle(self, number: int, caller: Caller, chance: random.Random, request: Request) -> bool:
        """Send it until its outcome is known or its caller gives up; whether a connection broke."""
        self._under_way[number] = request
        try:
            broken, outcome = await self._attempts(caller, chance, request)
        finally:
            del self._under_way[number]
            self._settled.set()
        if request.outcome == "unknown":
            request.outcome = outcome
            self.unknown += outcome == "unknown"
        return broken

    async def _attempts(self, caller: Caller, chance: random.Random, request: Request) -> tuple[bool, Outcome]:
        broken, certain = False, True  # that nothing of it is recorded
        for attempt in range(1, self._backoff.attempts + 1):
            request.attempts += 1
            caller.retry_after_s = 0.0
            try:
                status, answer = await self._ask(caller, request)
            except ConnectionRefusedError:
                broken = True
                self.turned_away += 1
            except (OSError, EOFError):
                broken, certain = True, False
            else:
                if status == 200:
                    self._acknowledged(request, answer)
                    return broken, "acknowledged"
                if status < 500 and status != 429:
                    if request.outcome == "acknowledged":
                        self.surprises.append(f"changed ids: {request.key} was acknowledged, and sent again {status}")
                    return broken, "refused"
                certain = certain and answer["error"]["code"] in _NOT_RECORDED
            if not certain and request.key is None:
                break
            await asyncio.sleep(self._backoff.pause_s(attempt, chance, caller.retry_after_s))
        return broken, "refused" if certain else "unknown"

    def _acknowledged(self, request: Request, ids: tuple[str, ...]) -> None:
        if request.outcome == "acknowledged":
            request.later.append(ids)
            self.repeated += ids == request.ids
            return
        request.outcome, request.ids = "acknowledged", ids
        self.messages += len(ids)
        self.retried += request.attempts > 1
        self._count(len(ids))
