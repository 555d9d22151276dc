"""O03, O06, O08: many of one kind, and what the others notice of it: compared within one run, window by window."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from tests.faults.ledger import Entry
from tests.faults.open_loop import Phase, Plan, run
from tests.faults.overload import percentile
from tests.harness import V1, create_conversation, wait_for

if TYPE_CHECKING:
    from tests.faults.open_loop import Seen
    from tests.faults.site import Site
    from tests.harness import Key, Server

_BODY = '{"text":"# Hello!","sender":{"role":"agent","externalId":"a"},"timestamp":"2021-11-23T12:13:14.555Z"}'
_LONGEST_BODY = 8 * 1024 * 1024
PER_S = 200.0
"""What the others send, open loop: a load that a server has all the time in the world for."""


class Others:
    """Callers with nothing to do with the crowd, and what they wait for an answer with it and without."""

    def __init__(self, server: Server, key: Key, *, per_s: float = PER_S) -> None:
        with server.client(key) as client:
            path = f"{V1}/conversations/{create_conversation(client, f'others-{key.id}')}/messages"
        fields = {"host": "localhost", **key.headers, "content-type": "application/json"}
        fields["content-length"] = str(len(_BODY.replace("#", "0" * 10)))
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._head = f"POST {path} HTTP/1.1\r\n{head}idempotency-key: "
        self._port = server.port
        self._per_s = per_s
        self._sent = 0
        self.alone: list[float] = []
        self.beside: list[float] = []
        self.answers: dict[int, int] = {}

    def look(self, seconds: float, *, beside: bool) -> Seen:
        """One window."""
        plan = Plan(self._port, [self._head], _BODY, [Phase(seconds, self._per_s)], 200, first=self._sent)
        seen = run(plan)
        self._sent += len(seen.asked)
        for asked in seen.asked:
            self.answers[asked.status] = self.answers.get(asked.status, 0) + 1
        (self.beside if beside else self.alone).append(percentile((a.waited_s for a in seen.asked), 0.99))
        return seen

    def closed(self, seconds: float, callers: int) -> float:
        """How many a second are recorded for so many callers who wait for each answer."""
        plan = Plan(self._port, [self._head], _BODY, [Phase(seconds, 0, callers)], callers, first=self._sent)
        seen = run(plan)
        self._sent += len(seen.asked)
        return sum(asked.status == 200 for asked in seen.asked) / seconds

    @property
    def ratio(self) -> float:
        """Of the p99 with the crowd to that without: the medians of the windows."""
        return round(median(self.beside) / max(median(self.alone), 0.1), 2)

    def figures(self) -> dict[str, int | float | str]:
        return {
            "others_sent": self._sent,
            "others_p99_alone_ms": median(self.alone),
            "others_p99_beside_ms": median(self.beside),
            "ratio": self.ratio,
        }

    def problems(self, most: float) -> list[str]:
        errors = {status: count for status, count in self.answers.items() if status != 200}
        problems = [f"others were answered {errors}"] if errors else []
        if self.ratio > most:
            problems.append(f"others' p99 is {self.ratio} times what it is without, at most {most}")
        return problems


def one_account_over_its_rate(site: Site, *, windows: int = 5, seconds: float = 3, most: float = 1.5) -> Entry:
    """O03: a key of 50 requests a second is used for 1,000 a second."""
    server = site.start()
    loud = Others(server, server.create_key("loud", "--account", "loud", "--rate", "50/s"), per_s=1000)
    others = Others(server, server.create_key("others"))

    async def window() -> None:
        await asyncio.gather(
            asyncio.to_thread(loud.look, seconds, beside=True), asyncio.to_thread(others.look, seconds, beside=True)
        )

    for _ in range(windows):
        others.look(seconds, beside=False)
        asyncio.run(window())
    limited, let_in = loud.answers.get(429, 0), loud.answers.get(200, 0)
    problems = others.problems(most)
    if set(loud.answers) - {200, 429}:
        problems.append(f"the one over its rate was answered {loud.answers}")
    if let_in > 50 * (windows * (seconds + 1) + 1):
        problems.append(f"the one over its rate was let in {let_in} times")
    figures = others.figures() | {"limited": limited, "let in": let_in}
    return Entry(
        "O03 one account at 20 times its rate", site.store, figures, tuple(problems), "" if limited else "no 429"
    )


def slow_connections(
    site: Site, *, connections: int = 1000, windows: int = 3, seconds: float = 3, most: float = 2.0, **settings: str
) -> Entry:
    """O06: a third of them silent, a third with heads and a third with bodies that come byte by byte."""
    server = site.start(**settings)
    key = server.create_key("slow")
    others = Others(server, key)
    head = "".join(f"{name}: {value}\r\n" for name, value in key.headers.items())
    target = f"POST {V1}/conversations HTTP/1.1\r\nhost: localhost\r\n"
    with_body = f"{target}{head}content-type: application/json\r\ncontent-length: 9999\r\n\r\n"
    starts = ("", f"{target}x: ", with_body)
    lives: list[tuple[str, float]] = []

    async def one(start: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        began_at = time.monotonic()
        writer.write(start.encode())
        reading = asyncio.ensure_future(reader.read())
        while not reading.done():
            await asyncio.wait((reading,), timeout=1)
            if start and not reading.done():
                writer.write(b"1")
        kind = "silent" if not start else "head" if start is starts[1] else "body"
        lives.append((kind, time.monotonic() - began_at))
        writer.transport.abort()
        reading.exception()

    async def crowd() -> None:
        slow = [asyncio.ensure_future(one(starts[number % 3])) for number in range(connections)]
        await asyncio.to_thread(others.look, seconds, beside=True)
        await asyncio.wait_for(asyncio.gather(*slow), 60)

    for _ in range(windows):
        others.look(seconds, beside=False)
        asyncio.run(crowd())
    longest = {kind: round(max(life for one_kind, life in lives if one_kind == kind), 1) for kind, _ in lives}
    limits = {
        "silent": "TURNLOG_HEADER_TIMEOUT_S",
        "head": "TURNLOG_HEADER_TIMEOUT_S",
        "body": "TURNLOG_BODY_TIMEOUT_S",
    }
    problems = others.problems(most)
    for kind, life in longest.items():
        limit = float(settings.get(limits[kind], 15 if kind == "body" else 10))
        if life > limit + 3:
            problems.append(f"a connection ({kind}) was open for {life} s, {limit} s are allowed")
    figures = (
        others.figures() | {"slow connections": len(lives)} | {f"{kind}_longest_s": s for kind, s in longest.items()}
    )
    return Entry("O06 slow connections", site.store, figures, tuple(problems), "" if lives else "nobody was slow")


def many_large_bodies(site: Site, *, bodies: int = 500, most_mb: float = 400) -> Entry:
    """O08: the largest bodies there may be, all at once; each is answered, and memory stays bounded."""
    server = site.start()
    key = server.create_key("large")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'large')}/messages/batch"
        pid, before = server.worker_pid, memory_mb(server.worker_pid)
        fields = {"host": "localhost", **key.headers, "content-type": "application/json", "connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        text = b"x" * 60_000
        item = b'{"text":"%b","sender":{"role":"agent","externalId":"a"},"timestamp":"2021-11-23T12:13:14Z"}' % text
        count = min(300, _LONGEST_BODY // (len(item) + 1))
        body = b'{"messages":[' + b",".join([item] * count) + b"]}"
        small = item.replace(text, b"x")
        odd = [b"[" * 28 + b"]" * 28, b'{"":0}', b"0", b'""']  # an object of Python's for every few bytes
        others = [
            b'{"messages":[%b],"u":[%b]}' % (small, b",".join([one] * (len(body) // (len(one) + 1) - 200)))
            for one in odd
        ]
        requests = [_request(path, head, one) for one in (body, body, body, body, *others)]
        statuses = asyncio.run(_send_all(server.port, requests, bodies))
        peak = peak_mb(pid)
    problems = []
    if set(statuses) - {200, 400, 503}:
        problems.append(f"answered {statuses}")
    if peak - before > most_mb:
        problems.append(f"{peak - before:.0f} MB more memory, at most {most_mb}")
    figures: dict[str, int | float | str] = {
        "bodies": bodies,
        "bytes each": len(body),
        "recorded": statuses.get(200, 0),
        "refused": statuses.get(503, 0),
        "refused for their shape": statuses.get(400, 0),
        "memory before MB": round(before),
        "peak MB": round(peak),
    }
    return Entry(
        "O08 largest bodies at once", site.store, figures, tuple(problems), "" if statuses.get(200) else "none recorded"
    )


def _request(path: str, head: str, body: bytes) -> list[bytes]:
    return [f"POST {path} HTTP/1.1\r\n{head}content-length: {len(body)}\r\n\r\n".encode(), body]


async def _send_all(port: int, requests: list[list[bytes]], times: int) -> dict[int, int]:
    """By status, how many were answered so; 0 for a connection that broke."""
    statuses: dict[int, int] = {}

    async def one(number: int) -> None:
        status = 0
        with contextlib.suppress(OSError, EOFError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for part in requests[number % len(requests)]:
                writer.write(part)
            # What is refused early is answered while the rest of it is still on its way.
            status = int((await reader.readuntil(b"\r\n")).split()[1])
            writer.transport.abort()
        statuses[status] = statuses.get(status, 0) + 1

    await asyncio.gather(*(one(number) for number in range(times)))
    return statuses


def many_idle_connections(site: Site, *, connections: int = 10_000, extra: int = 50, most_kb: float = 40) -> Entry:
    """O08: as many as are allowed, and some more, which are told 503-01."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < connections + extra + 500:
        return Entry("O08 idle connections", site.store, invalid=f"only {hard} files may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    server = site.start(TURNLOG_MAX_CONNECTIONS=str(connections), TURNLOG_HEADER_TIMEOUT_S="120")
    before = memory_mb(server.worker_pid)
    told: list[bytes] = []
    writers: list[asyncio.StreamWriter] = []

    async def crowd() -> None:
        async with contextlib.AsyncExitStack() as stack:
            for number in range(connections + extra):
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                stack.callback(writer.transport.abort)
                writers.append(writer)  # one that is not kept is closed
                if number >= connections:
                    told.append(await asyncio.wait_for(reader.read(), 10))
            figures["memory per connection KB"] = round(1024 * (memory_mb(server.worker_pid) - before) / connections, 1)

    figures: dict[str, int | float | str] = {"connections": connections, "too many": extra}
    asyncio.run(crowd())
    problems = (
        [] if all(b'"503-01"' in answer and b"retry-after: " in answer for answer in told) else ["not told 503-01"]
    )
    if float(figures["memory per connection KB"]) > most_kb:
        problems.append(f"{figures['memory per connection KB']} KB a connection, at most {most_kb}")
    with server.client(server.create_key("after")) as client:
        wait_for(lambda: client.get("/v1/health").status_code == 200)
    return Entry("O08 idle connections", site.store, figures, tuple(problems))


def _memory(pid: int, field: str) -> float:
    return int(Path(f"/proc/{pid}/status").read_text("ascii").partition(f"{field}:")[2].split()[0]) / 1024


def memory_mb(pid: int) -> float:
    return _memory(pid, "VmRSS")


def peak_mb(pid: int) -> float:
    return _memory(pid, "VmHWM")
