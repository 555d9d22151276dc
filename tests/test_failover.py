"""The primary dies under load, a synchronous standby is promoted, and nobody restarts Turnlog."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from tests.failover import run
from tests.harness import Server, wait_for
from tests.history import log_problems

if TYPE_CHECKING:
    from tests.postgres import Cluster


def _either(first: Cluster, second: Cluster, database: str) -> str:
    """The URL of a database that one of two servers has for writing."""
    addresses = [f"127.0.0.1:{cluster.port}" for cluster in (first, second)]
    url = first.url(database, target_session_attrs="read-write")
    return url.replace(addresses[0], ",".join(addresses))


def _said(server: Server, event: str) -> int:
    return sum(line["event"] == event for line in server.log)


@pytest.mark.postgresql_only("a standby is what only PostgreSQL has")
@pytest.mark.parametrize("course", ["killed, promoted at once", "killed, promoted late", "frozen"])
def test_a_standby_takes_over_under_load(cluster: Cluster, course: str) -> None:
    """No acknowledged message lost, none twice for a keyed retry, and both servers record again by themselves."""
    database = cluster.create_database().rpartition("/")[2]
    standby = cluster.standby()
    url = _either(cluster, standby, database)
    with Server(url) as first, Server(url) as second:
        servers = (first, second)
        key = first.create_key("load")
        for server in servers:
            with server.client(key):
                pass  # waits until the key is known

        def fail() -> float:
            cluster.freeze() if course == "frozen" else cluster.kill()
            dead_at = time.perf_counter()
            if course == "killed, promoted late":  # when callers have been told that the outcome is unknown
                wait_for(lambda: all(_said(server, "outcome_unknown") for server in servers))
            standby.promote()
            return dead_at

        figures = asyncio.run(run(servers, key, fail))
        assert [server.stop() for server in servers] == [0, 0]
        resolved = sum(_said(server, "outcome_resolved") for server in servers)
    print(  # noqa: T201 - the figures of the run
        f"\n{course}: {figures.acknowledged} messages acknowledged, {figures.lost} lost, {figures.duplicated} twice; "
        f"{figures.all_s[0]:.2f} s to a write on both servers; {figures.retried} requests sent again, "
        f"{resolved} batches resolved; {dict(figures.codes)}"
    )
    assert figures.problems == []
    assert log_problems(standby.url(database)) == []
    doubted = figures.codes["503-02"]  # also of requests without a key, which are not sent again
    assert figures.retried or resolved or doubted, "invalid run: the failure hit no busy moment"
    assert {code for code in figures.codes if code[0] == "5"} <= {"503-01", "503-02"}
