"""``turnlog tail``: the log in a terminal and in a pipe, of a store and through a server, resumed without a gap."""

from __future__ import annotations

import json
import subprocess
import threading
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import TURNLOG, V1, Key, Server, clean_environment, create_conversation, message, run_cli, wait_for
from tests.stores import rows
from tests.tailing import Tail, over, send
from tests.test_changes import ALL, walk
from turnlog.following.protocol import Event, Wanted
from turnlog.following.server import follow_server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import httpx

    from tests.postgres import Cluster


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture
def key(server: Server) -> Key:
    return server.create_key("feed", *ALL)


@pytest.fixture
def client(server: Server, key: Key) -> Iterator[httpx.Client]:
    with server.client(key) as found:
        yield found


def _begun(tail: Tail, client: httpx.Client, conversation_id: str, count: int) -> None:
    """Record messages until the first one has come through: from then on it follows."""

    def came() -> bool:
        send(client, conversation_id, "begin")
        return len(tail.out) > count

    wait_for(came)


@pytest.mark.parametrize("through", ["store", "url"])
def test_history_then_live_each_event_a_line_as_the_feed_has_it(
    server: Server, key: Key, client: httpx.Client, through: str
) -> None:
    conversation_id = create_conversation(client, "one", metadata={"mood": "good\n\u001b[2J"})
    send(client, conversation_id, *(f"old {n} \u00e9\u20ac\U0001f600" for n in range(230)))
    where, environment = over(server, key) if through == "url" else (("--store", server.url), {})
    with Tail(*where, "--after", "beginning", "--json", **environment) as tail:
        wait_for(lambda: len(tail.out) == 231)
        send(client, conversation_id, *(f"live {n}" for n in range(20)))
        create_conversation(client, "one", metadata={"mood": "better"})
        wait_for(lambda: len(tail.out) == 252)
        assert tail.interrupt() == 130
    assert tail.items == walk(client, 1000)
    page = client.get("/turnlog/v1/changes", params={"limit": 1000}).content.decode()
    assert page.startswith('{"items":[' + ",".join(tail.out) + "]")
    assert tail.err == []


@pytest.mark.parametrize("through", ["store", "url"])
def test_it_goes_on_behind_any_cursor_and_says_which_one_is_next(
    server: Server, key: Key, client: httpx.Client, through: str
) -> None:
    where, environment = over(server, key) if through == "url" else (("--store", server.url), {})
    send(client, create_conversation(client, "one"), *"abcdef")
    whole = walk(client)
    for index in (0, 3, 6):
        done = run_cli("tail", *where, "--no-follow", "--json", "--after", whole[index]["id"], **environment)
        assert [json.loads(line) for line in done.stdout.splitlines()] == whole[index + 1 :]
        assert (done.returncode, done.stderr) == (0, "")
    done = run_cli("tail", *where, "--no-follow", "--after", "beginning", **environment)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 7
    cursor = done.stderr.strip().rpartition("--after ")[2]
    assert cursor == whole[-1]["id"]
    send(client, create_conversation(client, "two"), "g")
    done = run_cli("tail", *where, "--no-follow", "--json", "--after", cursor, **environment)
    assert [json.loads(line) for line in done.stdout.splitlines()] == walk(client)[7:]
    done = run_cli("tail", *where, "--no-follow", "--after", "now", **environment)
    assert (done.returncode, done.stdout) == (0, "")


def test_it_begins_with_the_last_ones_of_what_is_wanted(server: Server, client: httpx.Client) -> None:
    rare = create_conversation(client, "rare")
    send(client, rare, "r1", "r2", "r3")
    often = create_conversation(client, "often")
    for _ in range(2):
        body = {"messages": [message(str(n)) for n in range(300)]}
        client.post(f"{V1}/conversations/{often}/messages/batch", json=body).raise_for_status()
    whole = walk(client, 1000)

    def shown(*arguments: str) -> list[dict[str, Any]]:
        done = run_cli("tail", "--store", server.url, "--no-follow", "--json", *arguments)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    of_rare = [item for item in whole if item["externalId"] == "rare"]
    assert shown() == whole[-10:]
    assert shown("-n", "0") == []
    assert shown("-n", "9999") == whole
    assert shown("-n", "2", "--external-id", "rare") == of_rare[-2:]
    assert shown("--conversation-id", rare) == of_rare
    assert shown("-n", "1", "--types", "conversation.created,conversation.updated") == [whole[4]]
    assert shown("-n", "2", "--types", "message.created", "--external-id", "rare") == of_rare[-2:]
    assert shown("--external-id", "nobody") == []


@pytest.mark.parametrize("through", ["store", "url"])
def test_filters_hold_while_it_follows(server: Server, key: Key, client: httpx.Client, through: str) -> None:
    where, environment = over(server, key) if through == "url" else (("--store", server.url), {})
    one, two = create_conversation(client, "one"), create_conversation(client, "two & more")
    wanted = ("--types", "message.created", "--external-id", "two & more", "--after", "beginning", "--json")
    with Tail(*where, *wanted, **environment) as tail:
        for number in range(5):
            send(client, one, f"one {number}")
            send(client, two, f"two {number}")
        wait_for(lambda: len(tail.out) == 5)
    assert [item["message"]["text"] for item in tail.items] == [f"two {number}" for number in range(5)]


def test_a_store_is_followed_without_a_server_and_through_its_restart(
    server: Server, key: Key, client: httpx.Client
) -> None:
    conversation_id = create_conversation(client, "one")
    server.stop()
    with Tail("--store", server.url, "--json") as tail:
        wait_for(lambda: len(tail.out) == 1)
        for text in "ab":
            server.start()
            with server.client(key) as again:
                send(again, conversation_id, text)
            server.kill()
        wait_for(lambda: len(tail.out) == 3)
        assert tail.process.poll() is None
    server.start()
    with server.client(key) as again:
        assert tail.items == walk(again)


def test_a_server_that_is_killed_and_restarted_is_followed_without_a_gap_or_a_repeat(
    server: Server, key: Key, client: httpx.Client
) -> None:
    where, environment = over(server, key)
    conversation_id = create_conversation(client, "one")
    with Tail(*where, "--json", **environment) as tail:
        _begun(tail, client, conversation_id, 0)
        for round_number in range(3):
            said = len(tail.err)
            (server.kill, server.stop, server.kill)[round_number]()
            wait_for(lambda said=said: len(tail.err) > said)
            server.start()
            with server.client(key) as again:
                send(again, conversation_id, *(f"{round_number}-{n}" for n in range(30)))
                wait_for(lambda again=again: tail.items[-1:] == walk(again, 1000)[-1:], 20)
        assert tail.process.poll() is None
    server_items = _items(server, key)
    first = next(index for index, item in enumerate(server_items) if item["id"] == tail.items[0]["id"])
    assert tail.items == server_items[first:]
    assert sum("disconnected from" in line for line in tail.err) == 3
    assert sum("connected again" in line for line in tail.err) == 3


def _items(server: Server, key: Key) -> list[dict[str, Any]]:
    with server.client(key) as client:
        return walk(client, 1000)


def test_it_ends_with_an_error_where_trying_again_would_not_help(
    server: Server, key: Key, client: httpx.Client
) -> None:
    send(client, create_conversation(client, "one"), "a")
    where, environment = over(server, key)
    plain = server.create_key("plain")
    with server.client(plain):
        pass
    credentials: dict[str, Any] = {"TURNLOG_API_ID": plain.id, "TURNLOG_API_SECRET": plain.secret}
    for arguments, given, part in (
        (where, environment | {"TURNLOG_API_SECRET": "wrong"}, "refuses the key"),
        ((*where, "--no-follow"), environment | {"TURNLOG_API_SECRET": "wrong"}, "refuses the key"),
        (where, credentials, "feed"),
        ((*where, "--after", "nonsense"), environment, "400"),
        ((*where, "--after", "nonsense", "--no-follow"), environment, "400"),
        (("--url", "http://127.0.0.1:1"), environment, "cannot reach http://127.0.0.1:1"),
        (where, {}, "TURNLOG_API_ID"),
        (("--store", server.url, "--after", "nonsense"), {}, "--after"),
        (("--store", server.url, "--account", "nobody"), {}, "no account 'nobody'"),
        (("--store", "sqlite:////nowhere/turnlog.db"), {}, "/nowhere"),
    ):
        done = run_cli("tail", *arguments, **given)
        assert (done.returncode, done.stdout) == (1, ""), (arguments, done)
        assert part in done.stderr
        assert done.stderr.startswith("turnlog: ")
        assert "Traceback" not in done.stderr


def test_a_place_that_is_not_kept_is_an_error_of_its_own(server: Server, key: Key, client: httpx.Client) -> None:
    """410-01, of a store and through its server."""
    send(client, create_conversation(client, "one"), "a", "b")
    gone = walk(client)[0]["id"]
    rows(server.url, "DELETE FROM conversation_change")
    rows(server.url, "DELETE FROM message WHERE text = 'a'")
    where, environment = over(server, key)
    for place, given in ((("--store", server.url), {}), (where, environment)):
        done = run_cli("tail", *place, "--after", gone, **given)
        assert (done.returncode, done.stdout) == (1, "")
        assert "not kept any more" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--url", "http://127.0.0.1:1", "--store", "sqlite:///x.db"),
        ("--url", "http://127.0.0.1:1", "--account", "a"),
        ("--url", "http://127.0.0.1:1", "-n", "3"),
        ("--after", "now", "-n", "3"),
        ("-n", "-1"),
        ("--types", "message.deleted"),
        ("--types", ""),
    ],
)
def test_what_contradicts_itself_is_a_wrong_usage(arguments: tuple[str, ...]) -> None:
    done = run_cli("tail", *arguments)
    assert done.returncode == 2, done.stderr


def test_a_stream_whose_key_is_revoked_ends_it(server: Server, key: Key, client: httpx.Client) -> None:
    where, environment = over(server, key)
    with Tail(*where, "--json", **environment) as tail:
        _begun(tail, client, create_conversation(client, "one"), 0)
        assert run_cli("keys", "revoke", key.id, "--store", server.url).returncode == 0
        assert tail.wait() == 1
        assert "refuses the key" in tail.err[-1]


@pytest.mark.parametrize("through", ["store", "url"])
def test_it_ends_with_its_reader_also_while_nothing_comes(
    server: Server, key: Key, client: httpx.Client, through: str
) -> None:
    """As in ``turnlog tail | head``."""
    where, environment = over(server, key) if through == "url" else (("--store", server.url), {})
    send(client, create_conversation(client, "one"), "a")
    for follow in ("--follow", "--no-follow"):
        command = f'"{TURNLOG}" tail {" ".join(where)} --after beginning {follow} | head -1; exit ${{PIPESTATUS[0]}}'
        done = subprocess.run(
            ["bash", "-c", command],
            env=clean_environment(**environment),
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert (done.returncode, done.stdout.count("\n")) == (0, 1), done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.postgresql_only("a file does not go away while its disk is there")
def test_a_database_that_goes_away_is_waited_for(store_kind: str, cluster: Cluster) -> None:
    url = cluster.create_database()
    with Server(url) as server:
        key = server.create_key("feed", *ALL)
        with server.client(key) as client:
            conversation_id = create_conversation(client, "one")
            with Tail("--store", url, "--json") as tail:
                wait_for(lambda: len(tail.out) == 1)
                cluster.stop()
                wait_for(lambda: len(tail.err) == 1, 20)
                cluster.start()
                wait_for(lambda: client.get("/readyz").status_code == 200, 30)
                send(client, conversation_id, "back")
                wait_for(lambda: len(tail.out) == 2, 20)
                assert tail.items == walk(client)
                assert ["not answer" in tail.err[0], "answers again" in tail.err[1]] == [True, True]
                cluster.stop()
                done = run_cli("tail", "--store", url, "--no-follow")
                assert done.returncode == 1
                assert "Traceback" not in done.stderr
                assert tail.process.poll() is None


class _EnoughError(Exception):
    """Ends what would follow for ever."""


def test_a_stream_may_be_silent_for_longer_than_a_connection_may_take_to_be_made(
    server: Server, key: Key, client: httpx.Client
) -> None:
    conversation_id = create_conversation(client, "one")
    connect_s, came, said = 0.1, list[Event](), list[str]()

    def take(events: Sequence[Event], _cursor: str) -> None:
        if events and not came:
            after_a_silence.start()
        came.extend(events)
        if len(came) > 1:
            raise _EnoughError

    after_a_silence = threading.Timer(6 * connect_s, send, (client, conversation_id, "after a silence"))
    wanted, credentials = Wanted("beginning"), (key.id, key.secret)
    with pytest.raises(_EnoughError):
        follow_server(server.base, credentials, wanted, take, said.append, connect_s=connect_s, random=lambda: 0)
    after_a_silence.join()
    assert said == []
