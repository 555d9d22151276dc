"""E01: who follows the log ends with exactly the log, however often the server is killed meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.ledger import Entry
from tests.harness import V1, create_conversation, make_key, wait_for
from tests.test_changes import walk
from tests.test_stream_kills import Follower, Writer
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from tests.faults.site import Site

WRITERS = 4
FOLLOWERS = 2
PATIENCE_S = 20
SILENT_S = 3
"""A stream that brings nothing for so long, while nothing is recorded, has come to its end."""


def follow_through_kills(site: Site, kills: int = 1, between: int = 100) -> Entry:
    """Streams that are resumed from the last event, over so many kills, ``between`` messages apart."""
    server = site.start()
    key = make_key(server.url, "feed", permissions=PERMISSIONS)
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'one')}/messages"
    writers = [Writer(server, key, path) for _ in range(WRITERS)]
    followers = [Follower([server], key) for _ in range(FOLLOWERS)]
    for thread in (*writers, *followers):
        thread.start()
    for _ in range(kills):
        before = sum(len(writer.acknowledged) for writer in writers)
        wait_for(lambda before=before: sum(len(one.acknowledged) for one in writers) > before + between, PATIENCE_S)
        server.kill()
        server.start()
    for writer in writers:
        writer.stop()
    with server.client(key) as client:
        items = [item["id"] for item in walk(client, 1000)]
    for follower in followers:
        _finish(follower, items[-1])
    problems = [problem for follower in followers for problem in _wrong(follower, items)]
    cuts = sum(follower.connections - 1 for follower in followers)
    figures: dict[str, int | float | str] = {"kills": kills, "events": len(items), "cuts": cuts, "wrong": len(problems)}
    invalid = "" if problems or cuts >= kills * FOLLOWERS else "no stream was cut"
    return Entry("E01 streams through kill -9", site.store, figures, tuple(problems), invalid)


def _finish(follower: Follower, last: str) -> None:
    """Let it end with the event ``last``; where it has come to its end without that, with what it has."""
    follower.until = last
    seen = -1
    while follower.is_alive() and seen != len(follower.ids):
        seen = len(follower.ids)
        follower.join(SILENT_S)
    if follower.is_alive():
        follower.until = follower.ids[-1]
        follower.join(PATIENCE_S)


def _wrong(follower: Follower, items: list[str]) -> list[str]:
    seen = list(follower.ids)
    missed, repeated = len(set(items) - set(seen)), len(seen) - len(set(seen))
    problems = [f"skipped: {missed} events"] if missed else []
    problems += [f"repeated: {repeated} events"] if repeated else []
    return problems or ([] if seen == items else ["reordered: the events came in another order"])
