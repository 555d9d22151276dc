"""N01, N02: callers that retry, over a way that loses, delays, resets and repeats what they send."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tests.faults.checker import Checker, count
from tests.faults.ledger import Entry
from tests.faults.load import Backoff, Clients
from tests.faults.way import Namespace, Relay, Way
from tests.harness import V1, conversation, make_key
from tests.history import PatientCaller, log_problems
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from tests.faults.site import Site
    from tests.harness import Key

LOSSY = Way(loss=0.3, jitter_s=0.2, kbit_per_s=64)
PROXY = Way(reset=0.1, replay=0.3)
_PATIENCE_S = 60
_CONVERSATIONS = 3


def lossy_network(site: Site, seconds: float, connections: int = 6, seed: int = 1) -> Entry:
    """N02: 30 % of the packets lost, up to 200 ms more, 64 kbit/s for all together."""
    with Namespace() as namespace:
        server = site.start("--host", "0.0.0.0")  # noqa: S104 - for the namespace, and as long as this runs
        namespace.slow_down(LOSSY.kbit_per_s)
        namespace.lose(LOSSY.loss)
        with Relay(namespace.host, server.port, LOSSY, seed, namespace) as relay:
            run = _Run(server.url, server.port, relay.port, seed)
            asyncio.run(run.carry_out(seconds, connections))
        lost = namespace.lost()
    figures = {"connections": connections, "lost packets": lost}
    return run.entry("N02 30 % loss, 200 ms jitter, 64 kbit/s", figures, "" if lost else "no packet was lost")


def replaying_proxy(site: Site, seconds: float, connections: int = 16, seed: int = 1) -> Entry:
    """N01: of the answers a tenth is lost in a reset behind the commit; of what has a key, a third is sent twice."""
    server = site.start()
    with Relay("127.0.0.1", server.port, PROXY, seed) as relay:
        run = _Run(server.url, server.port, relay.port, seed)
        asyncio.run(run.carry_out(seconds, connections))
        figures = {"resets": relay.resets, "replays": relay.replays}
    return run.entry(
        "N01 resets behind the commit, a proxy that replays", figures, "" if all(figures.values()) else "no fault"
    )


class _Run:
    """Callers on the bad way; what they were told is checked over the good one."""

    def __init__(self, url: str, port: int, way_port: int, seed: int) -> None:
        self._url = url
        self._port = port
        self._way_port = way_port
        self._seed = seed
        self._checker = Checker()
        self._took_s = 0.0
        self._load: Clients

    async def carry_out(self, seconds: float, connections: int) -> None:
        key = await asyncio.to_thread(make_key, self._url, "load", permissions=PERMISSIONS)
        caller = PatientCaller(self._port, key.headers)
        names = await self._new_conversations(caller, key)
        backoff = Backoff(attempts=50)
        load = self._load = Clients(
            self._way_port, key.headers, names, self._seed, backoff=backoff, sizes=(1, 1, 1, 2, 7)
        )
        load.up.set()
        began_at = time.monotonic()
        running = asyncio.create_task(load.run(connections))
        await asyncio.sleep(seconds)
        load.stopping = True
        done, _ = await asyncio.wait((running,), timeout=_PATIENCE_S)
        self._took_s = time.monotonic() - began_at
        if done:
            running.result()
        else:  # who waits on such a way for its packets to come may wait longer than we do: what they know counts
            running.cancel()
            await asyncio.wait((running,))
        await self._checker.closed(caller, load.history.requests, names)
        await self._checker.log(caller)
        await caller.close()

    async def _new_conversations(self, caller: PatientCaller, key: Key) -> list[str]:
        for _ in range(400):  # until the key is known
            if (await caller.ask("GET", "/v1/health"))[0] == 200:
                break
            await asyncio.sleep(0.01)
        made = []
        for number in range(_CONVERSATIONS):
            status, answer = await caller.ask("POST", f"{V1}/conversations", conversation(f"{key.id}-{number}"))
            assert status == 200, answer
            made.append(str(answer["id"]))
        return made

    def entry(self, measure: str, figures: dict[str, int], invalid: str) -> Entry:
        load, checker = self._load, self._checker
        problems = (*checker.problems, *load.surprises, *log_problems(self._url))
        acknowledged = checker.acknowledged
        shown: dict[str, int | float | str] = {
            "seconds": round(self._took_s, 1),
            "acknowledged": acknowledged,
            "retried": load.retried,
            "broken connections": load.broken,
            **figures,
            **count(problems),
        }
        return Entry(
            measure, self._url.partition(":")[0], shown, problems, invalid if acknowledged else "nothing acknowledged"
        )
