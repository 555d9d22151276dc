"""What callers know of the requests they sent, a load that produces it, and the check against what is stored.

Every message has a text of its own, so that it can be found again whatever its id; all have one timestamp, so that a
listing shows them in their order of arrival. ``check`` needs nothing of the server: a listing is a mapping.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tests.harness import V1
from tests.stores import log_entries

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Outcome = Literal["acknowledged", "refused", "unknown"]
Listings = dict[str, list[tuple[str, str]]]
"""By conversation, in the order of the listing: the id and the text of each message."""

TIMESTAMP = "2021-11-23T12:13:14.555Z"


@dataclass
class Request:
    """One request to record messages: what was sent, and what its sender was told in the end."""

    connection: int
    conversation: str
    texts: tuple[str, ...]
    key: str | None = None
    outcome: Outcome = "unknown"
    ids: tuple[str, ...] = ()
    attempts: int = 0
    good: bool = True
    """Whether it is of the published schema; what is not must be refused whole."""
    later: list[tuple[str, ...]] = field(default_factory=list)
    """The ids of every 200 behind the first one: it was sent again with its key although its answer had come."""


@dataclass
class History:
    """Every request of a run, per connection in the order of sending; a connection sends one at a time."""

    requests: list[Request] = field(default_factory=list)

    def count(self, outcome: Outcome) -> int:
        return sum(request.outcome == outcome for request in self.requests)


def check(requests: Iterable[Request], listings: Mapping[str, list[tuple[str, str]]]) -> list[str]:
    """What is wrong with ``listings`` for somebody who was told what ``requests`` say; empty where all is well."""
    requests = list(requests)
    sent = {text for request in requests for text in request.texts}
    found = _Found(listings)
    problems = [f"recorded twice: the id {one_id}" for one_id, times in found.ids.items() if times > 1]
    problems += [f"never sent: {text!r} in {place}" for place, text in found.texts if text not in sent]
    last: dict[tuple[int, str], tuple[int, str]] = {}
    for request in requests:
        problems += _wrong(request, found)
        for text in request.texts:
            place = found.place(request.conversation, text)
            if place is None:
                continue
            stream = (request.connection, request.conversation)
            before = last.get(stream)
            if before is not None and before[0] > place:
                problems.append(f"reordered: {text!r} was sent after {before[1]!r} and is listed before it")
            last[stream] = (place, text)
    return problems


def falling_ids(listings: Mapping[str, list[tuple[str, str]]]) -> list[str]:
    """Where ids do not rise in the order of arrival, as those of one server do, also behind its restarts."""
    return [
        f"ids fall: {first} is listed before {second} in {name}"
        for name, items in listings.items()
        for (first, _), (second, _) in itertools.pairwise(items)
        if first >= second
    ]


class _Found:
    """Listings, by what one asks of them."""

    def __init__(self, listings: Mapping[str, list[tuple[str, str]]]) -> None:
        self.ids = Counter(one_id for items in listings.values() for one_id, _ in items)
        self.texts = Counter((name, text) for name, items in listings.items() for _, text in items)
        self.text_of = {one_id: text for items in listings.values() for one_id, text in items}
        self._places = {(name, text): n for name, items in listings.items() for n, (_, text) in enumerate(items)}

    def place(self, conversation: str, text: str) -> int | None:
        return self._places.get((conversation, text))


def _wrong(request: Request, found: _Found) -> list[str]:
    """What is wrong with one request's messages, their order aside."""
    times = [found.texts[request.conversation, text] for text in request.texts]
    if request.outcome == "refused":
        return [f"refused and recorded: {t!r}" for t, n in zip(request.texts, times, strict=True) if n]
    problems = [f"duplicated: {t!r} {n} times" for t, n in zip(request.texts, times, strict=True) if n > 1]
    if request.outcome == "unknown":
        if len({min(n, 1) for n in times}) > 1:
            problems.append(f"half a batch: {request.texts!r}")
        return problems
    if len(request.ids) != len(request.texts):
        return [*problems, f"{len(request.ids)} ids for {len(request.texts)} messages: {request.texts!r}"]
    problems += [f"changed ids: {request.ids!r}, sent again {ids!r}" for ids in request.later if ids != request.ids]
    for text, one_id, listed in zip(request.texts, request.ids, times, strict=True):
        stored = found.text_of.get(one_id)
        if stored is None:
            problems.append(f"lost: {text!r}, acknowledged as {one_id}")
        elif stored != text:
            problems.append(f"changed: {one_id} was {text!r} and is {stored!r}")
        elif not listed:
            problems.append(f"misplaced: {text!r} is not in {request.conversation}")
    return problems


def log_problems(url: str) -> list[str]:
    """Where the log of a store has a gap or a position twice, in any account."""
    accounts: dict[int, list[int]] = {}
    for account, position in log_entries(url):
        accounts.setdefault(account, []).append(position)
    return [
        f"account {account}: the positions are not 1 to {len(positions)} without a gap"
        for account, positions in accounts.items()
        if sorted(positions) != list(range(1, len(positions) + 1))
    ]


class Caller:
    """One HTTP/1.1 connection to the server, made again where it breaks."""

    def __init__(self, port: int, headers: Mapping[str, str]) -> None:
        self.port = port
        self.retry_after_s = 0.0
        """What the last answer asked for."""
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, Any]:
        """Status and decoded body. Raises OSError, EOFError where the connection breaks, also before sending."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        payload = b"" if body is None else json.dumps(body).encode()
        keyed = "" if key is None else f"idempotency-key: {key}\r\n"
        head = (
            f"{method} {path} HTTP/1.1\r\nhost: localhost\r\n{self._headers}{keyed}content-length: {len(payload)}\r\n"
        )
        try:
            writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + payload)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            answered = json.loads(await _body(reader, answer))
        except (OSError, EOFError):
            await self.close()
            raise
        self.retry_after_s = float(answer.partition(b"\r\nretry-after: ")[2].partition(b"\r\n")[0] or 0)
        if b"connection: close" in answer:
            await self.close()
        return int(answer.split()[1]), answered

    async def close(self) -> None:
        if self._streams is not None:
            writer, self._streams = self._streams[1], None
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


class PatientCaller(Caller):
    """Asks again what only reads or may be done twice, until it is answered with anything but 503; for 10 s or so."""

    async def ask(self, method: str, path: str, body: object = None, key: str | None = None) -> tuple[int, Any]:
        for _ in range(200):
            with contextlib.suppress(OSError, EOFError):
                status, answer = await super().ask(method, path, body, key)
                if status != 503:
                    return status, answer
            await asyncio.sleep(0.05)
        return await super().ask(method, path, body, key)


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"transfer-encoding: chunked" not in head:
        return await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body


class Load:
    """Connections that record messages as fast as they are answered, keyed and not, one by one and in batches.

    ``up`` is cleared while the server is known to be down; a keyed request whose outcome is unknown is sent again,
    with its key, until it is known. ``others`` are more servers on the same store: each connection has one that
    it sends to first, and goes to the next with what it has to send again.
    """

    def __init__(
        self,
        port: int,
        headers: Mapping[str, str],
        conversations: list[str],
        seed: int,
        *,
        others: Sequence[int] = (),
    ) -> None:
        self.history = History()
        self.statuses: Counter[int] = Counter()
        self.codes: Counter[str] = Counter()
        self.acknowledged = asyncio.Event()
        self.up = asyncio.Event()
        self.stopping = False
        self.broken = 0
        self._wanted = 0
        self._ports, self._headers, self._conversations, self._seed = (port, *others), headers, conversations, seed

    def want(self, acknowledgements: int) -> None:
        """Set ``acknowledged`` after so many more of them."""
        self.acknowledged.clear()
        self._wanted = acknowledgements

    async def run(self, connections: int) -> None:
        """Until ``stopping`` is set."""
        await asyncio.gather(*(self._connection(number) for number in range(connections)))

    async def _connection(self, number: int) -> None:
        chance = random.Random(self._seed * 1000 + number)  # noqa: S311 - a repeatable load, not a secret
        callers = [Caller(port, self._headers) for port in self._ports]
        count = 0
        while not self.stopping:
            await self.up.wait()
            count += 1
            turn = number
            request = self._request(number, count, chance)
            self.history.requests.append(request)
            await self._send(callers[turn % len(callers)], request)
            while request.outcome == "unknown" and request.key is not None:
                turn += 1
                await self.up.wait()
                await self._send(callers[turn % len(callers)], request)
        for caller in callers:
            await caller.close()

    def _request(self, number: int, count: int, chance: random.Random) -> Request:
        conversation = chance.choice(self._conversations)
        size = self._size(chance)
        texts = tuple(f'{number}/{count}/{n} Grüße, "ok"?\n\t\\ \N{WAVING HAND SIGN} {"é" * n}' for n in range(size))
        key = f"key-{number}-{count}" if chance.random() < 0.5 else None
        return Request(number, conversation, texts, key, good=chance.random() < 0.95)

    def _size(self, chance: random.Random) -> int:
        return chance.choice((1, 1, 1, 1, 2, 7))

    async def _ask(self, caller: Caller, request: Request) -> tuple[int, Any]:
        """Send it once. Raises OSError, EOFError; else it has its answer, of which a 200 is a tuple of ids."""
        senders = [{"role": "agent", "externalId": "a"} for _ in request.texts]
        if not request.good:
            senders[-1]["role"] = "nobody"
        bodies = [{"text": t, "sender": s, "timestamp": TIMESTAMP} for t, s in zip(request.texts, senders, strict=True)]
        batch = len(bodies) > 1
        path = f"{V1}/conversations/{request.conversation}/messages{'/batch' if batch else ''}"
        try:
            status, answer = await caller.ask("POST", path, {"messages": bodies} if batch else bodies[0], request.key)
        except (OSError, EOFError):
            self.broken += 1
            raise
        self.statuses[status] += 1
        if status != 200:
            self.codes[answer["error"]["code"]] += 1
            return status, answer
        return status, tuple(answer["ids"] if batch else [answer["id"]])

    def _count(self, number: int) -> None:
        """So many more were acknowledged."""
        self._wanted -= number
        if self._wanted <= 0:
            self.acknowledged.set()

    async def _send(self, caller: Caller, request: Request) -> None:
        request.attempts += 1
        try:
            status, answer = await self._ask(caller, request)
        except (OSError, EOFError):
            return
        if status == 200:
            request.outcome, request.ids = "acknowledged", answer
            self._count(1)
            return
        code = answer["error"]["code"]
        if status < 500 or (code == "503-01" and request.attempts == 1):  # which says nothing of earlier attempts
            request.outcome = "refused"


async def read_listings(caller: Caller, conversations: list[str], page: int) -> Listings:
    """Every conversation as the API lists it, in pages."""
    listings: Listings = {}
    for conversation in conversations:
        items = listings[conversation] = []
        after = ""
        while True:
            path = f"{V1}/conversations/{conversation}/messages?limit={page}{after}"
            status, answer = await caller.ask("GET", path)
            assert status == 200, answer
            items += [(item["messageId"], item["text"]) for item in answer["items"]]
            if "nextCursor" not in answer:
                break
            after = f"&after={answer['nextCursor']}"
    return listings
