"""Webhooks as their owner sees them, over HTTP: made, changed, rotated, tried out, looked into, sent again."""

from __future__ import annotations

import asyncio
import itertools
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import ULID, V1, Key, Server, create_conversation, error_of, message, wait_for
from tests.receiver import Receiver, hang_up, status
from tests.subscriptions import LONG_S, a_dead, opened, saying, until_claimed
from turnlog.cli.keys import DEFAULT_ACCOUNT, new_key
from turnlog.model import PERMISSIONS
from turnlog.store.connect import open_keys
from turnlog.store.webhooks import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.stores import Stores

HOOKS = "/turnlog/v1/webhooks"
CHANGES = "/turnlog/v1/changes"
ALLOW = {"TURNLOG_ALLOW_PRIVATE_WEBHOOKS": "true", "TURNLOG_LOG_REQUESTS": "all"}
OWN_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - nobody's
SHOWN = {
    "id", "url", "types", "description", "enabled", "createdTimestamp", "updatedTimestamp", "cursor",
    "pendingConversations", "secrets",
}  # fmt: skip
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def server(stores: Stores) -> Iterator[Server]:
    """A server that may send to this machine."""
    with Server(stores.new(), environment=ALLOW) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of an account of the test's own."""
    with server.client(owner_key(server, f"account {next(_numbers)}")) as client:
        yield client


def owner_key(server: Server, account: str = DEFAULT_ACCOUNT) -> Key:
    """A key that may do all that these tests do, by way of the store's protocol, as ``harness.make_key``."""

    async def make() -> Key:
        record, secret = new_key("owner", account, PERMISSIONS)
        async with open_keys(server.url) as keys:
            await keys.add_key(record)
        return Key(record.key.id, secret)

    return asyncio.run(make())


def made(client: httpx.Client, url: str = "https://receiver.example/", **more: Any) -> Any:
    """A new webhook, as it is shown with its secret."""
    answer = client.post(HOOKS, json={"url": url, **more})
    assert answer.status_code == 200, answer.text
    return answer.json()


def shown(client: httpx.Client, webhook: Any) -> Any:
    """The webhook as it is now."""
    return client.get(f"{HOOKS}/{webhook['id']}").json()


def changed(client: httpx.Client, webhook: Any, **changes: Any) -> Any:
    answer = client.patch(f"{HOOKS}/{webhook['id']}", json=changes)
    assert answer.status_code == 200, answer.text
    return answer.json()


def record(client: httpx.Client, count: int) -> list[dict[str, Any]]:
    """Record so many messages; all events of the account."""
    path = f"{V1}/conversations/{create_conversation(client, f'conversation {next(_numbers)}')}/messages"
    for number in range(count):
        assert client.post(path, json=message(str(number))).status_code == 200
    found: list[dict[str, Any]] = client.get(CHANGES, params={"limit": 1000}).json()["items"]
    return found


def test_a_new_webhook_is_shown_with_its_secret_once(client: httpx.Client) -> None:
    """Everything that was said of it, a fresh secret, and the cursor of now; later without the secret."""
    end = record(client, 2)[-1]["id"]
    webhook = made(client, "https://crm.example/in?a=b", types=["message.created", "message.created"], description="ü")
    assert set(webhook) == SHOWN | {"secret"}
    assert ULID.fullmatch(webhook["id"])
    assert webhook["url"] == "https://crm.example/in?a=b"
    assert webhook["types"] == ["message.created"]
    assert (webhook["description"], webhook["enabled"], webhook["pendingConversations"]) == ("ü", True, 0)
    assert webhook["cursor"] == end
    assert [set(one) for one in webhook["secrets"]] == [{"createdTimestamp"}]
    secret = webhook.pop("secret")
    assert secret.startswith("whsec_")
    assert shown(client, webhook) == webhook
    other = made(client)
    assert (other["types"], other["description"]) == (None, "")
    assert other["secret"] != secret
    del other["secret"]
    assert client.get(HOOKS).json() == {"items": [webhook, other]}


def test_no_answer_but_two_and_no_log_line_has_a_secret(server: Server, client: httpx.Client) -> None:
    """Creation and rotation show it; nothing else does, and nothing is logged."""
    webhook = made(client, secret=OWN_SECRET)
    path = f"{HOOKS}/{webhook['id']}"
    rotated = client.post(f"{path}/rotate", json={}).json()["secret"]
    answers = [
        client.get(HOOKS), client.get(path), client.patch(path, json={"description": "x"}), client.post(f"{path}/test"),
        client.get(f"{path}/failed"), client.post(f"{path}/replay", json={"failed": True}),
        client.post(HOOKS, json={"url": "https://receiver.example/", "secret": OWN_SECRET[:-1]}), client.delete(path),
    ]  # fmt: skip
    for told in ("".join(answer.text for answer in answers), "\n".join(server.log_lines)):
        assert "whsec_" not in told.replace("begin with whsec_", "").replace("follows whsec_", "")
        for secret in (OWN_SECRET, rotated):
            assert secret.removeprefix("whsec_")[:-1] not in told


@pytest.mark.parametrize(
    "url",
    ["", "receiver.example", "ftp://receiver.example/", "https://", "https://a b/", "https://user:pw@receiver.example/",
     "https://receiver.example/#x", "https://receiver.example:0/", "https://169.254.169.254/", "https://2130706433/",
     "https://receiver.example/" + "x" * 2048, "https://receiver.example/\0"],
)  # fmt: skip
def test_a_bad_url_is_422(client: httpx.Client, url: str) -> None:
    """On creation and on change; the message says where."""
    webhook = made(client)
    for answer in (client.post(HOOKS, json={"url": url}), client.patch(f"{HOOKS}/{webhook['id']}", json={"url": url})):
        assert error_of(answer, "422-01").startswith("[Path '/url'] ")
        assert "pw" not in answer.text
    assert shown(client, webhook)["url"] == webhook["url"]


def test_private_addresses_need_the_setting(start: Callable[..., Server], client: httpx.Client) -> None:
    """And so does plain HTTP: without it 422-01."""
    plain = start()
    with plain.client(owner_key(plain)) as refused:
        for url in ("http://receiver.example/", "https://127.0.0.1/", "https://localhost/", "https://[::1]/"):
            made(client, url)
            error_of(refused.post(HOOKS, json={"url": url}), "422-01")


BAD_BODIES: list[tuple[str, str, Any, str]] = [
    ("POST", "", {}, "400-03"), ("POST", "", [], "400-03"), ("POST", "", {"url": None}, "400-03"),
    ("POST", "", {"types": []}, "400-03"), ("POST", "", {"types": ["message.deleted"]}, "400-03"),
    ("POST", "", {"types": "message.created"}, "400-03"), ("POST", "", {"description": None}, "400-03"),
    ("POST", "", {"description": "x" * 256}, "422-01"), ("POST", "", {"description": "\0"}, "422-01"),
    ("POST", "", {"after": "nowhere"}, "422-01"), ("POST", "", {"after": 1}, "400-03"),
    ("POST", "", {"secret": "whsec_c2hvcnQ="}, "422-01"), ("POST", "", {"secret": "MfKQ9r8GKYqrTwjUPD8"}, "422-01"),
    ("POST", "", {"secret": None}, "400-03"),
    ("PATCH", "/{id}", {"enabled": "yes"}, "400-03"), ("PATCH", "/{id}", {"enabled": None}, "400-03"),
    ("PATCH", "/{id}", {"url": None}, "400-03"), ("PATCH", "/{id}", {"types": []}, "400-03"),
    ("POST", "/{id}/rotate", {"oldEndsInSeconds": -1}, "400-03"),
    ("POST", "/{id}/rotate", {"oldEndsInSeconds": 2_592_001}, "400-03"),
    ("POST", "/{id}/rotate", {"oldEndsInSeconds": 10**30}, "400-03"),
    ("POST", "/{id}/rotate", {"oldEndsInSeconds": 1.5}, "400-03"), ("POST", "/{id}/rotate", {"secret": "x"}, "422-01"),
    ("POST", "/{id}/replay", {}, "400-03"), ("POST", "/{id}/replay", {"failed": False}, "400-03"),
    ("POST", "/{id}/replay", {"failed": True, "after": "beginning"}, "400-03"),
    ("POST", "/{id}/replay", {"events": []}, "400-03"), ("POST", "/{id}/replay", {"events": ["x"]}, "422-01"),
    ("POST", "/{id}/replay", {"after": "nowhere"}, "422-01"), ("POST", "/{id}/replay", {"since": "2021"}, "400-03"),
    ("POST", "/{id}/replay", {"since": "0001-01-01T00:00:00+00:01"}, "422-01"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "code"), BAD_BODIES)
def test_a_bad_body_is_refused_and_changes_nothing(
    client: httpx.Client, method: str, path: str, body: Any, code: str
) -> None:
    """Each field on its own."""
    webhook = made(client)
    before = client.get(HOOKS).text
    if path == "" and isinstance(body, dict) and body and "url" not in body:
        body = {"url": "https://receiver.example/", **body}
    error_of(client.request(method, HOOKS + path.format(id=webhook["id"]), json=body), code)
    assert client.get(HOOKS).text == before


def test_bad_parameters_of_failed_events(client: httpx.Client) -> None:
    path = f"{HOOKS}/{made(client)['id']}/failed"
    for query in ({"limit": 0}, {"limit": 1001}, {"after": "x"}, {"after": "now"}):
        error_of(client.get(path, params=query), "400-02")
    assert client.get(path).json() == {"items": []}


def test_it_begins_where_it_is_told_to(client: httpx.Client) -> None:
    """At the end, at the beginning, or behind any event."""
    events = record(client, 3)
    beginning = client.get(CHANGES, params={"types": "conversation.updated"})
    assert beginning.json()["items"] == []
    for event in events:
        assert made(client, after=event["id"])["cursor"] == event["id"]
    assert made(client, after="now")["cursor"] == events[-1]["id"]
    first = made(client, after="beginning", url="https://receiver.example/", types=["conversation.updated"])["cursor"]
    assert client.get(CHANGES, params={"after": first, "limit": 1000}).json()["items"] == events


def test_what_is_given_is_changed_and_the_rest_stays(client: httpx.Client) -> None:
    """Each field alone; ``types`` null is "all"; a disabled webhook says why."""
    webhook = made(client, types=["message.created"], description="one")
    del webhook["secret"]
    expected = webhook
    for change in (
        {"description": "two"},
        {"url": "https://elsewhere.example/x"},
        {"types": ["conversation.created", "conversation.updated"]},
        {"types": None},
        {"enabled": True},
        {"unknown": 1},
        {},
    ):
        answer = changed(client, webhook, **change)
        assert answer["updatedTimestamp"] >= expected["updatedTimestamp"]
        change.pop("unknown", None)
        expected = expected | change | {"updatedTimestamp": answer["updatedTimestamp"]}
        assert answer == expected == shown(client, webhook)
    off = changed(client, webhook, enabled=False)
    assert (off["enabled"], off["disabledReason"]) == (False, "disabled by its owner")
    assert "disabledReason" in changed(client, webhook, description="still off")
    on = changed(client, webhook, enabled=True)
    assert on["enabled"]
    assert "disabledReason" not in on


def test_a_deleted_webhook_is_gone(client: httpx.Client) -> None:
    """204, then 404 for whatever names it."""
    webhook, kept = made(client), made(client)
    path = f"{HOOKS}/{webhook['id']}"
    assert client.delete(path).status_code == 204
    error_of(client.delete(path), "404-01")
    error_of(client.get(path), "404-01")
    error_of(client.patch(path, json={}), "404-01")
    assert [one["id"] for one in client.get(HOOKS).json()["items"]] == [kept["id"]]


def test_an_account_has_at_most_a_hundred(client: httpx.Client) -> None:
    """One more is 422-01; with one less there is room again."""
    last = [made(client) for _ in range(100)][-1]
    assert "100" in error_of(client.post(HOOKS, json={"url": "https://receiver.example/"}), "422-01")
    client.delete(f"{HOOKS}/{last['id']}")
    made(client)


def test_two_secrets_sign_until_the_old_one_ends(client: httpx.Client) -> None:
    """Each alone verifies; a further rotation ends the oldest; a grace of 0 leaves the new one only."""
    with Receiver() as receiver:
        webhook = made(client, receiver.url)
        secrets = [webhook["secret"]]

        def rotate(**body: Any) -> list[set[str]]:
            answer = client.post(f"{HOOKS}/{webhook['id']}/rotate", json=body)
            assert answer.status_code == 200, answer.text
            rotated = answer.json()
            secrets.append(rotated["secret"])
            assert shown(client, webhook)["secrets"] == rotated["secrets"]
            return [set(one) for one in rotated["secrets"]]

        def signing() -> list[str]:
            found = []
            for secret in secrets:
                receiver.secrets = [secret]
                if client.post(f"{HOOKS}/{webhook['id']}/test").json()["status"] == 200:
                    found.append(secret)
            receiver.sent_away.clear()
            return found

        assert signing() == secrets[-1:]
        assert rotate(secret=OWN_SECRET) == [{"createdTimestamp", "expiresTimestamp"}, {"createdTimestamp"}]
        assert secrets[-1] == OWN_SECRET
        assert signing() == secrets[-2:]
        assert len(rotate(oldEndsInSeconds=3600)) == 2
        assert signing() == secrets[-2:]
        assert rotate(oldEndsInSeconds=0) == [{"createdTimestamp"}]
        assert signing() == secrets[-1:]
        assert len(rotate(oldEndsInSeconds=1.0)) == 2
        wait_for(lambda: len(shown(client, webhook)["secrets"]) == 1, timeout_s=3)
        assert signing() == secrets[-1:]


def test_a_test_event_is_sent_at_once_and_tells_what_came_back(client: httpx.Client) -> None:
    """Delivered or not, 200; a disabled webhook too; nothing else comes of it."""
    with Receiver() as receiver:
        webhook = made(client, receiver.url)
        receiver.secrets = [webhook["secret"]]
        receiver.next.extend([status(200, b"thanks"), status(503, b"later"), hang_up, hang_up])
        path = f"{HOOKS}/{webhook['id']}"
        first = client.post(f"{path}/test").json()
        assert (first["status"], first["error"], first["body"]) == (200, None, "thanks")
        assert 0 <= first["seconds"] < 10
        (came,) = receiver.received
        assert set(came.event) == {"id", "type", "time"}
        assert (came.event["id"], came.event["type"]) == (came.id, "webhook.test")
        second = client.post(f"{path}/test").json()
        assert (second["status"], second["body"]) == (503, "later")
        third = client.post(f"{path}/test").json()
        assert third["status"] is None
        assert third["error"]
        changed(client, webhook, enabled=False)
        assert client.post(f"{path}/test").json()["status"] == 200
        assert len({one.id for one in receiver.received}) == 4
        assert client.get(f"{path}/failed").json() == {"items": []}


def test_a_webhook_is_put_back_to_a_place_or_a_time(client: httpx.Client) -> None:
    """Behind a cursor, to the beginning, or before the first event that is not older than an instant."""
    events = record(client, 5)
    webhook = made(client)
    changed(client, webhook, enabled=False)

    def put(**body: str) -> str:
        answer = client.post(f"{HOOKS}/{webhook['id']}/replay", json=body)
        assert answer.status_code == 200, answer.text
        cursor = answer.json()["cursor"]
        assert shown(client, webhook)["cursor"] == cursor
        return str(cursor)

    start = put(after="beginning")
    assert client.get(CHANGES, params={"after": start, "limit": 1000}).json()["items"] == events
    assert put(after=events[2]["id"]) == events[2]["id"]
    places = [start, *(event["id"] for event in events)]
    for event in events:
        first = next(number for number, other in enumerate(events) if other["time"] >= event["time"])
        assert put(since=event["time"]) == places[first]
    last = datetime.fromisoformat(events[-1]["time"])
    assert put(since=(last + timedelta(seconds=1)).isoformat()) == places[-1]
    assert put(since="2001-01-01T00:00:00Z") == start


def bury(url: str, account: str, webhook_id: str, count: int) -> None:
    """Give up the first events of a webhook, as its worker would; while no server runs on the store."""

    async def give_up() -> None:
        async with opened(url) as store:
            await until_claimed(store, "undertaker")
            await store.claim_webhooks("undertaker", LONG_S)
            found = await store.delivery(account, webhook_id)
            assert found is not None
            progress = Progress(account, webhook_id, found.revision, found.position)
            letters = [a_dead(number, conversation="C", error="answered 500") for number in range(1, count + 1)]
            assert await store.save_progress("undertaker", saying(progress, dead=letters))
            await store.release_webhooks("undertaker")

    asyncio.run(give_up())


def test_what_was_given_up_is_listed_and_replayed(start: Callable[..., Server]) -> None:
    """In pages, in order; some by their events' ids, or all; each counts once."""
    server = start(environment=ALLOW)
    key = owner_key(server)
    with server.client(key) as client:
        events = record(client, 6)
        webhook = changed(client, made(client), enabled=False)
    assert server.stop() == 0
    bury(server.url, DEFAULT_ACCOUNT, webhook["id"], 5)
    with start(environment=ALLOW).client(key) as client:
        path = f"{HOOKS}/{webhook['id']}"
        items = client.get(f"{path}/failed").json()["items"]
        assert [item["id"] for item in items] == [event["id"] for event in events[:5]]
        assert items[0] == {
            "id": events[0]["id"], "type": "message.created", "conversationId": "C", "attempts": 9,
            "firstFailedTimestamp": "1970-01-01T00:00:00.000020Z", "failedTimestamp": "1970-01-01T00:00:00.000040Z",
            "error": "answered 500", "replayed": False,
        }  # fmt: skip
        pages, query = [], {"limit": 2}
        while True:
            page = client.get(f"{path}/failed", params=query).json()
            pages.append(page["items"])
            if "nextCursor" not in page:
                break
            query = {"limit": 2, "after": page["nextCursor"]}
        assert [len(page) for page in pages] == [2, 2, 1]
        assert [item for page in pages for item in page] == items
        some = [events[0]["id"], events[2]["id"], events[5]["id"]]
        assert client.post(f"{path}/replay", json={"events": some}).json() == {"replayed": 2}
        marked = [item["replayed"] for item in client.get(f"{path}/failed").json()["items"]]
        assert marked == [True, False, True, False, False]
        assert client.post(f"{path}/replay", json={"failed": True}).json() == {"replayed": 3}
        assert client.post(f"{path}/replay", json={"failed": True}).json() == {"replayed": 0}
        assert client.post(f"{path}/replay", json={"after": "beginning"}).status_code == 200
        assert client.get(f"{path}/failed").json() == {"items": []}
