"""Killed at any instant under load, again and again: what was acknowledged is there, once, in order, unchanged."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

import pytest

from tests.harness import V1, Key, Server, conversation, create_conversation, message
from tests.history import Caller, Listings, Load, Request, check, log_problems, read_listings
from tests.stores import rows

if TYPE_CHECKING:
    from collections.abc import Callable

SEED = 20211123
KILLS = 12
CONNECTIONS = 16
CONVERSATIONS = 5


async def _first_answer(load: Load, key: Key, port: int) -> float:
    """Ask until the server answers 200; the clock's reading then."""
    caller = Caller(port, key.headers)
    while True:
        try:
            status, _ = await caller.ask("GET", "/v1/health")
        except (OSError, EOFError):
            continue
        if status == 200:
            break
    load.up.set()
    await caller.close()
    return time.perf_counter()


async def _kill_again_and_again(server: Server, load: Load, key: Key) -> tuple[list[int], list[float]]:
    """The number of requests that each kill left without an answer, and the seconds to the first answer after it."""
    chance = random.Random(SEED)  # noqa: S311 - a repeatable run, not a secret
    cut, restarts = [], []
    load.up.set()
    running = asyncio.create_task(load.run(CONNECTIONS))
    for _ in range(KILLS):
        load.want(chance.randint(200, 1500))
        await asyncio.wait_for(load.acknowledged.wait(), 60)
        await asyncio.sleep(chance.random() * 0.03)  # any instant, not only just after an answer
        broken = load.broken
        load.up.clear()
        killed_at = time.perf_counter()
        server.kill()
        await asyncio.to_thread(server.start)
        restarts.append(await _first_answer(load, key, server.port) - killed_at)
        cut.append(load.broken - broken)
    load.want(100)
    await asyncio.wait_for(load.acknowledged.wait(), 60)
    load.stopping = True
    await asyncio.wait_for(running, 60)
    return cut, restarts


async def _put_conversations(caller: Caller) -> list[str]:
    made = [await caller.ask("POST", f"{V1}/conversations", conversation(f"c{n}")) for n in range(CONVERSATIONS)]
    return [str(answer["id"]) for _, answer in made]


def test_what_was_acknowledged_survives_kill_9_under_load(start: Callable[..., Server]) -> None:
    """INV of the fault list for C01 and C03, and a log without gaps."""
    server = start()
    key = server.create_key("load")
    with server.client(key):
        pass  # waits until the key is known

    async def scenario() -> tuple[Load, list[int], list[float], Listings]:
        caller = Caller(server.port, key.headers)
        conversations = await _put_conversations(caller)
        await caller.close()
        load = Load(server.port, key.headers, conversations, SEED)
        cut, restarts = await _kill_again_and_again(server, load, key)
        listings = await read_listings(caller, conversations, page=1000)
        await caller.close()
        return load, cut, restarts, listings

    load, cut, restarts, listings = asyncio.run(scenario())
    history = load.history
    print(  # noqa: T201 - the figures of the run
        f"\n{history.count('acknowledged')} acknowledged, {history.count('refused')} refused, "
        f"{history.count('unknown')} unknown; requests cut by each kill: {cut}; "
        f"kill to first 200: median {sorted(restarts)[len(restarts) // 2]:.2f} s, worst {max(restarts):.2f} s"
    )
    retried = [r for r in history.requests if r.key is not None and r.attempts > 1 and r.outcome == "acknowledged"]
    assert history.count("acknowledged"), "invalid run: nothing was acknowledged"
    assert history.count("refused"), "invalid run: nothing was refused"
    # While this process was kept waiting, all may have had their answers: such a kill proves nothing, the others do.
    assert sum(map(bool, cut)) > KILLS / 2, f"invalid run: most kills hit no busy moment: {cut}"
    assert retried, "invalid run: no keyed request was retried"
    assert set(load.statuses) <= {200, 400}, load.statuses
    assert check(history.requests, listings) == []
    assert max(restarts) < 10
    assert server.stop() == 0
    assert log_problems(server.url) == []


@pytest.mark.parametrize("batch", [False, True], ids=["one", "batch"])
def test_a_keyed_retry_that_is_the_first_write_after_a_kill_gets_the_first_id(
    start: Callable[..., Server],
    *,
    batch: bool,
) -> None:
    """C03: the answer was lost with the process; nothing else warms the new one up before the retry."""
    server = start()
    key = server.create_key("tests")
    body = {"messages": [message("a"), message("b")]} if batch else message()
    with server.client(key) as client:
        conversation_id = create_conversation(client, "c")
        path = f"{V1}/conversations/{conversation_id}/messages"
        first = client.post(path + "/batch" * batch, json=body, headers={"idempotency-key": "k"})
    server.kill()
    server.start()
    with server.client(key) as client:
        again = client.post(path + "/batch" * batch, json=body, headers={"idempotency-key": "k"})
        assert (again.status_code, again.json()) == (200, first.json())
        assert len(client.get(path).json()["items"]) == (2 if batch else 1)
        other = client.post(path, json=message("another"), headers={"idempotency-key": "k"})
        assert other.json()["error"]["code"] == "422-02"


# The checker has to be seen failing, or its silence says nothing.


def _history() -> list[Request]:
    return [
        Request(1, "C", ("a",), None, "acknowledged", ("1",)),
        Request(1, "C", ("b", "c"), "k", "acknowledged", ("2", "3")),
        Request(2, "C", ("d",), None, "refused"),
        Request(2, "C", ("e", "f"), None, "unknown"),
    ]


GOOD = [("1", "a"), ("4", "e"), ("5", "f"), ("2", "b"), ("3", "c")]


def test_the_checker_accepts_what_is_allowed() -> None:
    assert check(_history(), {"C": GOOD}) == []
    assert check(_history(), {"C": [item for item in GOOD if item[1] not in "ef"]}) == []


@pytest.mark.parametrize(
    ("listed", "problem"),
    [
        (GOOD[1:], "lost: 'a'"),
        ([*GOOD, ("6", "a")], "duplicated: 'a' 2 times"),
        ([*GOOD, ("1", "a")], "recorded twice: the id 1"),
        ([("1", "A"), *GOOD[1:]], "changed: 1 was 'a' and is 'A'"),
        ([("9", "a"), *GOOD[1:]], "lost: 'a', acknowledged as 1"),
        ([GOOD[3], *GOOD[:3], GOOD[4]], "reordered: 'b' was sent after 'a'"),
        ([*GOOD[:3], GOOD[4], GOOD[3]], "reordered: 'c' was sent after 'b'"),
        ([*GOOD, ("6", "d")], "refused and recorded: 'd'"),
        ([item for item in GOOD if item[1] != "f"], "half a batch"),
        ([*GOOD, ("6", "x")], "never sent: 'x'"),
    ],
)
def test_the_checker_catches(listed: list[tuple[str, str]], problem: str) -> None:
    assert any(found.startswith(problem) for found in check(_history(), {"C": listed})), problem


def test_the_checker_catches_a_message_in_the_wrong_conversation() -> None:
    assert check(_history(), {"C": GOOD[1:], "D": GOOD[:1]})


def test_the_log_check_catches_a_gap(start: Callable[..., Server]) -> None:
    """The same store, with a row taken out behind the server's back."""
    server = start()
    with server.client(server.create_key("tests")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert {client.post(path, json=message()).status_code for _ in range(3)} == {200}
    assert server.stop() == 0
    assert log_problems(server.url) == []
    rows(server.url, "DELETE FROM message WHERE id = (SELECT id FROM message ORDER BY id LIMIT 1 OFFSET 1)")
    assert log_problems(server.url)
