"""The benchmark: its report tells what was missed too, its load is what was prepared, the program reads its seed."""

from __future__ import annotations

import contextlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import apsw
import pytest
from bench import load, report, requests, results, seed
from bench.results import Held, LongList, Results, Round

from tests.harness import REPOSITORY, V1, Server, make_key, need

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def rounds(*per_s: float, p99_ms: float = 3.0) -> list[Any]:
    return [Round(int(one), 1.0, 1.0, p99_ms, 5.0, server_cpu_s=0.5, others_share=0.1) for one in per_s]


@pytest.fixture
def found() -> Results:
    """A run in which one message is fast enough on SQLite and its p99 is not, and the list is behind the textbook's."""
    return Results(
        machine={"processor": "2 x one", "memory": "4 GiB", "system": "Linux", "file system": "ext4"},
        versions={"Python": "3.11"},
        rounds_wanted=3,
        seconds=1,
        stored=10_000_000,
        field_bytes=100,
        rounds={
            "empty": {"empty-64": rounds(40_000, 41_000, 39_000)},
            "sqlite": {
                "message-1": rounds(5_000, 4_900, 5_100),
                "message-64": rounds(20_000, 21_000, 19_000, p99_ms=13),
                "half-64": rounds(10_000, 10_100, 9_900),
                "list20-64": rounds(500, 510, 490),
            },
            "sqlite-stored": {"message-64": rounds(19_000, 19_000, 19_000)},
            "textbook-sqlite": {"message-64": rounds(500, 510, 490), "list20-64": rounds(1_000, 1_010, 990)},
            "raw-sqlite": {"raw-1": rounds(6_000, 6_100, 5_900)},
        },
        held={"sqlite": Held(0.4, 50, 90, 1_000_000, 150.0), "sqlite-stored": Held(1.4, 50, 90, 10_000_000, 150.0)},
        long_list=LongList(1_000_000, 10**8, [4.0], [20.0], [5.0], rounds(1_000), rounds(1_000, p99_ms=6)),
    )


def test_the_report_tells_what_was_reached_and_what_was_not(found: Results, tmp_path: Path) -> None:
    """Written of the kept results alone."""
    results.write(found, tmp_path / "results.json")
    report.write(results.read(tmp_path / "results.json"), tmp_path)
    page = (tmp_path / "benchmarks.md").read_text("utf-8")
    assert "| SQLite, one message, 64 connections, of the empty callable | ≥ 0.4 x | 0.5 x | yes |" in page
    assert "| SQLite, one message, 64 connections, p99 at full load | ≤ 12 ms | 13 ms | **no** |" in page
    assert "| PostgreSQL, batches of 300 | ≥ 60,000 messages/s | not in this run | - |" in page
    not_ahead = " ".join(page.partition("## Where Turnlog is not ahead")[2].partition("\n## ")[0].split())
    assert "p99 at full load: 13 ms, at most 12 wanted" in not_ahead
    assert "10 million stored, start to the first 200: 1.4 s, at most 1 wanted" in not_ahead
    assert "behind textbook service, SQLite: record one message" in not_ahead
    assert "list 20, 64 connections: 0.50 of the throughput." in not_ahead
    assert "1 connection: 0.83 of the messages per second of a loop of synced inserts" in not_ahead
    assert "of the empty callable: 0.5" not in not_ahead
    for name in ("single", "latency", "operations", "stored"):
        assert f"](benchmarks/{name}.svg)" in page
        ET.parse(tmp_path / "benchmarks" / f"{name}.svg")  # noqa: S314 - this program's own


def test_the_report_that_is_kept_is_that_of_the_kept_results(tmp_path: Path) -> None:
    """Nothing in docs/benchmarks.md is written by hand."""
    kept = REPOSITORY / "docs" / "benchmarks" / "results.json"
    if not kept.exists():
        pytest.skip("no run is kept")
    report.write(results.read(kept), tmp_path)
    for made in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert (REPOSITORY / "docs" / made.relative_to(tmp_path)).read_bytes() == made.read_bytes()


class Recorder(ThreadingHTTPServer):
    """Answers everything with one status, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self, status: int) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.status = status
        self.asked: list[tuple[str, str, str | None, bytes]] = []


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Recorder

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # wrk leaves when its time is over
            super().handle()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.command, self.path, self.headers.get("asapp-api-id"), body))
        self.send_response(self.server.status)
        self.send_header("content-length", "0")
        self.end_headers()

    do_GET = do_POST = _answer  # noqa: N815 - the name is the library's

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def recorder(status: int) -> Iterator[Recorder]:
    with Recorder(status) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_request_that_fails_ends_the_benchmark(tmp_path: Path) -> None:
    need("wrk")
    (tmp_path / "message").write_bytes(requests.empty())
    with recorder(503) as server, pytest.raises(SystemExit, match=r"message: \d+ of \d+ requests failed"):
        load.measure(f"http://127.0.0.1:{server.server_port}", 2, 1, tmp_path / "message")


def test_the_load_is_what_was_prepared(tmp_path: Path) -> None:
    """Byte for byte, in order, again from the start; with a pause there are fewer of them."""
    need("wrk")
    conversations = [requests.Conversation(f"{V1}/conversations/C{n}/messages", [f"M{n}"]) for n in range(3)]
    (tmp_path / "mixed").write_bytes(requests.prepare({"asapp-api-id": "me"}, conversations, [])["mixed"])
    counts = []
    for pause_ms in (0, 50):
        with recorder(200) as server:
            load.measure(f"http://127.0.0.1:{server.server_port}", 1, 1, tmp_path / "mixed", pause_ms)
            asked = list(server.asked)
        counts.append(len(asked))
    assert 0 < counts[1] < counts[0]
    assert {key for _, _, key, _ in asked} == {"me"}
    expected = list(_mixed(conversations))
    first = expected.index(asked[0][:2] + asked[0][3:])
    assert [one[:2] + one[3:] for one in asked] == [expected[(first + n) % 30] for n in range(len(asked))]


def _mixed(conversations: list[requests.Conversation]) -> Iterator[tuple[str, str, bytes]]:
    for n in range(30):
        if n % 10 < 8:
            yield "POST", conversations[n % 3].path, json.dumps(requests.message(n), ensure_ascii=False).encode()
        else:
            one = conversations[n // 10 % 3]
            yield "GET", f"{one.path}/{one.ids[0]}" if n % 10 == 8 else f"{one.path}?limit=20", b""


def test_a_seeded_store_is_one_that_the_program_reads(tmp_path: Path) -> None:
    """In whole, by the long conversation, by a short one, and by what is recorded next."""
    url = f"sqlite:///{tmp_path / 'seeded.db'}"
    key = make_key(url, "seeded")
    there = seed.seed(tmp_path / "seeded.db", 100_000)
    with Server(url) as server, server.client(key) as client:
        last = f"{V1}/conversations/{seed.conversation_id(there.conversations)}/messages"
        items = client.get(last).json()["items"]
        assert [item["clientTimestamp"] for item in items] == sorted(item["clientTimestamp"] for item in items)
        assert len(items) == requests.PAGE
        assert client.get(f"{last}/{items[7]['messageId']}").json() == items[7]
        assert len(requests.cursors(client, there.long_id)) == there.long // requests.LONG
        client.post(last, json=requests.message(1)).raise_for_status()
    connection = apsw.Connection(str(tmp_path / "seeded.db"))
    with contextlib.closing(connection):
        assert connection.pragma("integrity_check") == "ok"
        with pytest.raises(SystemExit, match="rows in conversation already"):
            seed.seed(tmp_path / "seeded.db", 100_000)
        connection.execute("ALTER TABLE message ADD COLUMN more TEXT")
    with pytest.raises(SystemExit, match=r"does not know the columns of message: \['more'\]"):
        seed.seed(tmp_path / "seeded.db", 100_000)
