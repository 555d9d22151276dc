"""C01: how long a kill keeps callers waiting, where much is stored already and the WAL has something to recover."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from typing import TYPE_CHECKING, Literal

import httpx
from bench.seed import seed

from tests.faults.ledger import Entry
from tests.harness import V1, Server, create_conversation, make_key, message, wait_for
from tests.history import log_problems
from tests.stores import path_of

if TYPE_CHECKING:
    from pathlib import Path

Target = Literal["worker", "server"]
BOUND_S = 1.5
"""Of the slowest hundredth, by the fault list, where the parent lives."""
_BATCH = 300
_MOST_BATCHES = 12
_PATIENCE_S = 60
_MOST_PROBLEMS = 20


class _Restarts:
    """One server, killed and asked again and again; what it acknowledged meanwhile."""

    def __init__(self, server: Server, client: httpx.Client, target: Target, seed_number: int) -> None:
        self._server = server
        self._client = client
        self._target = target
        self._chance = random.Random(seed_number)  # noqa: S311 - a repeatable run, not a secret
        self._path = f"{V1}/conversations/{create_conversation(client, 'restarts')}/messages"
        self._keys = (f"restart-{number}" for number in itertools.count(1))
        self.acknowledged: list[str] = []
        self.seconds: list[float] = []
        self.wal_bytes: list[int] = []
        self.refused = 0

    def cycle(self) -> None:
        """Record a little, kill, and send one message with its key until it is acknowledged."""
        for _ in range(self._chance.randint(1, _MOST_BATCHES)):
            answer = self._client.post(f"{self._path}/batch", json={"messages": [message("x" * 400)] * _BATCH})
            self.acknowledged += answer.raise_for_status().json()["ids"]
        self.wal_bytes.append(path_of(f"{self._server.url}-wal").stat().st_size)
        former = self._server.worker_pid
        killed_at = time.monotonic()
        if self._target == "worker":
            os.kill(former, signal.SIGKILL)
        else:
            self._server.kill()
            self._server.start()
        self.acknowledged.append(self._first_200())
        self.seconds.append(time.monotonic() - killed_at)
        assert self._server.worker_pid != former, "nobody was killed"

    def _first_200(self) -> str:
        fields = {"idempotency-key": next(self._keys)}
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            try:
                answer = self._client.post(self._path, json=message(), headers=fields)
            except httpx.ConnectError:
                self.refused += 1
            except httpx.TransportError:
                pass  # its connection was cut
            else:
                if answer.status_code == 200:
                    return str(answer.json()["id"])
        raise AssertionError("the server does not come back")

    def problems(self) -> list[str]:
        """What of the acknowledged is not listed, in its order, and what is although it was not acknowledged."""
        items = self._client.get(self._path).raise_for_status().json()["items"]
        listed = [item["messageId"] for item in items]
        if listed == self.acknowledged:
            return []
        lost, more = set(self.acknowledged) - set(listed), set(listed) - set(self.acknowledged)
        return [f"lost: {len(lost)}, unexpected: {len(more)}, of {len(self.acknowledged)} in one conversation"]


def restart(
    folder: Path,
    *,
    messages: int = 1_000_000,
    kills: int = 50,
    target: Target = "worker",
    bound_s: float = BOUND_S,
    seed_number: int = 1,
) -> Entry:
    """Kill ``target`` so often, on a new store in ``folder`` that has so many messages already."""
    url = f"sqlite:///{folder / 'restarts.db'}"
    key = make_key(url, "restarts")
    seed(path_of(url), messages)
    with Server(url) as server, server.client(key) as client:
        run = _Restarts(server, client, target, seed_number)
        for _ in range(kills):
            run.cycle()
        wait_for(lambda: client.get("/readyz").status_code == 200)
        problems = run.problems()
        status = server.stop()
        problems += [f"exit status {status} after SIGTERM"] if status else []
    problems += log_problems(url)
    ordered = sorted(run.seconds)
    p99_s = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    if target == "worker":  # a new start takes what the interpreter and its imports take
        problems += [f"kill to first 200: p99 {p99_s:.2f} s, over {bound_s} s"] if p99_s > bound_s else []
        problems += [f"refused connections: {run.refused}"] if run.refused else []
    figures: dict[str, int | float | str] = {
        "kills": kills,
        "stored before": messages,
        "acknowledged": len(run.acknowledged),
        "kill to first 200, median ms": round(ordered[len(ordered) // 2] * 1000),
        "kill to first 200, p99 ms": round(p99_s * 1000),
        "largest WAL at a kill, MB": round(max(run.wal_bytes) / 1e6, 1),
        "refused connections": run.refused,
    }
    of_whom = "the worker" if target == "worker" else "parent and worker, and a new start"
    invalid = "" if kills and max(run.wal_bytes) else "there was nothing to recover"
    return Entry(
        f"C01 kill -9 of {of_whom}: how long until the first 200",
        "sqlite",
        figures,
        tuple(problems[:_MOST_PROBLEMS]),
        invalid,
    )
