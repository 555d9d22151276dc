"""Keys: what each may do, whose data it opens, how fast it may go, and how it comes and goes under a running server."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.harness import V1, Key, conversation, create_conversation, error_of, message, run_cli, wait_for
from tests.stores import files
from turnlog.http.table import TABLE
from turnlog.model import DEFAULT_PERMISSIONS, PERMISSIONS
from turnlog.secret import looks_like_secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Server
    from turnlog.http.operations import Operation

HEALTH = "/v1/health"
NO_ID = "01BX5ZZKBKACTAV9WEVGEMMVRZ"
BY_NAME = {operation.name: operation for operation in TABLE}
_numbers = itertools.count(1)


def cli(server: Server, *arguments: str) -> Any:
    """What ``turnlog keys`` prints as JSON."""
    done = run_cli("keys", *arguments, "--store", server.url, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def unique(name: str) -> str:
    return f"{name} {next(_numbers)}"


@contextmanager
def holding(server: Server, *arguments: str) -> Iterator[httpx.Client]:
    """A client with a key of its own."""
    with server.client(server.create_key(unique("key"), *arguments)) as client:
        yield client


def status(server: Server, key: Key, path: str = HEALTH) -> int:
    return httpx.get(server.base + path, headers=key.headers).status_code


# Coming and going.


def test_a_new_key_is_good_within_a_second_and_holds_the_default_permissions(server: Server) -> None:
    """``keys create --json`` prints id and secret; a running server takes them; ``keys list`` shows no secret."""
    name = unique("new")
    made = cli(server, "create", name)
    wait_for(lambda: status(server, Key(made["id"], made["secret"])) == 200, timeout_s=1)
    listed = run_cli("keys", "list", "--store", server.url, "--json").stdout
    [shown] = [view for view in json.loads(listed) if view["id"] == made["id"]]
    assert (shown["name"], shown["account"]) == (name, "default")
    assert set(shown["permissions"]) == set(DEFAULT_PERMISSIONS) == set(PERMISSIONS) - {"admin", "feed"}
    assert made["secret"] not in listed
    assert "secret" not in shown


def test_a_secret_has_a_prefix_and_a_checksum(server: Server, key: Key) -> None:
    """A scanner can tell a secret from a look-alike, and a typing error is seen: no changed character passes."""
    secret = key.secret
    assert secret.startswith("turnlog_sk_")
    assert len(secret) >= len("turnlog_sk_") + 26, "128 bits in base 32, and more"
    assert looks_like_secret(secret)
    for at, character in enumerate(secret):
        assert not looks_like_secret(secret[:at] + ("0" if character != "0" else "1") + secret[at + 1 :])
    assert not any(looks_like_secret(text) for text in ("", secret[:-1], secret + "0", secret.upper(), key.id))
    with ThreadPoolExecutor(2) as pool:
        others = list(pool.map(lambda _: server.create_key(unique("another")).secret, range(4)))
    assert len({secret, *others}) == 5


def test_revoked_is_refused_within_a_second(server: Server) -> None:
    """By id or by name, while the server runs; other keys stay good."""
    for by in ("id", "name"):
        name = unique("revoked")
        made = cli(server, "create", name)
        key = Key(made["id"], made["secret"])
        wait_for(lambda key=key: status(server, key) == 200)
        shown = cli(server, "revoke", made[by])
        wait_for(lambda key=key: status(server, key) == 401, timeout_s=1)
        assert shown["revokedAt"]
        assert run_cli("keys", "rotate", made["id"], "--store", server.url).returncode == 1


def test_rotation_leaves_two_live_secrets_until_the_old_one_ends(server: Server) -> None:
    """Both secrets work during the grace; ``--grace 0s`` ends every older one at once."""
    made = cli(server, "create", unique("rotated"))
    first = Key(made["id"], made["secret"])
    second = Key(made["id"], cli(server, "rotate", made["id"])["secret"])
    wait_for(lambda: status(server, second) == 200, timeout_s=1)
    assert status(server, first) == 200
    third = Key(made["id"], cli(server, "rotate", made["id"], "--grace", "0s")["secret"])
    wait_for(lambda: status(server, third) == 200, timeout_s=1)
    assert (status(server, first), status(server, second)) == (401, 401)
    assert len({key.secret for key in (first, second, third)}) == 3


def test_an_old_secret_ends_with_its_grace(server: Server) -> None:
    """The grace is counted by the server, without a further word from the CLI."""
    made = cli(server, "create", unique("graceful"))
    renewed = cli(server, "rotate", made["id"], "--grace", "3s")
    old, new = Key(made["id"], made["secret"]), Key(made["id"], renewed["secret"])
    wait_for(lambda: status(server, new) == 200, timeout_s=1)
    assert status(server, old) == 200
    wait_for(lambda: status(server, old) == 401, timeout_s=6)
    assert status(server, new) == 200


@pytest.mark.parametrize("when", ["2s", "instant"])
def test_an_expired_key_is_refused(server: Server, when: str) -> None:
    """``--expires`` takes a span or an instant; until then the key is good, then it is 401-01."""
    if when == "instant":
        when = (datetime.now(UTC) + timedelta(seconds=3)).isoformat()
    key = server.create_key(unique("expiring"), "--expires", when)
    wait_for(lambda: status(server, key) == 200, timeout_s=2)
    wait_for(lambda: status(server, key) == 401, timeout_s=5)


def test_only_hashes_of_secrets_are_on_disk_and_none_in_the_log(start: Callable[..., Server]) -> None:
    """Neither a live nor a rotated secret, nor a wrong guess, is in any file of the store or in the log."""
    server = start(environment={"TURNLOG_LOG_REQUESTS": "all"})
    made = cli(server, "create", "hashed")
    secrets = [made["secret"], cli(server, "rotate", made["id"])["secret"], "turnlog_sk_guess"]
    for secret in secrets:
        wait_for(lambda secret=secret: status(server, Key(made["id"], secret)) == (401 if "guess" in secret else 200))
    for end in (lambda: None, server.stop):
        end()
        kept = b"".join(path.read_bytes() for path in files(server.url))
        assert made["id"].encode() in kept
        for secret in secrets:
            for told in (kept, "\n".join(server.log_lines).encode()):
                assert secret.encode() not in told
                assert secret.removeprefix("turnlog_sk_").encode() not in told


# 401-01.


def test_every_reason_for_401_has_one_answer(server: Server, key: Key) -> None:
    """Missing, unknown, wrong, revoked, expired, doubled, elsewhere: the same bytes but for the request id."""
    revoked, expired = server.create_key(unique("gone")), server.create_key(unique("late"), "--expires", "1s")
    cli(server, "revoke", revoked.id)
    wait_for(lambda: status(server, revoked) == 401)
    wait_for(lambda: status(server, expired) == 401)
    good = key.headers
    other = server.create_key(unique("other"))
    id_header, secret_header = good.items()
    reasons: list[list[tuple[str, str]]] = [
        [], [id_header], [secret_header], [("asapp-api-id", ""), ("asapp-api-secret", "")],
        [id_header, ("asapp-api-secret", "")], list(revoked.headers.items()), list(expired.headers.items()),
        [("asapp-api-id", "unknown"), secret_header], [id_header, ("asapp-api-secret", "wrong")],
        [id_header, ("asapp-api-secret", key.secret[:-1])], [id_header, ("asapp-api-secret", key.secret.upper())],
        [("asapp-api-id", key.id.upper()), secret_header], [id_header, ("asapp-api-secret", other.secret)],
        [id_header, id_header, secret_header], [id_header, secret_header, secret_header],
        [id_header, ("asapp-api-secret", f"{key.secret}, {key.secret}")],
        [("authorization", f"Bearer {key.secret}")],
        [("cookie", f"asapp-api-id={key.id}; asapp-api-secret={key.secret}")],
    ]  # fmt: skip
    answers = [httpx.get(server.base + HEALTH, headers=reason) for reason in reasons]
    query = {"asapp-api-id": key.id, "asapp-api-secret": key.secret}
    answers += [
        httpx.get(server.base + HEALTH, params=query),
        httpx.get(server.base + HEALTH, auth=(key.id, key.secret)),
    ]
    answers += [httpx.get(server.base + path) for path in ("/nowhere", f"{V1}/conversations/{NO_ID}", "/v1/health?x")]
    assert len({faceless(answer) for answer in answers}) == 1
    for answer in answers:
        error_of(answer, "401-01")
        assert answer.headers["www-authenticate"]


def faceless(answer: httpx.Response) -> tuple[int, bytes, tuple[tuple[str, str], ...]]:
    """Status, body and headers, without what differs between any two answers."""
    request_id = answer.headers["x-request-id"]
    kept = tuple(
        sorted((name, value) for name, value in answer.headers.items() if name not in ("date", "x-request-id"))
    )
    return answer.status_code, answer.content.replace(request_id.encode(), b"*"), kept


# The matrices, made from the operations table.


EVERYTHING = [part for permission in PERMISSIONS for part in ("--permission", permission)]


class World:
    """A conversation with a message, and a webhook, as ids and as the requests that use them."""

    def __init__(self, conversation_id: str, message_id: str, external_id: str, webhook_id: str) -> None:
        self.ids = {
            "conversationId": conversation_id,
            "messageId": message_id,
            "externalId": external_id,
            "webhookId": webhook_id,
        }

    @classmethod
    def made(cls, client: httpx.Client) -> World:
        external_id = unique("world")
        conversation_id = create_conversation(client, external_id)
        answer = client.post(f"{V1}/conversations/{conversation_id}/messages", json=message("ours"))
        made = client.post("/turnlog/v1/webhooks", json=WEBHOOK)
        assert made.status_code == 200, made.text
        return cls(conversation_id, answer.json()["id"], external_id, made.json()["id"])

    def but(self, **ids: str) -> World:
        return World(*(self.ids | ids).values())

    def request(self, client: httpx.Client, operation: Operation) -> httpx.Response:
        """The operation on these ids. A new operation needs a row in QUERIES and in BODIES: else a KeyError."""
        path = operation.path.format(**self.ids)
        query = {name: self.ids[name] for name in QUERIES[operation.name]}
        if operation.method not in BODY_METHODS:
            return client.request(operation.method, path, params=query)
        return client.request(operation.method, path, params=query, json=BODIES[operation.name](self.ids["externalId"]))


QUERIES: dict[str, tuple[str, ...]] = {
    "create_conversation": (), "find_conversations": ("externalId",), "read_conversation": (), "create_message": (),
    "list_messages": (), "read_message": (), "create_messages": (), "list_messages_by_external_id": ("externalId",),
    "authenticate": (), "health": (), "list_changes": ("conversationId", "externalId"), "create_webhook": (),
    "list_webhooks": (), "read_webhook": (), "change_webhook": (), "rotate_webhook": (), "test_webhook": (),
    "list_failed_events": (), "replay_webhook": (), "delete_webhook": (),
}  # fmt: skip
BODY_METHODS = {"POST", "PATCH"}
WEBHOOK = {"url": "https://receiver.example/"}
BODIES: dict[str, Callable[[str], dict[str, Any]]] = {
    "create_conversation": conversation,
    "create_message": lambda _: message("intruder"),
    "create_messages": lambda _: {"messages": [message("intruder")]},
    "authenticate": lambda _: {"customerExternalId": "jane", "auth": {"token": "t"}},
    "create_webhook": lambda _: WEBHOOK,
    "change_webhook": lambda _: {"description": "intruder"},
    "rotate_webhook": lambda _: {"oldEndsInSeconds": 0},
    "test_webhook": lambda _: {},
    "replay_webhook": lambda _: {"after": "beginning"},
}
OWN = {"create_conversation", "health", "create_webhook", "list_webhooks"}
"""Operations that name nothing that must exist."""


def id_sources(operation: Operation) -> list[str]:
    """The ids that a request of the operation names."""
    in_path = [name for name in ("conversationId", "messageId", "webhookId") if f"{{{name}}}" in operation.path]
    return in_path + list(QUERIES[operation.name])


CROSSINGS = [(operation.name, source) for operation in TABLE for source in id_sources(operation)]


def test_the_matrices_have_a_row_for_every_operation() -> None:
    """An operation that is added without its row here is not tested, so this fails."""
    assert set(QUERIES) == set(BY_NAME)
    assert set(BODIES) == {operation.name for operation in TABLE if operation.method in BODY_METHODS}
    assert {name for name, _ in CROSSINGS} | OWN == set(BY_NAME)
    assert all(operation.path.count("{") == operation.path.count("Id}") for operation in TABLE)


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[httpx.Client]:
    """A client of the account ``default`` that may do everything."""
    with holding(server, *EVERYTHING) as client:
        yield client


@pytest.fixture(scope="module")
def worlds(server: Server, owner: httpx.Client) -> Iterator[tuple[httpx.Client, World, World]]:
    """A client of another account, what that account has, and what the account ``default`` has."""
    with holding(server, "--account", "strangers", *EVERYTHING) as stranger:
        yield stranger, World.made(stranger), World.made(owner)


@pytest.mark.parametrize(("name", "source"), CROSSINGS)
def test_another_accounts_ids_do_not_exist(
    worlds: tuple[httpx.Client, World, World], owner: httpx.Client, name: str, source: str
) -> None:
    """Any operation by any id of another account answers as for an id that never was, to the byte; and does nothing."""
    stranger, own, foreign = worlds
    if name == "delete_webhook":
        own = World.made(stranger)
    looks = ("list_messages", "read_webhook")
    before = [foreign.request(owner, BY_NAME[look]).text for look in looks]
    crossed = own.but(**{source: foreign.ids[source]}).request(stranger, BY_NAME[name])
    absent = own.but(**{source: NO_ID}).request(stranger, BY_NAME[name])
    assert faceless(crossed) == faceless(absent)
    if name in ("find_conversations", "list_changes"):
        assert crossed.json()["items"] == []
    else:
        error_of(crossed, "404-01")
    assert own.request(stranger, BY_NAME[name]).status_code in (200, 204)
    assert [foreign.request(owner, BY_NAME[look]).text for look in looks] == before


def test_what_an_account_lists_is_its_own(worlds: tuple[httpx.Client, World, World], owner: httpx.Client) -> None:
    """Neither webhooks nor changes of another account are in a list, nor may a cursor of its log be used."""
    stranger, own, foreign = worlds
    for name in ("list_webhooks", "list_changes"):
        path = BY_NAME[name].path
        ours, theirs = (client.get(path, params={"limit": 1000}).text for client in (stranger, owner))
        for ids, there, elsewhere in ((own.ids, ours, theirs), (foreign.ids, theirs, ours)):
            told = ids["webhookId" if name == "list_webhooks" else "messageId"]
            assert told in there
            assert told not in elsewhere
    cursor = owner.get("/turnlog/v1/changes", params={"limit": 1}).json()["nextCursor"]
    error_of(stranger.get("/turnlog/v1/changes", params={"after": cursor}), "400-02")
    error_of(stranger.post("/turnlog/v1/webhooks", json={**WEBHOOK, "after": cursor}), "422-01")


def test_an_account_may_use_external_ids_and_ids_that_another_has(
    worlds: tuple[httpx.Client, World, World], client: httpx.Client
) -> None:
    """Both name their own conversation: nothing tells that somebody else has the same."""
    stranger, _, foreign = worlds
    ids = foreign.ids
    assert create_conversation(stranger, ids["externalId"]) != ids["conversationId"]
    taken = create_conversation(stranger, unique("same id"), id=ids["conversationId"])
    assert taken == ids["conversationId"]
    assert foreign.but(messageId=NO_ID).request(stranger, BY_NAME["list_messages"]).json() == {"items": []}
    assert foreign.request(stranger, BY_NAME["read_message"]).status_code == 404
    assert foreign.request(client, BY_NAME["read_message"]).status_code == 200


@pytest.mark.parametrize("permission", PERMISSIONS)
def test_a_permission_opens_its_operations_and_no_other(server: Server, owner: httpx.Client, permission: str) -> None:
    """Each permission against every operation: 403-01 exactly where the operation needs another one."""
    world = World.made(owner)
    needed = {
        "conversations:write": {"create_conversation", "authenticate"},
        "messages:write": {"create_message", "create_messages"},
        "read": {name for name, one in BY_NAME.items() if one.method == "GET" and one.path.startswith(V1)},
        "feed": {name for name, one in BY_NAME.items() if one.path.startswith("/turnlog/v1/")},
        "admin": set(),
    }
    with holding(server, "--permission", permission) as held:
        for operation in TABLE:
            answer = world.request(held, operation)
            if operation.name in needed[permission] | {"health"}:
                assert answer.status_code in (200, 204), operation.name
            else:
                error_of(answer, "403-01")
                error_of(world.but(conversationId=NO_ID).request(held, operation), "403-01")


# Rates.


def test_over_its_rate_a_key_is_told_when_to_come_back(server: Server, client: httpx.Client) -> None:
    """429-01 with ``Retry-After``, ``RateLimit-Policy`` and ``RateLimit``; another key's requests are unaffected."""
    with holding(server, "--rate", "3/s") as limited:
        wait_for(lambda: limited.get(HEALTH).status_code == 429)
        with ThreadPoolExecutor(8) as pool:
            refused = [a for a in pool.map(lambda _: limited.get(HEALTH), range(8)) if a.status_code == 429]
        assert refused
        for answer in refused:
            error_of(answer, "429-01")
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["ratelimit-policy"] == '"default";q=3;w=1'
            assert answer.headers["ratelimit"].startswith('"default";r=0;t=')
        assert {client.get(HEALTH).status_code for _ in range(10)} == {200}
        wait_for(lambda: limited.get(HEALTH).status_code == 200)


def test_every_answer_to_a_limited_key_tells_what_is_left(server: Server, client: httpx.Client) -> None:
    """The fields stand on successes and on errors; a key without a limit has none."""
    with holding(server, "--rate", "1000/s") as limited:
        for path in (HEALTH, f"{V1}/conversations/{NO_ID}", "/nowhere"):
            answer = limited.get(path)
            assert answer.headers["ratelimit-policy"] == '"default";q=1000;w=1'
            assert 0 <= int(answer.headers["ratelimit"].split(";")[1].removeprefix("r=")) < 1000
    assert "ratelimit" not in client.get(HEALTH).headers
