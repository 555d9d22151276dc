"""T01: the wall clock of a running server is set back an hour and on a year; its monotonic clock goes on."""

from __future__ import annotations

import tempfile
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from tests.faults.ledger import Entry
from tests.harness import V1, complain, create_conversation, message, wait_for
from tests.wire import posting, read

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.faults.site import Site
    from tests.harness import Server

STEPS_S = (-3600, 0, 365 * 86_400, 0)
"""Beside the true time, one after the other: an hour back, a year on, and to the true time again."""
_NEAR_S = 60
"""How far from where it was set the server's clock may be seen."""


def _library() -> Path:
    found = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    return found or complain("libfaketime is not installed")


@contextmanager
def _with_clock(site: Site) -> Iterator[tuple[Server, Path]]:
    """A server, and the file that says how many seconds its wall clock is beside the true time."""
    with tempfile.TemporaryDirectory(prefix="turnlog-clock-") as folder:
        file = Path(folder) / "clock"
        file.write_text("+0", "ascii")
        server = site.start(
            LD_PRELOAD=str(_library()),
            FAKETIME_TIMESTAMP_FILE=str(file),
            FAKETIME_CACHE_DURATION="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
            TURNLOG_BODY_TIMEOUT_S="300",
            TURNLOG_HEADER_TIMEOUT_S="300",
        )
        yield server, file


def clock_steps(site: Site, messages: int = 50) -> Entry:
    """So many messages at each time; one request is under way, and one connection idle, through all of it."""
    with _with_clock(site) as (server, file):
        key = server.create_key("clocks")
        with server.client(key) as client, server.connection() as slow, server.connection() as idle:
            path = f"{V1}/conversations/{create_conversation(client, 'clocks')}/messages"
            sent = _record(client, path, "at first", messages)
            keyed = _keyed(client, path)
            body = b'{"text":"slow","sender":{"role":"agent","externalId":"a"},"timestamp":"2021-11-23T12:13:14.555Z"}'
            slow.sendall(posting(server, key, path, b"Connection: close", length=len(body)) + body[:20])
            problems, again = [], {}
            for step in STEPS_S:
                file.write_text(f"{step:+}", "ascii")
                wait_for(lambda step=step: abs(_seen_by(client) - step) < _NEAR_S)
                sent += _record(client, path, f"{step:+} s", messages)
                again[step] = _keyed(client, path) == keyed
            slow.sendall(body[20:])
            if not read(slow).startswith(b"HTTP/1.1 200 "):
                problems.append("a request under way did not outlive the steps")
            idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if not read(idle).startswith(b"HTTP/1.1 200 "):
                problems.append("an idle connection did not outlive the steps")
            listed = client.get(path).json()["items"]
    problems += _wrong(sent, listed)
    if not again[-3600]:
        problems.append("a retry with its key was recorded again behind a step back")
    steps = [_time(item) for item in listed]
    figures: dict[str, int | float | str] = {
        "messages": len(sent),
        "steps": len(STEPS_S),
        "createdTimestamp falls": sum(after < before for before, after in pairwise(steps)),
        "key good a year on": str(again[STEPS_S[2]]),
    }
    return Entry("T01 clock steps", site.store, figures, tuple(problems))


def _record(client: httpx.Client, path: str, when: str, count: int) -> list[tuple[str, str]]:
    texts = [f"{when}, {n}" for n in range(count)]
    answers = [client.post(path, json=message(text)).raise_for_status().json() for text in texts]
    return [(answer["id"], text) for answer, text in zip(answers, texts, strict=True)]


def _keyed(client: httpx.Client, path: str) -> str:
    answer = client.post(path, json=message("keyed"), headers={"idempotency-key": "one"})
    return str(answer.raise_for_status().json()["id"])


def _seen_by(client: httpx.Client) -> float:
    """How many seconds the server's wall clock is beside ours: the date of its answers says."""
    told = client.get("/livez").headers["date"]
    return (datetime.strptime(told, "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC) - _now()).total_seconds()


def _now() -> datetime:
    return datetime.now(UTC)


def _time(item: dict[str, str]) -> datetime:
    return datetime.fromisoformat(item["createdTimestamp"])


def _wrong(sent: list[tuple[str, str]], listed: list[dict[str, str]]) -> list[str]:
    """Ids rise in the order of arrival, and the listing, all of one timestamp, is in that order."""
    problems = []
    ids = [one_id for one_id, _ in sent]
    if ids != sorted(set(ids)):
        problems.append("ids do not rise in the order of arrival")
    texts = {text for _, text in sent}
    if [(item["messageId"], item["text"]) for item in listed if item["text"] in texts] != sent:
        problems.append("the listing is not in the order of arrival")
    return problems
