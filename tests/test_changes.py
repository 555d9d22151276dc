"""The change feed in pages: one total order, resumed anywhere, filtered, waiting; whose it is and what it refuses."""

from __future__ import annotations

import itertools
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import V1, Server, create_conversation, error_of, make_key, message, run_cli, wait_for
from tests.sse import CHANGES
from tests.stores import rows
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.stores import Stores

FEED = ("--permission", "feed", "--permission", "read", "--permission", "conversations:write")
ALL = (*FEED, "--permission", "messages:write")


_accounts = itertools.count(1)


@pytest.fixture(scope="module")
def server(stores: Stores) -> Iterator[Server]:
    with Server(stores.new()) as one:
        yield one


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A key to an account, and so a log, of the test's own."""
    with server.client(make_key(server.url, "feed", f"account {next(_accounts)}", PERMISSIONS)) as found:
        yield found


@pytest.fixture
def own_server(start: Callable[..., Server]) -> Server:
    """For a test that reaches behind it."""
    return start()


@pytest.fixture
def own_client(own_server: Server) -> Iterator[httpx.Client]:
    with own_server.client(make_key(own_server.url, "feed", permissions=PERMISSIONS)) as found:
        yield found


def walk(client: httpx.Client, limit: int = 100, **query: Any) -> list[dict[str, Any]]:
    """Everything in pages, up to the page whose cursor is the one that it was asked with."""
    found: list[dict[str, Any]] = []
    after = None
    while True:
        page = client.get(CHANGES, params={"limit": limit, **query} | ({"after": after} if after else {}))
        assert page.status_code == 200, page.text
        body = page.json()
        assert set(body) == {"items", "nextCursor"}
        assert len(body["items"]) <= limit
        found += body["items"]
        if body["nextCursor"] == after:
            return found
        after = body["nextCursor"]


def _talk(client: httpx.Client, external_id: str, texts: list[str]) -> str:
    conversation_id = create_conversation(client, external_id)
    for text in texts:
        client.post(f"{V1}/conversations/{conversation_id}/messages", json=message(text)).raise_for_status()
    return conversation_id


def test_everything_that_happened_is_there_once_in_order_as_the_reads_give_it(client: httpx.Client) -> None:
    first = _talk(client, "one", ["a", "b"])
    second = _talk(client, "two", ["c"])
    create_conversation(client, "one", metadata={"mood": "better"})
    client.post(f"{V1}/conversations/{first}/messages/batch", json={"messages": [message("d"), message("e")]})
    items = walk(client)
    assert [item["type"] for item in items] == [
        *("conversation.created", "message.created", "message.created"),
        *("conversation.created", "message.created", "conversation.updated", "message.created", "message.created"),
    ]
    assert [item["conversationId"] for item in items] == [first] * 3 + [second] * 2 + [first] * 3
    assert [item["externalId"] for item in items] == ["one"] * 3 + ["two"] * 2 + ["one"] * 3
    assert len({item["id"] for item in items}) == len(items)
    recorded = {item["messageId"]: item for item in client.get(f"{V1}/conversations/{first}/messages").json()["items"]}
    for item in items:
        if "message" in item:
            assert item["time"] == item["message"]["createdTimestamp"]
            if item["conversationId"] == first:
                assert item["message"] == recorded[item["message"]["messageId"]]
    changes = [item["conversation"] for item in items if "conversation" in item]
    assert "metadata" not in changes[0]
    assert changes[2] == client.get(f"{V1}/conversations/{first}").json()


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
def test_pages_of_any_size_and_every_id_as_a_cursor_give_the_same_log(client: httpx.Client, limit: int) -> None:
    for number in range(4):
        _talk(client, f"c{number}", [f"{number}-{text}" for text in "abc"])
    whole = walk(client, 1000)
    assert walk(client, limit) == whole
    for index in range(0, len(whole), 5):
        rest = client.get(CHANGES, params={"after": whole[index]["id"], "limit": 1000}).json()
        assert rest["items"] == whole[index + 1 :]


def test_now_is_the_end_and_what_comes_after_it_is_found_from_its_cursor(client: httpx.Client) -> None:
    _talk(client, "before", ["x"])
    at_end = client.get(CHANGES, params={"after": "now"}).json()
    assert at_end["items"] == []
    assert client.get(CHANGES, params={"after": at_end["nextCursor"]}).json() == at_end
    _talk(client, "after", ["y"])
    items = client.get(CHANGES, params={"after": at_end["nextCursor"]}).json()["items"]
    assert [item["externalId"] for item in items] == ["after", "after"]


def test_an_empty_log_has_a_cursor_too(client: httpx.Client) -> None:
    empty = client.get(CHANGES).json()
    assert empty["items"] == []
    _talk(client, "first", [])
    assert len(client.get(CHANGES, params={"after": "beginning"}).json()["items"]) == 1
    assert len(client.get(CHANGES, params={"after": empty["nextCursor"]}).json()["items"]) == 1


def test_filters(client: httpx.Client) -> None:
    first = _talk(client, "one", ["a", "b"])
    _talk(client, "two", ["c"])
    create_conversation(client, "one")
    whole = walk(client)
    for query, keep in (
        ({"types": "message.created"}, lambda item: item["type"] == "message.created"),
        ({"types": "conversation.created,conversation.updated"}, lambda item: "conversation" in item),
        ({"types": "conversation.updated"}, lambda item: item["type"] == "conversation.updated"),
        ({"conversationId": first}, lambda item: item["externalId"] == "one"),
        ({"externalId": "two"}, lambda item: item["externalId"] == "two"),
        ({"externalId": "two", "types": "message.created"}, lambda item: item.get("message", {}).get("text") == "c"),
        ({"externalId": "two", "conversationId": first}, lambda _: False),
        ({"externalId": "three"}, lambda _: False),
    ):
        for limit in (1, 100):
            assert walk(client, limit, **query) == [item for item in whole if keep(item)], query


def test_a_filter_finds_what_comes_into_being_later(client: httpx.Client) -> None:
    cursor = client.get(CHANGES, params={"externalId": "late"}).json()["nextCursor"]
    _talk(client, "other", ["x"])
    _talk(client, "late", ["y"])
    found = walk(client, after=cursor, externalId="late")
    assert [item["type"] for item in found] == ["conversation.created", "message.created"]


def test_a_page_waits_until_something_comes_and_no_longer_than_asked(client: httpx.Client, server: Server) -> None:
    conversation_id = _talk(client, "one", [])
    at_end = client.get(CHANGES, params={"after": "now"}).json()["nextCursor"]
    began = time.monotonic()
    assert client.get(CHANGES, params={"after": at_end, "wait": "0.3"}).json()["items"] == []
    assert time.monotonic() - began > 0.25
    found: list[Any] = []

    def wait() -> None:
        with server.client() as other:
            found.append(other.get(CHANGES, params={"after": at_end, "wait": 30}, headers=dict(client.headers)).json())

    waiting = threading.Thread(target=wait)
    waiting.start()
    client.post(f"{V1}/conversations/{conversation_id}/messages", json=message("now"))
    waiting.join(10)
    assert [item["message"]["text"] for item in found[0]["items"]] == ["now"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"after": "nonsense"}, "400-02"),
        ({"after": ""}, "400-02"),
        ({"after": "AAAAAAAAAAAAAAAAAAAAAA"}, "400-02"),
        ({"limit": 0}, "400-02"),
        ({"limit": 1001}, "400-02"),
        ({"limit": "x"}, "400-02"),
        ({"wait": 31}, "400-02"),
        ({"wait": -1}, "400-02"),
        ({"wait": "soon"}, "400-02"),
        ({"types": "message.deleted"}, "400-02"),
        ({"types": ""}, "400-02"),
        ({"after": ["now", "now"]}, "400-02"),
        ({"externalId": "a\0b"}, "422-01"),
        ({"conversationId": "a\0b"}, "422-01"),
    ],
)
def test_what_is_malformed_is_refused_page_or_stream(client: httpx.Client, query: dict[str, Any], code: str) -> None:
    for accept in ("application/json", "text/event-stream"):
        assert error_of(client.get(CHANGES, params=query, headers={"accept": accept}), code)


def test_a_cursor_of_another_account_store_or_time_is_no_silence(
    client: httpx.Client, server: Server, stores: Stores
) -> None:
    _talk(client, "one", ["a", "b", "c"])
    cursors = [item["id"] for item in walk(client)]
    with Server(stores.new()) as elsewhere, elsewhere.client(elsewhere.create_key("feed", *ALL)) as other_store:
        _talk(other_store, "one", ["a", "b", "c"])
        assert error_of(other_store.get(CHANGES, params={"after": cursors[1]}), "400-02")
    with server.client(server.create_key("other", "--account", "other", *ALL)) as other_account:
        assert error_of(other_account.get(CHANGES, params={"after": cursors[1]}), "400-02")
        assert walk(other_account) == []


def test_a_cursor_from_before_what_is_kept_is_gone(own_client: httpx.Client, own_server: Server) -> None:
    """410-01, page or stream; without a cursor the reader begins at what there is."""
    client, server = own_client, own_server
    first = _talk(client, "one", ["a", "b", "c"])
    cursors = [item["id"] for item in walk(client)]
    rows(server.url, "DELETE FROM conversation_change")
    rows(server.url, "DELETE FROM message WHERE text = 'a'")
    for accept in ("application/json", "text/event-stream"):
        gone = client.get(CHANGES, params={"after": cursors[0]}, headers={"accept": accept})
        assert "kept" in error_of(gone, "410-01")
        gone = client.get(CHANGES, headers={"accept": "text/event-stream", "last-event-id": cursors[0]})
        assert "Last-Event-ID" in error_of(gone, "410-01")
    assert [item["message"]["text"] for item in walk(client)] == ["b", "c"]
    assert len(client.get(CHANGES, params={"after": cursors[1]}).json()["items"]) == 2
    assert first


def test_a_cursor_from_behind_the_end_is_gone(own_client: httpx.Client, own_server: Server) -> None:
    """As after a restore from a backup: what it stands for is not in this log, or is something else by now."""
    client, server = own_client, own_server
    _talk(client, "one", ["a", "b"])
    cursors = [item["id"] for item in walk(client)]
    server.stop()
    rows(server.url, "DELETE FROM message WHERE text = 'b'")
    if "postgresql" in server.url:
        rows(server.url, "UPDATE log SET position = position - 1")
    server.start()
    wait_for(lambda: client.get("/readyz").status_code == 200)
    assert "restored" in error_of(client.get(CHANGES, params={"after": cursors[2]}), "410-01")


def test_the_feed_has_a_permission_of_its_own(server: Server) -> None:
    with server.client(server.create_key("plain")) as plain:
        assert "feed" in error_of(plain.get(CHANGES), "403-01")
    with server.client(server.create_key("only", "--permission", "feed")) as only:
        assert only.get(CHANGES).status_code == 200
        assert error_of(only.get(f"{V1}/conversations", params={"externalId": "x"}), "403-01")


def test_pages_of_large_conversations_are_bounded(client: httpx.Client) -> None:
    """Each may have 400 kB of metadata."""
    metadata = {f"key {n}": "x" * 4000 for n in range(100)}
    for number in range(30):
        create_conversation(client, f"large {number}", metadata=metadata)
    page = client.get(CHANGES, params={"limit": 1000})
    assert len(page.content) < 6_000_000
    assert len(walk(client, 1000)) == 30


def test_a_page_that_waits_ends_with_its_key(client: httpx.Client, server: Server) -> None:
    """A05: refused within a second everywhere, and nothing that is recorded afterwards is shown."""
    leaving = server.create_key("leaving", "--permission", "feed")
    with server.client(leaving) as other:
        at_end = other.get(CHANGES, params={"after": "now"}).json()["nextCursor"]
        answers: list[httpx.Response] = []

        def wait() -> None:
            answers.append(other.get(CHANGES, params={"after": at_end, "wait": 30}))

        waiting = threading.Thread(target=wait)
        waiting.start()
        done = run_cli("keys", "revoke", leaving.id, "--store", server.url)
        assert done.returncode == 0, done.stderr
        waiting.join(10)
        assert not waiting.is_alive()
        assert error_of(answers[0], "401-01")


def test_accept_says_whether_it_is_a_stream(client: httpx.Client) -> None:
    """And an empty Last-Event-ID is what a browser sends that has seen none."""
    for accept in ("application/json", "*/*", "text/html, text/event-stream;q=0", "text/event-stream; q=0.000"):
        answer = client.get(CHANGES, headers={"accept": accept})
        assert answer.headers["content-type"] == "application/json"
    for accept in ("text/event-stream", "application/json, TEXT/Event-Stream; q=0.5"):
        with client.stream("GET", CHANGES, headers={"accept": accept, "last-event-id": ""}) as stream:
            assert stream.status_code == 200
            assert stream.headers["content-type"] == "text/event-stream"


def test_pages_of_long_texts_are_bounded(client: httpx.Client) -> None:
    conversation_id = create_conversation(client, "long")
    for _ in range(14):
        client.post(f"{V1}/conversations/{conversation_id}/messages", json=message("x" * 900_000)).raise_for_status()
    page = client.get(CHANGES, params={"limit": 1000})
    assert len(page.content) < 6_000_000
    assert len(walk(client, 1000)) == 15
