"""L01, L02: one line of JSON for each event, whatever is in it; and that a leak would be found."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

import httpx
import pytest

from tests.canary import Canary, canary
from tests.harness import Server, clean_environment, message
from turnlog.metrics import Metrics

LOGGING = """
import logging, sys
import structlog
from turnlog import logs

class Odd:
    def __repr__(self):
        return "\\x9b31m\\r\\n" + "r" * 1_000_000

logs.configure("debug", lambda: "now", sys.stdout)
log = structlog.get_logger()
hostile = eval(sys.stdin.read())
for value in hostile:
    log.info("hostile", value=value, inside=[value], named={"name": value}, **{str(value)[:50]: 1})
    log.info("hostile", value=Odd(), other=10**400, raw=str(value).encode("utf-8", "replace"))
    logging.getLogger("library").error("said %s", value)
    try:
        raise ValueError(value)
    except ValueError:
        log.exception("hostile", value=value)
        logging.getLogger("library").exception(str(value))
"""
HOSTILE = (
    'a\r\n{"event":"forged"}', "a\n\n{}", "\x1b[2J\x1b]0;owned\x07", "\x9b31m", "\u2028{}\u2029", "\u202egnp.exe",
    "\x85", "\x00", "\udcff\ud800", "x" * 1_000_000, "\n" * 1_000_000, '"}\\', "\x7f\b\b\b", "\u200b\ufeff",
    "☃" * 500_000, "%s %d {} {event}",
)  # fmt: skip


def test_whatever_is_logged_is_one_line_of_json() -> None:
    """L01: CR, LF, escapes, what turns text around, lone surrogates, a megabyte, in values, names and exceptions."""
    done = subprocess.run(
        [sys.executable, "-c", LOGGING], input=ascii(HOSTILE), capture_output=True, text=True,
        env=clean_environment(), timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.removesuffix("\n").split("\n")
    assert len(lines) == 5 * len(HOSTILE)
    for line in lines:
        event = json.loads(line)
        assert {"time", "level", "event"} <= set(event)
        assert event["event"] == "hostile" or event.get("level") == "error"
        assert line.isprintable()
        assert len(line) < 150_000


@pytest.mark.parametrize("mark", ["Hello!", "turnlog_sk_", "whsec_MfKQ9r8G"])
def test_a_leak_is_found(mark: str) -> None:
    """In a line of the log, and in an error; not where it belongs."""
    own = Canary()
    own.look(f'{{"event":"request","why":"no such text: {mark}abc"}}', "a log")
    request = httpx.Request("GET", "http://localhost/x")
    own.look_at_error(httpx.Response(400, text=f"{mark}abc", request=request))
    own.look_at_error(httpx.Response(200, text=f"{mark}abc", request=request))
    own.look("nothing", "a log")
    assert [leak.partition(":")[0] for leak in own.leaks] == ["a log", "the 400 of GET /x"]


def test_what_servers_say_is_looked_through(server: Server, client: httpx.Client) -> None:
    """The suite's messages carry the mark, its servers' logs and errors are looked at."""
    own = Canary()
    for text in (message()["text"], client.headers["asapp-api-secret"]):
        own.look(text, "a caller")
    assert len(own.leaks) == 2
    before = canary.looked_through
    assert client.get("/nowhere").status_code == 404
    assert canary.looked_through > before
    assert server.log_lines


def test_webhooks_that_come_and_go_do_not_make_the_metrics_grow_without_end() -> None:
    """L01: a label of every webhook that ever was would be a caller's to fill."""
    metrics = Metrics()
    for number in range(20_000):
        metrics.attempt(f"W{number}", "failed")
    told = asyncio.run(metrics.expose(None)).decode()
    lines = [line for line in told.splitlines() if line.startswith("turnlog_webhook_attempts_total{")]
    assert len(lines) < 2000
    assert sum(float(line.rpartition(" ")[2]) for line in lines) == 20_000
