"""Retries without duplicates: the same Idempotency-Key, and servers and keys that refuse exact repeats."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from tests.harness import ULID, V1, Key, Server, create_conversation, error_of, message, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.stores import Stores

TWINS = 50
UNKNOWN = f"{V1}/conversations/01BX5ZZKBKACTAV9WEVGEMMVRZ/messages"
_keys = itertools.count(1)


class Kind(NamedTuple):
    """Operation 4 or 7: where it is, the body that records a text, the ids in its answer."""

    suffix: str
    body: Callable[[str], dict[str, Any]]
    ids: Callable[[httpx.Response], list[str]]


SINGLE = Kind("", message, lambda answer: [answer.json()["id"]])
BATCH = Kind(
    "/batch",
    lambda text: {"messages": [message(text), message(f"{text} And more.")]},
    lambda answer: list(answer.json()["ids"]),
)
both_kinds = pytest.mark.parametrize("kind", [SINGLE, BATCH], ids=["single", "batch"])


@pytest.fixture
def key_text() -> str:
    """An idempotency key that no other test uses."""
    return f"retry-{next(_keys)}"


@pytest.fixture
def path(client: httpx.Client, external_id: str) -> str:
    """The messages of a conversation of the test's own."""
    return messages_path(client, external_id)


def messages_path(client: httpx.Client, external_id: str) -> str:
    return f"{V1}/conversations/{create_conversation(client, external_id)}/messages"


def send(client: httpx.Client, path: str, key: str | None, body: dict[str, Any]) -> httpx.Response:
    return client.post(path, json=body, headers={} if key is None else {"idempotency-key": key})


def recorded(client: httpx.Client, path: str) -> list[tuple[str, str]]:
    """Id and text of everything in the conversation."""
    answer = client.get(path)
    assert answer.status_code == 200
    return [(item["messageId"], item["text"]) for item in answer.json()["items"]]


def recorded_ids(client: httpx.Client, path: str) -> list[str]:
    return [message_id for message_id, _ in recorded(client, path)]


@contextmanager
def own_client(server: Server, *arguments: str) -> Iterator[httpx.Client]:
    """A client with a key made for the test."""
    with server.client(server.create_key("own", *arguments)) as client:
        yield client


# One key, one request.


@both_kinds
def test_a_retry_with_its_key_gets_the_first_ids(client: httpx.Client, path: str, key_text: str, kind: Kind) -> None:
    """The same key and the same request answer 200 with the first ids; nothing is recorded twice."""
    first, again = (send(client, path + kind.suffix, key_text, kind.body("Hello!")) for _ in range(2))
    assert (first.status_code, again.status_code) == (200, 200)
    assert kind.ids(first) == kind.ids(again) == recorded_ids(client, path)


@both_kinds
def test_twins_in_parallel_get_one_answer(client: httpx.Client, path: str, key_text: str, kind: Kind) -> None:
    """A twin waits for the result of the one still running: fifty at once, one row, one id, fifty times 200."""
    with ThreadPoolExecutor(TWINS) as pool:
        answers = list(pool.map(lambda _: send(client, path + kind.suffix, key_text, kind.body("Hi")), range(TWINS)))
    assert {answer.status_code for answer in answers} == {200}
    assert {tuple(kind.ids(answer)) for answer in answers} == {tuple(recorded_ids(client, path))}


@both_kinds
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_retry_after_a_restart_gets_the_first_ids(
    start: Callable[..., Server], key_text: str, kind: Kind, ending: signal.Signals
) -> None:
    """The key outlives the process, however it ended: the retry is the first request that the next one sees."""
    server = start()
    key = server.create_key("restarted")
    with server.client(key) as client:
        path = messages_path(client, "restarted")
        first = send(client, path + kind.suffix, key_text, kind.body("Hello!"))
    server.stop(ending)
    server.start()
    with server.client(key) as client:
        again = send(client, path + kind.suffix, key_text, kind.body("Hello!"))
        assert again.status_code == 200
        assert kind.ids(first) == kind.ids(again) == recorded_ids(client, path)
        error_of(send(client, path + kind.suffix, key_text, kind.body("Else")), "422-02")


def test_retries_after_kill_9_under_load_store_once(start: Callable[..., Server]) -> None:
    """Killed with requests at every stage: each retried with its key, each text is there once, under its first id."""
    server = start()
    key = server.create_key("killed")
    texts = [f"message {number}" for number in range(400)]
    acknowledged: dict[str, str] = {}

    def attempt(client: httpx.Client, path: str, text: str) -> None:
        try:
            answer = send(client, path, text, message(text))
        except httpx.TransportError:
            return
        acknowledged[text] = answer.json()["id"]

    with server.client(key) as client, ThreadPoolExecutor(16) as pool:
        path = messages_path(client, "killed")
        running = [pool.submit(attempt, client, path, text) for text in texts]
        wait_for(lambda: len(acknowledged) > 50)
        server.kill()
        for future in running:
            future.result()
    assert len(acknowledged) < len(texts), "the kill came too late to matter"
    server.start()
    with server.client(key) as client:
        retried = {text: send(client, path, text, message(text)).json()["id"] for text in texts}
        assert acknowledged.items() <= retried.items()
        assert sorted(recorded(client, path)) == sorted((message_id, text) for text, message_id in retried.items())


def test_an_answer_lost_on_its_way_is_given_again(
    server: Server, key: Key, client: httpx.Client, path: str, key_text: str
) -> None:
    """The connection ends after the commit and before the answer is read: the retry gets the id of the one row."""
    body = json.dumps(message("lost")).encode()
    fields = key.headers | {"host": "turnlog", "content-type": "application/json", "idempotency-key": key_text}
    head = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
    with server.connection() as connection:
        connection.sendall("\r\n".join([*head, f"content-length: {len(body)}", "", ""]).encode() + body)
    wait_for(lambda: recorded(client, path))
    again = send(client, path, key_text, message("lost"))
    assert recorded(client, path) == [(again.json()["id"], "lost")]


def test_the_same_request_in_other_words_is_the_same(client: httpx.Client, path: str, key_text: str) -> None:
    """What counts is what a request means: the instant, not its spelling; the id, not its type; no unknown field."""
    sender: dict[str, Any] = {"role": "agent", "externalId": 7}
    first = send(client, path, key_text, message("Hi", sender=sender, timestamp="2021-11-23T12:13:14.5Z"))
    sender = {"externalId": "7", "role": "agent", "mood": "good"}
    for spelling in ("2021-11-23t13:13:14.500+01:00", "2021-11-23T12:13:14.500000", "2021-11-23T12:13:14.5000009z"):
        again = send(client, path, key_text, message("Hi", sender=sender, timestamp=spelling, unknown=1))
        assert (again.status_code, again.text) == (200, first.text)
    assert len(recorded(client, path)) == 1


@pytest.mark.parametrize("other", [
    {"text": "Hello"}, {"text": "Hello!!"}, {"timestamp": "2021-11-23T12:13:14.556Z"},
    {"sender": {"role": "agent", "externalId": "jane"}}, {"sender": {"role": "customer", "externalId": "Jane"}},
])  # fmt: skip
def test_another_request_under_the_key_is_422_02(
    client: httpx.Client, path: str, key_text: str, other: dict[str, Any]
) -> None:
    """Another text, sender or instant under a used key is refused and not recorded; the first stays retriable."""
    first = send(client, path, key_text, message())
    error_of(send(client, path, key_text, message() | other), "422-02")
    assert send(client, path, key_text, message()).text == first.text
    assert len(recorded(client, path)) == 1


def test_another_operation_or_conversation_under_the_key_is_422_02(
    client: httpx.Client, path: str, external_id: str, key_text: str
) -> None:
    """One message and a batch of that message are two requests, and so are two conversations, and two orders."""
    batch = {"messages": [message("a"), message("b")]}
    elsewhere = messages_path(client, f"{external_id} elsewhere")
    assert send(client, path, key_text, message("a")).status_code == 200
    error_of(send(client, f"{path}/batch", key_text, {"messages": [message("a")]}), "422-02")
    error_of(send(client, elsewhere, key_text, message("a")), "422-02")
    assert send(client, f"{path}/batch", f"{key_text} batch", batch).status_code == 200
    error_of(send(client, f"{path}/batch", f"{key_text} batch", {"messages": batch["messages"][::-1]}), "422-02")
    error_of(send(client, f"{path}/batch", f"{key_text} batch", {"messages": batch["messages"][:1]}), "422-02")
    assert [text for _, text in recorded(client, path)] == ["a", "a", "b"]
    assert recorded(client, elsewhere) == []


def test_without_a_key_every_request_is_a_new_message(client: httpx.Client, path: str) -> None:
    """As documented: the same request twice is two messages, unless its key or its server refuses repeats."""
    ids = [send(client, path, None, message()).json()["id"] for _ in range(3)]
    assert recorded_ids(client, path) == ids
    assert len(set(ids)) == 3


# What a key is.


def test_keys_are_the_accounts_own(server: Server, client: httpx.Client, path: str, key_text: str) -> None:
    """Another account's equal key is another key; another API key of the same account has the same one."""
    mine = send(client, path, key_text, message())
    with own_client(server, "--account", "keys of another account") as stranger:
        theirs_path = messages_path(stranger, "keys")
        theirs = send(stranger, theirs_path, key_text, message("different"))
        assert recorded(stranger, theirs_path) == [(theirs.json()["id"], "different")]
    with own_client(server) as colleague:
        assert send(colleague, path, key_text, message()).text == mine.text
    assert len(recorded(client, path)) == 1


@pytest.mark.parametrize(("bare", "quoted"), [("k", '"k"'), ("a b", '"a b"'), ('a"b', r'"a\"b"'), ("a\\b", r'"a\\b"')])
def test_quoted_and_bare_are_the_same_key(
    client: httpx.Client, path: str, key_text: str, bare: str, quoted: str
) -> None:
    """A structured-field string and the bare characters spell one key."""
    first = send(client, path, f"{key_text} {bare}", message())
    assert send(client, path, f'"{key_text} {quoted[1:]}', message()).text == first.text
    assert len(recorded(client, path)) == 1


@pytest.mark.parametrize("quotes", ["", '"'])
def test_a_key_has_1_to_255_characters(client: httpx.Client, path: str, external_id: str, quotes: str) -> None:
    """The shortest and the longest key, quoted and bare, and every printable character."""
    printable = "".join(map(chr, range(0x21, 0x7F)))
    escaped = re.sub(r'(["\\])', r"\\\1", printable) if quotes else printable[printable.index("#") :]
    for text in ("~" if quotes else "!", external_id.ljust(255, "x"), external_id + escaped):
        answer = send(client, path, f"{quotes}{text}{quotes}", message(path))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("value", [
    b"", b'""', b"x" * 256, b'"' + b"x" * 256 + b'"', b'"open', b'"a"b"', b'"a" "b"', b'"a\\n"',
    b"\xc3\xa4", b'"\xe4"', b"tab\tinside", b'"tab\t"',
], ids=repr)  # fmt: skip
@both_kinds
def test_a_malformed_key_is_400_02(client: httpx.Client, path: str, value: bytes, kind: Kind) -> None:
    """Nothing is recorded under a key that is empty, too long, not printable ASCII or not closed."""
    answer = client.post(path + kind.suffix, json=kind.body("Hi"), headers=[(b"idempotency-key", value)])
    assert "Idempotency-Key" in error_of(answer, "400-02")
    assert recorded(client, path) == []


def test_two_keys_on_one_request_are_400_02(client: httpx.Client, path: str) -> None:
    """Sent twice, even with one value, it is not a key."""
    twice = [("idempotency-key", "same"), ("idempotency-key", "same")]
    error_of(client.post(path, json=message(), headers=twice), "400-02")


# Refusals do not use up a key.


@pytest.mark.parametrize(("code", "refused"), [
    ("400-03", {"text": ""}), ("422-01", {"text": "\0"}), ("400-03", {"timestamp": "today"}),
    ("422-01", {"timestamp": "0000-06-01T00:00:00Z"}), ("422-01", {"sender": {"role": "agent", "externalId": "\0"}}),
])  # fmt: skip
def test_a_refused_request_leaves_its_key_unused(
    client: httpx.Client, path: str, key_text: str, code: str, refused: dict[str, Any]
) -> None:
    """After a 4xx the corrected request may come under the same key."""
    error_of(send(client, path, key_text, message() | refused), code)
    error_of(send(client, f"{path}/batch", key_text, {"messages": [message(), message() | refused]}), code)
    error_of(send(client, UNKNOWN, key_text, message()), "404-01")
    good = send(client, path, key_text, message())
    assert recorded_ids(client, path) == [good.json()["id"]]


def test_a_rate_limited_request_leaves_its_key_unused(
    server: Server, client: httpx.Client, path: str, key_text: str
) -> None:
    """After a 429 another request may come under the same key, and what was refused is not there."""
    with own_client(server, "--rate", "2/s") as slow:
        wait_for(lambda: slow.get("/v1/health").status_code == 429)
        error_of(send(slow, path, key_text, message("refused")), "429-01")
    assert send(client, path, key_text, message("other")).status_code == 200
    assert [text for _, text in recorded(client, path)] == ["other"]


def test_an_overloaded_server_refuses_before_it_queues(start: Callable[..., Server]) -> None:
    """503-01 with ``Retry-After``: certainly not stored, the key unused; retried one by one, each is there once."""
    server = start(environment={"TURNLOG_MAX_QUEUED_MESSAGES": "1"})
    key = server.create_key("overload")
    bodies = {f"burst-{n}": {"messages": [message(f"{n}/{i}") for i in range(100)]} for n in range(60)}

    async def burst(path: str) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=len(bodies))
        async with httpx.AsyncClient(base_url=server.base, headers=key.headers, limits=limits, timeout=30) as client:
            sent = (client.post(path, json=body, headers={"idempotency-key": k}) for k, body in bodies.items())
            return list(await asyncio.gather(*sent))

    with server.client(key) as client:
        path = messages_path(client, "overload")
        answers = asyncio.run(burst(f"{path}/batch"))
        refused = [answer for answer in answers if answer.status_code != 200]
        assert refused, "the queue was never full"
        for answer in refused:
            error_of(answer, "503-01")
            assert int(answer.headers["retry-after"]) >= 1
        assert len(recorded(client, path)) == 100 * (len(bodies) - len(refused))
        for key_text, body in bodies.items():
            assert send(client, f"{path}/batch", key_text, body).status_code == 200
        assert sorted(text for _, text in recorded(client, path)) == sorted(
            item["text"] for body in bodies.values() for item in body["messages"]
        )


# Exact repeats, refused.


@pytest.fixture(scope="module", params=["by key", "by setting"])
def refusing(request: pytest.FixtureRequest, stores: Stores, server: Server) -> Iterator[httpx.Client]:
    """A client whose exact repeats are refused: by its key, or by its server."""
    if request.param == "by key":
        with own_client(server, "--refuse-repeats", "--account", "refusing") as client:
            yield client
        return
    with Server(stores.new(), environment={"TURNLOG_REFUSE_REPEATS": "true"}) as other, own_client(other) as client:
        yield client


def test_an_exact_repeat_is_409_01_naming_the_recorded_id(refusing: httpx.Client, external_id: str) -> None:
    """The same conversation, role, sender, instant and text: refused, whichever way the instant is spelled."""
    path = messages_path(refusing, external_id)
    first = send(refusing, path, None, message()).json()["id"]
    for spelling in ("2021-11-23T12:13:14.555Z", "2021-11-23T13:13:14.555+01:00"):
        assert first in error_of(send(refusing, path, None, message(timestamp=spelling)), "409-01")
    assert recorded_ids(refusing, path) == [first]


def test_what_differs_in_anything_is_no_repeat(refusing: httpx.Client, external_id: str) -> None:
    """Another text, role, sender, instant or conversation is another message; so is canonically equal Unicode."""
    path, elsewhere = (messages_path(refusing, f"{external_id} {place}") for place in ("here", "elsewhere"))
    bodies = [message("é"), message("e\u0301"), message("é "), message("é", timestamp="2021-11-23T12:13:14.555001Z")]
    bodies += [message("é", sender={"role": role, "externalId": "joe"}) for role in ("agent", "customer", "system")]
    assert [send(refusing, path, None, body).status_code for body in bodies] == [200] * len(bodies)
    assert [send(refusing, elsewhere, None, body).status_code for body in bodies] == [200] * len(bodies)


def test_repeats_in_parallel_leave_one_row(refusing: httpx.Client, external_id: str) -> None:
    """Enforced by the store: of fifty at once one is recorded and forty-nine are told its id."""
    path = messages_path(refusing, external_id)
    with ThreadPoolExecutor(TWINS) as pool:
        answers = list(pool.map(lambda _: send(refusing, path, None, message()), range(TWINS)))
    ids = recorded_ids(refusing, path)
    assert [answer.json()["id"] for answer in answers if answer.status_code == 200] == ids
    assert all(ids[0] in error_of(answer, "409-01") for answer in answers if answer.status_code != 200)


def test_a_batch_with_some_repeats_records_the_rest(refusing: httpx.Client, external_id: str) -> None:
    """200 with the earlier ids in their places; a batch of nothing but repeats adds nothing and is 409-01."""
    path = messages_path(refusing, external_id)
    b = send(refusing, path, None, message("b")).json()["id"]
    batch = {"messages": [message("a"), message("b"), message("c"), message("a"), message("b")]}
    ids = send(refusing, f"{path}/batch", None, batch).json()["ids"]
    assert recorded(refusing, path) == [(b, "b"), (ids[0], "a"), (ids[2], "c")]
    assert ids == [ids[0], b, ids[2], ids[0], b]
    assert all(ULID.fullmatch(message_id) for message_id in ids)
    told = error_of(send(refusing, f"{path}/batch", None, batch), "409-01")
    assert all(message_id in told for message_id in ids)
    assert len(recorded(refusing, path)) == 3


def test_a_retry_is_no_repeat(refusing: httpx.Client, external_id: str, key_text: str) -> None:
    """A retry with its key gets 200 and the first id; a refused repeat does not use up the key that it came with."""
    path = messages_path(refusing, external_id)
    first = send(refusing, path, f"{external_id} {key_text}", message())
    assert send(refusing, path, f"{external_id} {key_text}", message()).text == first.text
    error_of(send(refusing, path, f"{external_id} other", message()), "409-01")
    assert send(refusing, path, f"{external_id} other", message("new")).status_code == 200
    assert len(recorded(refusing, path)) == 2
