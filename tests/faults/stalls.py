"""O05, P04: the store stands still for longer than callers wait, with more of them than the queue takes.

Who finds no room is refused at once, who waits too long in the queue is dropped, and whose write is under way is told
that nobody knows. What was refused must not be there once the store goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw

from tests.faults.checker import count
from tests.faults.ledger import Entry
from tests.harness import V1, conversation, make_key, message, wait_for
from tests.history import Caller, Request, check, read_listings
from tests.stores import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.faults.site import Site
    from tests.harness import Key, Server

DEADLINE_S = 1.0
QUEUE = 20
CALLERS = 80
AT_ONCE_S = 0.7
"""A refusal that came sooner was not of the deadline's making."""


@contextmanager
def file_held(url: str) -> Iterator[None]:
    """While this lasts, nobody else records in an SQLite store: what has begun waits, up to SQLite's busy timeout."""
    connection = apsw.Connection(str(path_of(url)))
    connection.set_busy_timeout(5000)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # the WAL is the server's, even if that is dead
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


@contextmanager
def _held(site: Site, server: Server) -> Iterator[None]:
    """While this lasts the store does not record: another process has the file, or the database is frozen."""
    cluster = site.cluster
    if cluster is None:
        with file_held(server.url):
            yield
        return
    cluster.freeze()
    try:
        yield
    finally:
        cluster.thaw()
    active = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'turnlog' AND state = 'active'"
    wait_for(lambda: not cluster.sql(active))


async def _send(server: Server, key: Key, request: Request, said: Counter[str]) -> None:
    """One message, once; what its sender was told."""
    caller = Caller(server.port, key.headers)
    began = time.perf_counter()
    path = f"{V1}/conversations/{request.conversation}/messages"
    status, answer = await caller.ask("POST", path, message(request.texts[0]))
    await caller.close()
    if status == 200:
        request.outcome, request.ids = "acknowledged", (answer["id"],)
    code = "200" if status == 200 else answer["error"]["code"]
    if code == "503-01":
        request.outcome = "refused"
        code = "at once" if time.perf_counter() - began < AT_ONCE_S else "dropped"
    said[code] += 1


async def _scenario(site: Site, server: Server, key: Key) -> tuple[Counter[str], list[str]]:
    caller = Caller(server.port, key.headers)
    _, made = await caller.ask("POST", f"{V1}/conversations", conversation("stalled"))
    requests = [Request(n, made["id"], (f"message {n}",)) for n in range(CALLERS + 2)]
    said: Counter[str] = Counter()
    await _send(server, key, requests[0], Counter())
    held = _held(site, server)
    await asyncio.to_thread(held.__enter__)
    try:
        first = asyncio.create_task(_send(server, key, requests[1], said))
        await asyncio.sleep(0.1)  # it is under way, and the others come behind it
        others = (_send(server, key, request, said) for request in requests[2:-1])
        await asyncio.wait_for(asyncio.gather(first, *others), DEADLINE_S + 15)
    finally:
        await asyncio.to_thread(held.__exit__, None, None, None)
    for attempt in range(50):
        last = requests[-1]
        await _send(server, key, last, Counter())
        if last.outcome == "acknowledged":
            break
        await asyncio.sleep(0.1)
        requests.append(Request(CALLERS + attempt + 2, made["id"], (f"once more {attempt}",)))
    listings = await read_listings(caller, [made["id"]], page=1000)
    await caller.close()
    return said, check(requests, listings)


def stall(site: Site) -> Entry:
    """Once, with a deadline and a queue that are soon reached."""
    server = site.start(TURNLOG_WRITE_DEADLINE_S=str(DEADLINE_S), TURNLOG_MAX_QUEUED_MESSAGES=str(QUEUE))
    key = make_key(server.url, "load")
    with server.client(key):
        pass  # waits until the key is known
    said, problems = asyncio.run(_scenario(site, server, key))
    if said["at once"] < CALLERS // 4:
        problems.append(f"unbounded: {said['at once']} of {CALLERS} were refused at once, by a queue for {QUEUE}")
    figures: dict[str, int | float | str] = {
        "callers": CALLERS,
        "acknowledged": said["200"],
        "refused at once": said["at once"],
        "dropped at the deadline": said["dropped"],
        "unknown": said["503-02"],
        **count(problems),
    }
    # Of a database, what waits is tried, too, once the first has failed: then all of it is unknown.
    stalled = said["503-02"] and (said["dropped"] or site.cluster is not None)
    invalid = "" if stalled or problems else "no write was under way, or none was dropped"
    return Entry("O05 a store that stands still", site.store, figures, tuple(problems[:20]), invalid)
