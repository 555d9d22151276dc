"""Operations 1, 2, 3 and 9: conversations are created, updated and found; authentications leave no secret."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import ULID, V1, Server, conversation, create_conversation, error_of, message
from tests.stores import files, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import httpx

    from tests.stores import Stores

URL = f"{V1}/conversations"
CALLERS = 50
CANARY = "canary-3f9b0c"


def put(client: httpx.Client, external_id: Any, **changes: Any) -> httpx.Response:
    return client.post(URL, json=conversation("unused", **changes) | {"externalId": external_id})


def read(client: httpx.Client, conversation_id: str) -> dict[str, Any]:
    answer = client.get(f"{URL}/{conversation_id}")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def find(client: httpx.Client, external_id: str) -> list[dict[str, Any]]:
    answer = client.get(URL, params={"externalId": external_id})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"items"}
    return list(answer.json()["items"])


# Creating and reading.


def test_a_new_conversation_is_200_with_its_id_and_nothing_else(client: httpx.Client, external_id: str) -> None:
    """Creation answers 200, never 201, with a ULID of the server's."""
    answer = client.post(URL, json=conversation(external_id))
    assert answer.status_code == 200
    assert set(answer.json()) == {"id"}
    assert ULID.fullmatch(answer.json()["id"])


def test_a_conversation_reads_as_it_was_given(client: httpx.Client, external_id: str) -> None:
    """By id and by external id: the documented fields as given; agent, names and metadata only where they are known."""
    plain = create_conversation(client, external_id)
    assert read(client, plain) == {"id": plain, "externalId": external_id, "customer": {"externalId": "jane"}}
    everything: dict[str, Any] = {
        "customer": {"externalId": "e\u0301\u202e ", "name": "Jane 👩\u200d👧 Doe"},
        "agent": {"externalId": "joe", "name": ""},
        "metadata": {"": "", "e\u0301": "\u00e9 ", "queue": "x" * 4096, "k" * 255: "\n"},
    }
    full = create_conversation(client, f"{external_id} full", **everything)
    expected = {"id": full, "externalId": f"{external_id} full"} | everything
    assert read(client, full) == expected
    assert find(client, f"{external_id} full") == [expected]


def test_an_unknown_conversation(client: httpx.Client, external_id: str) -> None:
    """The search yields an empty list, the single read 404-01; external ids are compared to the byte."""
    create_conversation(client, f"{external_id} \u00e9")
    for other in (external_id, f"{external_id} e\u0301", f"{external_id} \u00e9 ", f"{external_id} \u00c9", "%", ""):
        assert find(client, other) == []
    error_of(client.get(f"{URL}/01BX5ZZKBKACTAV9WEVGEMMVRZ"), "404-01")


@pytest.mark.parametrize(
    "text", ["a/b?c=d&e#f", "a+b c", "100%", "é\u0301👩\u200d👧", " ", "x" * 255, '"\\', "' OR 1=1 --", "a\nb"]
)
def test_any_external_id_is_found_again(client: httpx.Client, external_id: str, text: str) -> None:
    """Whatever the characters, percent-encoded in the query, to the limit of 255."""
    wanted = (text + external_id)[-255:] if len(text) == 255 else text + external_id
    conversation_id = create_conversation(client, wanted)
    assert [found["id"] for found in find(client, wanted)] == [conversation_id]
    assert client.get(f"{V1}/conversation/messages", params={"externalId": wanted}).json() == {"items": []}


def test_an_empty_external_id_is_an_external_id(client: httpx.Client) -> None:
    """The schema asks for a string; the empty one names a conversation like any other."""
    conversation_id = create_conversation(client, "", customer={"externalId": ""}, agent={"externalId": ""})
    [found] = find(client, "")
    assert (found["id"], found["customer"], found["agent"]) == (conversation_id, {"externalId": ""}, {"externalId": ""})
    assert create_conversation(client, "") == conversation_id


@pytest.mark.parametrize("number", [123, 0, -5, 2**64, 10**254])
def test_an_integer_external_id_is_its_decimal_string(client: httpx.Client, number: int) -> None:
    """As the published example sends it: 123 and "123" are one conversation, one customer, one agent."""
    text = str(number)
    participants = {"customer": {"externalId": number}, "agent": {"externalId": number}}
    conversation_id = put(client, number, **participants).json()["id"]
    assert put(client, text).json()["id"] == conversation_id
    [found] = find(client, text)
    assert (found["externalId"], found["agent"]) == (text, {"externalId": text})


def test_what_no_schema_knows_is_ignored(client: httpx.Client, external_id: str) -> None:
    """Unknown fields are neither stored nor returned."""
    unknown = {"createdTimestamp": 1, "items": [], "__proto__": {"a": 1}, "account": "other"}
    conversation_id = create_conversation(client, external_id, customer={"externalId": "jane", "vip": True}, **unknown)
    assert read(client, conversation_id) == {
        "id": conversation_id,
        "externalId": external_id,
        "customer": {"externalId": "jane"},
    }


# Updating.

JANE = {"externalId": "jane", "name": "Jane"}
JOE = {"externalId": "joe", "name": "Joe"}
UPDATES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("nothing but what is required", {"customer": {"externalId": "jane"}}, {}),
    ("the same customer's other name", {"customer": {"externalId": "jane", "name": "J."}},
     {"customer": {"externalId": "jane", "name": "J."}}),
    ("an empty name", {"agent": {"externalId": "joe", "name": ""}}, {"agent": {"externalId": "joe", "name": ""}}),
    ("another customer", {"customer": {"externalId": "june"}}, {"customer": {"externalId": "june"}}),
    ("the same agent without a name", {"agent": {"externalId": "joe"}}, {}),
    ("another agent", {"agent": {"externalId": "jim"}}, {"agent": {"externalId": "jim"}}),
    ("another agent with a name", {"agent": {"externalId": "jim", "name": "Jim"}},
     {"agent": {"externalId": "jim", "name": "Jim"}}),
    ("other metadata", {"metadata": {"b": "2"}}, {"metadata": {"b": "2"}}),
    ("empty metadata", {"metadata": {}}, {"metadata": {}}),
]  # fmt: skip


@pytest.mark.parametrize(("given", "replaced"), [case[1:] for case in UPDATES], ids=[case[0] for case in UPDATES])
def test_a_field_given_replaces_and_one_left_out_stays(
    client: httpx.Client, external_id: str, given: dict[str, Any], replaced: dict[str, Any]
) -> None:
    """A name stays as long as its participant's ``externalId`` is the same, and goes with them; the id stays."""
    before: dict[str, Any] = {"customer": JANE, "agent": JOE, "metadata": {"a": "1", "b": "1"}}
    conversation_id = create_conversation(client, external_id, **before)
    assert create_conversation(client, external_id, **{"customer": {"externalId": "jane"}, **given}) == conversation_id
    expected = {"id": conversation_id, "externalId": external_id} | before | replaced
    assert read(client, conversation_id) == expected
    assert find(client, external_id) == [expected]


def test_an_update_may_add_what_was_not_known(client: httpx.Client, external_id: str) -> None:
    """Agent, names and metadata may come later; messages stay where they are."""
    conversation_id = create_conversation(client, external_id)
    path = f"{URL}/{conversation_id}/messages"
    assert client.post(path, json=message()).status_code == 200
    later = {"customer": JANE, "agent": JOE, "metadata": {"a": "1"}}
    create_conversation(client, external_id, timestamp="1999-01-01T00:00:00Z", **later)
    assert read(client, conversation_id) == {"id": conversation_id, "externalId": external_id} | later
    assert len(client.get(path).json()["items"]) == 1


# Ids given.


def test_an_id_given_becomes_the_conversations_id(client: httpx.Client, external_id: str) -> None:
    """On creation; given again with the same external id, or left out, it is the same conversation."""
    wanted = f"OURS{external_id.rpartition('-')[2]}"
    assert create_conversation(client, external_id, id=wanted) == wanted
    assert create_conversation(client, external_id, id=wanted) == wanted
    assert create_conversation(client, external_id) == wanted
    assert read(client, wanted)["externalId"] == external_id
    longest = wanted.ljust(255, "X")
    assert create_conversation(client, f"{external_id} long", id=longest) == longest
    assert client.post(f"{URL}/{longest}/messages", json=message()).status_code == 200


def test_an_id_that_contradicts_is_409_01_and_changes_nothing(client: httpx.Client, external_id: str) -> None:
    """An id of another conversation, and another id for a known external id; the refused update is not made."""
    first, second = (create_conversation(client, f"{external_id} {n}", agent=JOE) for n in ("first", "second"))
    before = read(client, first), read(client, second)
    refused = [(f"{external_id} new", first), (f"{external_id} second", first), (f"{external_id} first", "NEVERSEEN")]
    change = {"customer": {"externalId": "intruder"}, "metadata": {"a": "1"}}
    for name, wanted in refused:
        assert "[Path '/id']" in error_of(put(client, name, id=wanted, **change), "409-01")
    assert (read(client, first), read(client, second)) == before
    assert find(client, f"{external_id} new") == []
    error_of(client.get(f"{URL}/NEVERSEEN"), "404-01")


# Concurrency.


def test_concurrent_creations_yield_one_conversation(client: httpx.Client, external_id: str) -> None:
    """Fifty at once for one external id: fifty times 200, one conversation, one id; no field given is lost."""
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda n: put(client, external_id, metadata={"n": str(n)}), range(CALLERS)))
    assert {answer.status_code for answer in answers} == {200}
    [found] = find(client, external_id)
    assert {answer.json()["id"] for answer in answers} == {found["id"]}
    assert int(found["metadata"]["n"]) in range(CALLERS)


def test_concurrent_creations_with_one_id_yield_one_conversation(client: httpx.Client, external_id: str) -> None:
    """Fifty external ids that want one id: one gets it, forty-nine get 409-01."""
    wanted = f"WANTED{external_id.rpartition('-')[2]}"
    names = [f"{external_id} {n}" for n in range(CALLERS)]
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(pool.map(lambda name: put(client, name, id=wanted), names))
    [winner] = [name for name, answer in zip(names, answers, strict=True) if answer.status_code == 200]
    for answer in answers:
        assert answer.status_code == 200 or error_of(answer, "409-01")
    assert [found["id"] for name in names for found in find(client, name)] == [wanted]
    assert read(client, wanted)["externalId"] == winner


# Authenticate.

FORMS: dict[str, tuple[dict[str, Any], str]] = {
    "token": ({"auth": {"token": CANARY}}, "token"),
    "body": ({"auth": {"body": {"user": CANARY, "deep": [{CANARY: 1}]}}}, "body"),
    "cookies": ({"auth": {"cookies": {"session": CANARY}}}, "cookies"),
    "headers": ({"auth": {"headers": {"authorization": CANARY, CANARY: None}}}, "headers"),
    "all": ({"auth": {"body": {}, "cookies": {"a": CANARY}, "headers": {}, "token": CANARY}, "streamId": "stream-1"},
            "body cookies headers token"),
    "the published example": ({"token": CANARY}, "token"),
    "unknown fields": ({"auth": {"token": CANARY, "other": CANARY}, "secret": CANARY, "token": CANARY}, "token"),
}  # fmt: skip


def test_authenticating_leaves_the_fact_and_no_credentials(start: Callable[..., Server]) -> None:
    """204 without a body; who, which parts and which stream are kept; no credential is on disk, logged or echoed."""
    server = start(environment={"TURNLOG_LOG_REQUESTS": "all", "TURNLOG_LOG_LEVEL": "debug"})
    with server.client(server.create_key("authenticating")) as client:
        url = f"{URL}/{create_conversation(client, 'authenticated')}/authenticate"
        for name, (form, _) in FORMS.items():
            answer = client.post(url, json={"customerExternalId": name} | form)
            assert (answer.status_code, answer.content) == (204, b"")
        for refused in (f'{{"auth":"{CANARY}', f'{{"customerExternalId":1.5,"auth":{{"body":"{CANARY}"}}}}'):
            answer = client.post(url, content=refused, headers={"content-type": "application/json"})
            assert answer.status_code == 400
            assert CANARY not in answer.text
        unknown = {"customerExternalId": "x", "auth": {"token": CANARY}}
        error_of(client.post(f"{URL}/UNKNOWN/authenticate", json=unknown), "404-01")
    for end in (lambda: None, server.stop):
        end()
        kept = b"".join(path.read_bytes() for path in files(server.url))
        assert b"the published example" in kept
        assert CANARY.encode() not in kept
    assert CANARY not in "\n".join(server.log_lines)
    facts = rows(server.url, "SELECT customer, parts, stream_id FROM authentication ORDER BY number")
    assert facts == [(name, parts, form.get("streamId")) for name, (form, parts) in FORMS.items()]


# Leniency off.


@pytest.fixture(scope="module")
def strict(stores: Stores) -> Iterator[httpx.Client]:
    """A client of a server with leniency off."""
    with Server(stores.new(), environment={"TURNLOG_LENIENT": "false"}) as other, _client(other) as client:
        yield client


def _client(server: Server) -> AbstractContextManager[httpx.Client]:
    return server.client(server.create_key("strict"))


@pytest.mark.parametrize(("place", "changes"), [
    ("/externalId", {"externalId": 123}), ("/customer/externalId", {"customer": {"externalId": 123}}),
    ("/agent/externalId", {"agent": {"externalId": 123}}),
])  # fmt: skip
def test_without_leniency_a_conversations_ids_are_strings(
    strict: httpx.Client, external_id: str, place: str, changes: dict[str, Any]
) -> None:
    """An integer where the schema has a string is 400-03 then; the string is accepted."""
    told = error_of(strict.post(URL, json=conversation(external_id) | changes), "400-03")
    assert f"[Path '{place}']" in told
    assert put(strict, external_id).status_code == 200


def test_without_leniency_messages_and_authentications_are_as_published(strict: httpx.Client, external_id: str) -> None:
    """Integer senders, integer customers and a token at top level are 400-03 then."""
    path = f"{URL}/{create_conversation(strict, external_id)}"
    number = message(sender={"role": "agent", "externalId": 1})
    assert "/sender/externalId" in error_of(strict.post(f"{path}/messages", json=number), "400-03")
    assert "/messages/1/sender" in error_of(
        strict.post(f"{path}/messages/batch", json={"messages": [message(), number]}), "400-03"
    )
    for body in ({"customerExternalId": 1, "auth": {"token": "t"}}, {"customerExternalId": "1", "token": "t"}):
        error_of(strict.post(f"{path}/authenticate", json=body), "400-03")
    good = {"customerExternalId": "1", "auth": {"token": "t"}, "token": "ignored"}
    assert strict.post(f"{path}/authenticate", json=good).status_code == 204
    assert strict.get(f"{path}/messages").json() == {"items": []}
