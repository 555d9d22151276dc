"""The change feed as a stream: history, then live, without a gap or a repeat; how it ends and how it is resumed."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V1, Key, Server, create_conversation, message, run_cli, wait_for
from tests.sse import CHANGES, Stream
from tests.stores import rows
from tests.test_changes import ALL, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx


@pytest.fixture
def place(start: Callable[..., Server]) -> tuple[Server, Key]:
    """A server whose streams comment often, and a key for everything."""
    server = start(environment={"TURNLOG_STREAM_COMMENT_S": "0.2"})
    key = server.create_key("feed", *ALL)
    with server.client(key):  # it is known by now
        return server, key


def _send(client: httpx.Client, conversation_id: str, texts: list[str]) -> None:
    body = {"messages": [message(text) for text in texts]}
    client.post(f"{V1}/conversations/{conversation_id}/messages/batch", json=body).raise_for_status()


@contextmanager
def _writing(client: httpx.Client, conversation_id: str, count: int) -> Iterator[None]:
    """Meanwhile ``count`` messages are recorded, one by one."""

    def write() -> None:
        for number in range(count):
            _send(client, conversation_id, [f"live {number}"])

    writing = threading.Thread(target=write)
    writing.start()
    yield
    writing.join()


def test_from_history_to_live_without_a_gap_or_a_repeat(place: tuple[Server, Key]) -> None:
    server, key = place
    with server.client(key) as client:
        conversation_id = create_conversation(client, "one")
        for batch in range(5):
            _send(client, conversation_id, [f"old {batch}-{n}" for n in range(100)])
        with _writing(client, conversation_id, 200), Stream(server, key) as stream:
            assert stream.answer.status == 200
            assert stream.answer.headers["content-type"] == "text/event-stream"
            events = stream.take(701)
        items = walk(client, 1000)
        assert [event.data for event in events] == items
        assert [event.id for event in events] == [item["id"] for item in items]
        assert [event.type for event in events] == [item["type"] for item in items]
        assert stream.retry_ms is not None


def test_it_goes_on_behind_the_last_event_id_whatever_the_query_says(place: tuple[Server, Key]) -> None:
    server, key = place
    with server.client(key) as client:
        _send(client, create_conversation(client, "one"), [str(n) for n in range(20)])
        with Stream(server, key) as stream:
            first = stream.take(8)
        with Stream(server, key, "after=now", last_id=first[-1].id) as stream:
            rest = stream.take(13)
        assert [event.data for event in first + rest] == walk(client)


def test_a_stream_that_saw_nothing_yet_can_be_resumed_too(place: tuple[Server, Key]) -> None:
    """Its place comes before any event does."""
    server, key = place
    with server.client(key) as client:
        conversation_id = create_conversation(client, "one")
        with Stream(server, key, "after=now") as stream:
            next(iter(stream.answer), None)
            next(iter(stream.answer), None)
            for raw in stream.answer:
                if raw == b"\n":
                    break
            with Stream(server, key, "after=now") as other:
                wait_for(lambda: _comment(other))
                begun_at = other.last_id
        _send(client, conversation_id, ["missed"])
        with Stream(server, key, last_id=begun_at) as stream:
            assert [event.data["message"]["text"] for event in stream.take(1)] == ["missed"]


def _comment(stream: Stream) -> bool:
    """Read on to the next comment."""
    seen = stream.comments
    for raw in stream.answer:
        line = raw.decode().rstrip("\n")
        if line.startswith("id: "):
            stream.last_id = line[4:]
        if line.startswith(":"):
            stream.comments += 1
        if not line and stream.comments > seen:
            return True
    return False


def test_silence_is_broken_by_comments_that_carry_the_place(place: tuple[Server, Key]) -> None:
    """Also where a filter lets nothing through: the next connection need not look through all of it again."""
    server, key = place
    with server.client(key) as client, Stream(server, key, "types=conversation.updated") as stream:
        _send(client, create_conversation(client, "one"), ["a", "b"])
        end = client.get(CHANGES, params={"after": "now"}).json()["nextCursor"]
        for _ in range(50):
            assert _comment(stream)
            if stream.last_id == end:
                return
        pytest.fail("the place did not move")


def test_filters_hold_for_streams(place: tuple[Server, Key]) -> None:
    server, key = place
    with server.client(key) as client:
        one, two = create_conversation(client, "one"), create_conversation(client, "two")
        with Stream(server, key, "externalId=two&types=message.created") as stream:
            for number in range(10):
                _send(client, one, [f"one {number}"])
                _send(client, two, [f"two {number}"])
            assert [event.data["message"]["text"] for event in stream.take(10)] == [f"two {n}" for n in range(10)]


@pytest.mark.parametrize("how", ["revoked", "rotated"])
def test_the_stream_of_a_key_that_ends_is_ended(place: tuple[Server, Key], how: str) -> None:
    """A05."""
    server, key = place
    with Stream(server, key, "after=now", timeout_s=5) as stream:
        command = ("revoke", key.id) if how == "revoked" else ("rotate", key.id, "--grace", "0s")
        done = run_cli("keys", *command, "--store", server.url)
        assert done.returncode == 0, done.stderr
        assert list(stream.events()) == []
        assert stream.whole


def test_a_server_that_stops_ends_its_streams_and_says_when_to_come_again(place: tuple[Server, Key]) -> None:
    """C06."""
    server, key = place
    ended: list[Any] = []
    with Stream(server, key, "after=now") as stream:
        reading = threading.Thread(target=lambda: ended.extend(stream.events()))
        reading.start()
        wait_for(lambda: stream.retry_ms is not None)
        stream.retry_ms = None
        assert server.stop() == 0
        reading.join(5)
        assert stream.whole
        assert stream.retry_ms is not None


def test_a_slow_reader_is_cut_and_finds_the_rest_later(start: Callable[..., Server]) -> None:
    """E02: nothing is kept for it but what the kernel has."""
    server = start(environment={"TURNLOG_WRITE_TIMEOUT_S": "0.5"})
    key = server.create_key("feed", *ALL)
    with server.client(key) as client:
        conversation_id = create_conversation(client, "one")
        for number in range(20):
            _send(client, conversation_id, [f"{number}-{n} {'x' * 3000}" for n in range(300)])
        with Stream(server, key) as stream:
            first = stream.take(1)
            open_streams = "turnlog_open_streams 0.0"
            wait_for(lambda: open_streams in client.get("/metrics").text)  # it was cut: it takes nothing
            found = first + list(stream.events())
            assert not stream.whole
        assert len(found) < 6001
        while len(found) < 6001:
            with Stream(server, key, last_id=found[-1].id) as stream:
                found += stream.take(6001 - len(found))  # fewer where this machine is so slow that it is cut again
        assert [event.id for event in found] == [item["id"] for item in walk(client, 1000)]


def test_a_stream_whose_reader_takes_nothing_ends_with_its_key_too(place: tuple[Server, Key]) -> None:
    """And what is kept for such a reader is little: not the megabytes that wait for it in the log."""
    server, key = place
    leaving = server.create_key("leaving", "--permission", "feed")
    with server.client(key) as client, server.client(leaving):
        conversation_id = create_conversation(client, "one")
        for _ in range(20):
            _send(client, conversation_id, ["\u0001" * 50_000] * 10)
        before = _rss_mb(server)
        with ExitStack() as streams:
            for _ in range(30):
                streams.enter_context(Stream(server, leaving))
            wait_for(lambda: _open_streams(client) == 30)
            assert _rss_mb(server) < before + 60
            run_cli("keys", "revoke", leaving.id, "--store", server.url)
            wait_for(lambda: _open_streams(client) == 0)


def _open_streams(client: httpx.Client) -> float:
    line = next(line for line in client.get("/metrics").text.splitlines() if line.startswith("turnlog_open_streams "))
    return float(line.split()[1])


def _rss_mb(server: Server) -> float:
    status = Path(f"/proc/{server.worker_pid}/status").read_text("ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@pytest.mark.postgresql_only("nobody changes an SQLite file under its server")
def test_a_stream_ends_where_the_log_was_put_back_and_the_next_one_is_told(place: tuple[Server, Key]) -> None:
    """As by a restore, or by a standby that took over without the newest: never silence, never another's place."""
    server, key = place
    with server.client(key) as client:
        _send(client, create_conversation(client, "one"), ["kept", "lost"])
        with Stream(server, key) as stream:
            events = stream.take(3)
            rows(server.url, "DELETE FROM message WHERE text = 'lost'")
            rows(server.url, "UPDATE log SET position = position - 1")
            assert list(stream.events()) == []
            assert stream.whole
        with Stream(server, key, last_id=events[-1].id) as stream:
            assert stream.answer.status == 410
        with Stream(server, key, last_id=events[-2].id) as stream:
            assert stream.answer.status == 200


def test_more_streams_than_allowed_are_refused(start: Callable[..., Server]) -> None:
    server = start(environment={"TURNLOG_MAX_STREAMS": "1"})
    key = server.create_key("feed", *ALL)
    with server.client(key), Stream(server, key) as first, Stream(server, key) as second:
        assert (first.answer.status, second.answer.status) == (200, 503)
