"""Callers retry as published clients do; and the checker, which has to be seen failing, or its silence says nothing."""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING

import pytest

from tests.faults.checker import KINDS, count
from tests.faults.load import Backoff, Clients
from tests.history import Request, check, falling_ids

if TYPE_CHECKING:
    from collections.abc import Sequence

QUICK = Backoff(attempts=4, first_s=0.001, most_s=0.001)
OK = (200, {"id": "M1"})


def _refusal(code: str) -> tuple[int, object]:
    return int(code[:3]), {"error": {"code": code}}


async def _against(said: Sequence[tuple[int, object] | None], key: str | None) -> tuple[Request, Clients, list[bytes]]:
    """One request to a server that answers so, attempt by attempt; ``None`` is a connection that breaks."""
    answers, heads = list(said), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            heads.append(head)
            answer = answers.pop(0)
            if answer is None:
                break
            body = json.dumps(answer[1]).encode()
            writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n%s" % (answer[0], len(body), body))
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    load = Clients(server.sockets[0].getsockname()[1], {}, ["C"], 1, backoff=QUICK)
    request = Request(0, "C", ("a",), key)
    caller = load._caller()
    await load._settle(0, caller, random.Random(1), request)  # noqa: S311
    await caller.close()
    server.close()
    return request, load, heads


@pytest.mark.parametrize(
    ("said", "key", "outcome"),
    [
        ([OK], None, "acknowledged"),
        ([_refusal("429-01"), _refusal("503-01"), OK], None, "acknowledged"),
        ([_refusal("503-01")] * 4, None, "refused"),
        ([_refusal("400-03")], "k", "refused"),
        ([None], None, "unknown"),
        ([_refusal("503-02")], None, "unknown"),
        ([_refusal("503-01"), None], None, "unknown"),
        ([None, _refusal("503-02"), OK], "k", "acknowledged"),
        ([None, _refusal("503-01"), _refusal("503-01"), _refusal("503-01")], "k", "unknown"),
    ],
)
def test_a_request_is_sent_again_until_it_is_known_and_never_at_the_risk_of_two(
    said: list[tuple[int, object] | None], key: str | None, outcome: str
) -> None:
    """Each answer is used up: it is sent as often as that, always with its key, and no more often."""
    request, load, heads = asyncio.run(_against(said, key))
    assert (request.outcome, request.attempts, len(heads)) == (outcome, len(said), len(said))
    assert {b"idempotency-key: k" in head for head in heads} == {key is not None}
    assert load.messages == (outcome == "acknowledged")
    assert load.unknown == (outcome == "unknown")


def test_pauses_are_jittered_grow_and_keep_to_what_was_asked_for() -> None:
    chance = random.Random(1)  # noqa: S311
    backoff = Backoff(attempts=5, first_s=0.25, most_s=1.0)
    for attempt, most in ((1, 0.25), (2, 0.5), (3, 1.0), (4, 1.0)):
        pauses = [backoff.pause_s(attempt, chance, 0) for _ in range(200)]
        assert 0 <= min(pauses) < most * 0.1
        assert most * 0.9 < max(pauses) <= most
    assert min(backoff.pause_s(1, chance, 2.0) for _ in range(10)) == 2.0


def test_ids_that_change_are_caught() -> None:
    request = Request(1, "C", ("a",), "k", "acknowledged", ("1",), later=[("1",), ("2",)])
    assert check([request], {"C": [("1", "a")]}) == ["changed ids: ('1',), sent again ('2',)"]


def test_ids_that_fall_are_caught() -> None:
    assert falling_ids({"C": [("1", "a"), ("2", "b")]}) == []
    assert falling_ids({"C": [("2", "a"), ("1", "b")]}) == ["ids fall: 2 is listed before 1 in C"]


def test_every_problem_is_counted_under_one_kind() -> None:
    """One of each that the checker can name."""
    requests = [
        Request(1, "C", ("lost",), None, "acknowledged", ("1",)),
        Request(1, "C", ("twice",), None, "acknowledged", ("2",)),
        Request(1, "C", ("refused",), None, "refused"),
        Request(1, "C", ("changed",), "k", "acknowledged", ("5",)),
    ]
    listed = [("2", "twice"), ("3", "twice"), ("4", "refused"), ("5", "other")]
    found = count(check(requests, {"C": listed}))
    assert found == dict.fromkeys(KINDS, 0) | {
        "lost": 1,
        "duplicated": 1,
        "refused but stored": 1,
        "changed": 1,
        "unexpected": 1,
    }
