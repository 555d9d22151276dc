"""Open-loop load, in a process of its own: requests are sent when they are due, whatever became of those before them.

``python -m tests.faults.open_loop`` reads a ``Plan`` as JSON from its input and writes what it saw, a ``Seen``, as
JSON. A closed loop, which waits for its answers, slows down with the server and hides what callers wait for. Here a
request's time runs from the instant at which it was due, so that waiting for a connection counts too. Callers that
retry do so as published clients: the same idempotency key, a pause of 0.25, 0.5 and 1 s give or take a half, and,
every second one of them, never earlier than ``Retry-After`` says.

A raw ``epoll`` loop, because it shares the machine with what it measures.
"""

from __future__ import annotations

import heapq
import random
import resource
import select
import socket
import subprocess
import sys
import time
from collections import deque

import msgspec

BACKOFF_S = (0.25, 0.5, 1.0)
"""The pauses of published clients; a fourth failure is final."""
_LAST_ANSWERS_S = 8.0
"""How long is waited for what is under way when everything has been sent."""


class Phase(msgspec.Struct):
    """``per_s`` requests a second for so long; at 0 each of the ``connections`` asks again once it is answered."""

    seconds: float
    per_s: float
    connections: int = 0


class Plan(msgspec.Struct):
    """What to send: a head, the request's number in ten digits as its key, and the body, with the number for ``#``."""

    port: int
    heads: list[str]
    """Heads up to the idempotency key's value, one for each target, in turn."""
    body: str
    phases: list[Phase]
    connections: int
    """How many may be open; a request that finds none free waits for one, and that counts."""
    patience_s: float = 1.0
    """For how long it waits, as for a place in a client's pool; then its caller gives up, and nothing was sent."""
    retries: bool = False
    first: int = 0
    """The number of the first request."""
    seed: int = 1


class Asked(msgspec.Struct, array_like=True):
    """A request and what its caller was told in the end."""

    number: int
    phase: int
    due_at_s: float
    """From the beginning of the load."""
    took_s: float = -1.0
    """From when it was due until its last answer; below 0: none."""
    status: int = 0
    ids: str = ""
    attempts: int = 0
    waited_s: float = 0.0
    """Of the last attempt, from when it was due until its answer."""
    answered_s: float = 0.0
    """Of the last attempt, from when it was sent until its answer: without the time that it took to find a place."""
    retry_after: bool = False
    """Whether every refusal said when to come back."""
    code: str = ""


class Seen(msgspec.Struct):
    """Every request, in the order in which they were due; refusals of attempts that were retried, by their waiting."""

    began_at: float
    """By ``time.monotonic``, which all processes of a machine share."""
    asked: list[Asked]
    refusals_s: list[float]
    broken: int
    late_s: float
    """The longest that a request was begun after its time for the generator's own reasons."""
    cpu_s: float


class _Connection:
    __slots__ = ("attempt_due", "got", "request", "sent_at", "socket")

    def __init__(self) -> None:
        self.socket: socket.socket | None = None
        self.request: Asked | None = None
        self.attempt_due = self.sent_at = 0.0
        self.got = b""


class _Generator:
    def __init__(self, plan: Plan) -> None:
        self._heads = [head.encode() for head in plan.heads]
        self._body = plan.body.encode().split(b"#")
        self._plan = plan
        self._random = random.Random(plan.seed)  # noqa: S311 - a repeatable load, not a secret
        self._epoll = select.epoll()
        self._address = ("127.0.0.1", plan.port)
        self._idle: list[_Connection] = [_Connection() for _ in range(plan.connections)]
        self._open: dict[int, _Connection] = {}
        self._waiting: deque[tuple[float, Asked]] = deque()
        self._retries: list[tuple[float, int, Asked]] = []
        self._closed_loop = -1
        self._under_way = 0
        self.asked: list[Asked] = []
        self.refusals_s: list[float] = []
        self.broken = 0
        self.late_s = 0.0
        self.began_at = time.monotonic()

    def run(self) -> None:
        """All phases, and what is under way then."""
        ends_at = 0.0
        for number, phase in enumerate(self._plan.phases):
            begins_at, ends_at = ends_at, ends_at + phase.seconds
            if phase.per_s:
                self._open_loop(number, phase.per_s, begins_at, ends_at)
            else:
                self._closed_loop = number
                for _ in range(phase.connections):
                    self._ask(number, self._now())
                self._turns_until(ends_at)
                self._closed_loop = -1
        last = ends_at + _LAST_ANSWERS_S
        while (self._under_way or self._waiting or self._retries) and self._now() < last:
            self._turn(0.01)

    def _open_loop(self, phase: int, per_s: float, begins_at: float, ends_at: float) -> None:
        due = begins_at
        while due < ends_at:
            wait_s = due - self._now()
            if wait_s > 0:
                self._turn(wait_s)
                continue
            self.late_s = max(self.late_s, -wait_s)
            for _ in range(256):  # those that are due; then look at the answers
                self._ask(phase, due)
                due += self._random.expovariate(per_s)
                if due > self._now() or due >= ends_at:
                    break
            self._turn(0)

    def _turns_until(self, until: float) -> None:
        while (left_s := until - self._now()) > 0:
            self._turn(left_s)

    def _now(self) -> float:
        return time.monotonic() - self.began_at

    def _ask(self, phase: int, due: float) -> None:
        request = Asked(self._plan.first + len(self.asked), phase, due)
        self.asked.append(request)
        self._send(request, due)

    def _turn(self, wait_s: float) -> None:
        while self._retries and self._retries[0][0] <= self._now():
            due, _, request = heapq.heappop(self._retries)
            self._send(request, due)
        if self._retries:
            wait_s = min(wait_s, max(0.0, self._retries[0][0] - self._now()))
        # epoll counts in milliseconds and rounds up: what is due within one is sent together, a busy loop would take
        # the time of the server's.
        for descriptor, _ in self._epoll.poll(wait_s, 256):
            self._readable(self._open[descriptor])

    def _send(self, request: Asked, due: float) -> None:
        if not self._idle:
            self._waiting.append((due, request))
            return
        connection = self._idle.pop()
        number = b"%010d" % request.number
        body = number.join(self._body)
        head = self._heads[request.number % len(self._heads)]
        request.attempts += 1
        self._under_way += 1
        connection.request, connection.attempt_due, connection.sent_at = request, due, self._now()
        try:
            if connection.socket is None:
                self._connect(connection)
            assert connection.socket is not None
            sent = connection.socket.send(message := b"%b%b\r\n\r\n%b" % (head, number, body))
            if sent < len(message):  # a body over the socket's buffer: the rest is waited for
                connection.socket.setblocking(True)
                connection.socket.sendall(message[sent:])
                connection.socket.setblocking(False)
        except OSError:
            self._break(connection)

    def _connect(self, connection: _Connection) -> None:
        one = socket.socket()
        one.settimeout(5)
        try:
            one.connect(self._address)
        except OSError:
            one.close()
            raise
        one.setblocking(False)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.socket = one
        self._open[one.fileno()] = connection
        self._epoll.register(one.fileno(), select.EPOLLIN)

    def _close(self, connection: _Connection) -> None:
        if connection.socket is not None:
            self._epoll.unregister(connection.socket.fileno())
            del self._open[connection.socket.fileno()]
            connection.socket.close()
            connection.socket = None
        connection.got = b""

    def _break(self, connection: _Connection) -> None:
        self.broken += 1
        self._close(connection)
        self._told(connection, 0, b"")

    def _readable(self, connection: _Connection) -> None:
        assert connection.socket is not None
        try:
            data = connection.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if connection.request is None:
                self._close(connection)  # an idle one: closed by the server, as it may be
            else:
                self._break(connection)
            return
        connection.got += data
        if not connection.got.endswith(b"}"):
            return
        got, connection.got = connection.got, b""
        if b"\r\nconnection: close\r\n" in got:
            self._close(connection)
        self._told(connection, int(got[9:12]), got)

    def _told(self, connection: _Connection, status: int, got: bytes) -> None:
        request, due = connection.request, connection.attempt_due
        assert request is not None
        connection.request = None
        self._under_way -= 1
        now = self._now()
        request.took_s, request.waited_s, request.status = now - request.due_at_s, now - due, status
        request.answered_s = now - connection.sent_at
        if status == 200:
            request.ids = got.rpartition(b"\r\n\r\n")[2].decode()
            request.code = ""
        elif status:
            request.code = got.partition(b'"code":"')[2][:6].decode()
            told_when = b"\r\nretry-after: " in got
            request.retry_after = told_when and (request.attempts == 1 or request.retry_after)
        if status != 200 and self._plan.retries and request.attempts <= len(BACKOFF_S):
            if status:
                self.refusals_s.append(now - due)
            pause_s = BACKOFF_S[request.attempts - 1] * self._random.uniform(0.5, 1.5)
            if status and request.number % 2:
                pause_s = max(pause_s, float(got.partition(b"\r\nretry-after: ")[2].partition(b"\r")[0] or 0))
            heapq.heappush(self._retries, (now + pause_s, request.number, request))
        self._idle.append(connection)
        while self._waiting and self._waiting[0][0] < now - self._plan.patience_s:
            self._waiting.popleft()
        if self._waiting:
            waiting_since, waiting = self._waiting.popleft()
            self._send(waiting, waiting_since)
        elif self._closed_loop >= 0:
            self._ask(self._closed_loop, now)


def run(plan: Plan, seconds_beyond: float = 60) -> Seen:
    """Send it all from a process of its own; returns when everything is answered or given up."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.open_loop"],
        input=msgspec.json.encode(plan),
        stdout=subprocess.PIPE,
        timeout=sum(phase.seconds for phase in plan.phases) + seconds_beyond,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Seen)


def main() -> None:
    """See the module."""
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    generator = _Generator(plan)
    generator.run()
    seen = Seen(
        generator.began_at,
        generator.asked,
        generator.refusals_s,
        generator.broken,
        generator.late_s,
        time.process_time(),
    )
    sys.stdout.buffer.write(msgspec.json.encode(seen))


if __name__ == "__main__":
    main()
