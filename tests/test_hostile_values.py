"""J01, J09, S03, S08. Every place where a caller can put a value, with the values that break programs in it: an answer
of the contract's, never a 5xx, and what was accepted comes back as it was.
"""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.harness import V1, Server, conversation, create_conversation, error_of, make_key, message
from tests.test_errors import changed
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

ACCEPTED = {200, 204}
REFUSED = {400, 404, 409, 410, 413, 422}
_numbers = itertools.count(1)

NASTY: tuple[Any, ...] = (
    "",
    "\0",
    "a\0b",
    "\x01\x1f\x7f",
    "\u202e\u2066",
    "👩\u200d👩",
    "e\u0301",
    "\ufeff",
    "\uffff",
    "\U0010ffff",
    "x" * 255,
    "x" * 256,
    "x" * 70_000,
    "☃" * 255,
    "'; DROP TABLE message; --",
    "\\",
    '"',
    "%s%n{0}",
    "../../etc/passwd",
    "__proto__",
    "constructor",
    "null",
    "NaN",
    "0000-00-00T00:00:00Z",
    "9999-12-31T23:59:60Z",
    "2016-12-31T23:59:60Z",
    None,
    True,
    0,
    -1,
    123,
    2**53 + 1,
    2**63,
    2**64,
    10**30,
    10**300,
    1.5,
    1e308,
    [],
    [None],
    {},
    {"$gt": ""},
    {"__proto__": {}},
)


def bodies(external_id: str) -> dict[str, tuple[str, str, dict[str, Any]]]:
    """Method, path and body of every operation that takes one."""
    number = next(_numbers)
    full = conversation(external_id, agent={"externalId": "a", "name": "A"}, metadata={"k": "v"})
    full["customer"]["name"] = "C"
    webhook = {"url": "https://receiver.example/", "description": "d", "types": ["message.created"]}
    return {
        "create_conversation": ("POST", f"{V1}/conversations", full | {"id": f"ID{number}"}),
        "create_message": ("POST", f"{V1}/conversations/{{id}}/messages", message()),
        "create_messages": ("POST", f"{V1}/conversations/{{id}}/messages/batch", {"messages": [message(), message()]}),
        "authenticate": (
            "POST",
            f"{V1}/conversations/{{id}}/authenticate",
            {
                "customerExternalId": "jane",
                "auth": {"token": "t", "headers": {"h": "v"}, "body": {}, "cookies": {}},
                "streamId": "s",
            },
        ),
        "create_webhook": ("POST", "/turnlog/v1/webhooks", webhook),
    }


def pointers(value: Any, at: str = "") -> Iterator[str]:
    """Every place in a body, the body itself included."""
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in inside:
        yield from pointers(inner, f"{at}/{name}")


@pytest.fixture(scope="module")
def anyone(server: Server) -> Iterator[httpx.Client]:
    """A client that may do everything."""
    with server.client(make_key(server.url, "hostile", "hostile", tuple(PERMISSIONS))) as client:
        yield client


@pytest.mark.parametrize("name", list(bodies("")))
def test_no_value_in_any_place_of_a_body_breaks_anything(anyone: httpx.Client, external_id: str, name: str) -> None:
    """In the values and, in maps, in the names; each as it is and as JSON escapes."""
    made = create_conversation(anyone, external_id)
    method, path, body = bodies(external_id)[name]
    raw = json.dumps(body).encode()
    created = []
    for pointer, value in itertools.product(pointers(body), NASTY):
        answer = _send(anyone, method, path.format(id=made), changed(raw, pointer, value))
        assert answer.status_code in ACCEPTED | REFUSED, (pointer, value, answer.text)
        if name == "create_webhook" and answer.status_code == 200:
            created.append(answer.json()["id"])
            anyone.delete(f"/turnlog/v1/webhooks/{created.pop()}")
    for value in (one for one in NASTY if isinstance(one, str)):
        for pointer in pointers(body):
            inside = _at(body, pointer)
            if not isinstance(inside, dict):
                continue
            odd = json.loads(raw)
            _at(odd, pointer)[value] = "x"
            answer = _send(anyone, method, path.format(id=made), json.dumps(odd).encode())
            assert answer.status_code in ACCEPTED | REFUSED, (pointer, value, answer.text)
            if name == "create_webhook" and answer.status_code == 200:
                anyone.delete(f"/turnlog/v1/webhooks/{answer.json()['id']}")
    assert anyone.get(f"{V1}/conversations/{made}/messages").status_code == 200
    assert anyone.get("/turnlog/v1/changes").status_code == 200


def _send(client: httpx.Client, method: str, path: str, raw: bytes) -> httpx.Response:
    return client.request(method, path, content=raw, headers={"content-type": "application/json"})


def _at(value: Any, pointer: str) -> Any:
    for name in pointer.split("/")[1:]:
        value = value[int(name) if isinstance(value, list) else name]
    return value


BYTES = (
    b"\0",
    b"%00",
    b"%ff",
    b"%c0%80",
    b"%ed%a0%80",
    b"%f4%90%80%80",
    b"%zz",
    b"%",
    b"a%00b",
    b"%e2%98%83",
    b"+",
    b"%2B",
    b"x" * 300,
    b"x" * 7000,
    b"=",
    b"&",
    b"%26",
    b";",
    b"%0d%0a",
    b"%1b",
    b"..",
    b"%27%20OR%201=1",
    b"-1",
    b"0",
    b"1e3",
    b"99999999999999999999",
    b"AAAA",
)
QUERIES = (
    f"{V1}/conversations?externalId=",
    f"{V1}/conversation/messages?externalId=",
    f"{V1}/conversation/messages?externalId=x&limit=",
    f"{V1}/conversation/messages?externalId=x&after=",
    "/turnlog/v1/changes?after=",
    "/turnlog/v1/changes?limit=",
    "/turnlog/v1/changes?types=",
    "/turnlog/v1/changes?conversationId=",
    "/turnlog/v1/changes?externalId=",
    "/turnlog/v1/changes?wait=",
    "/turnlog/v1/changes?unknown=",
    f"{V1}/conversations/",
    f"{V1}/conversations/ABC/messages/",
    "/turnlog/v1/webhooks/",
)


@pytest.mark.parametrize("query", QUERIES)
def test_no_value_in_a_target_breaks_anything(anyone: httpx.Client, query: str) -> None:
    """In every parameter and every id of a path; SQL, NUL, broken escapes, broken UTF-8."""
    for value in BYTES:
        target = query + quote(value, safe="%&=+;.-")
        answer = anyone.get(target)
        assert answer.status_code in ACCEPTED | REFUSED, (target, answer.text)


@pytest.mark.parametrize(
    "name", ["idempotency-key", "last-event-id", "accept", "content-type", "expect", "asapp-api-id"]
)
def test_no_value_of_a_header_breaks_anything(anyone: httpx.Client, external_id: str, name: str) -> None:
    path = f"{V1}/conversations/{create_conversation(anyone, external_id)}/messages"
    values = (
        b"",
        b'"',
        b'""',
        b'"a',
        b"a b",
        b"\xff\xfe",
        b"x" * 255,
        b"x" * 256,
        b"x" * 9000,
        b'"' + b"x" * 255 + b'"',
        b"%00",
        b"text/event-stream;q=0",
    )
    for value in values:
        headers = [(name.encode(), value)]
        if name != "content-type":
            headers.append((b"content-type", b"application/json"))
        answer = anyone.post(path, content=json.dumps(message()), headers=headers)
        assert answer.status_code in ACCEPTED | REFUSED | {401, 415}, (value, answer.text)
        headers.append((b"accept", b"text/event-stream"))
        if name != "accept":
            with anyone.stream("GET", "/turnlog/v1/changes", headers=headers) as stream:
                assert stream.status_code in ACCEPTED | REFUSED | {401}, value


LEAP_SECONDS = [f"{year}-06-30" for year in (1972, 1981, 1982, 1983, 1985, 1992, 1993, 1994, 1997, 2012, 2015)] + [
    f"{year}-12-31"
    for year in (1972, 1973, 1974, 1975, 1976, 1977, 1978, 1979, 1987, 1989, 1990, 1995, 1998, 2005, 2008, 2016)
]


def test_each_leap_second_that_there_was_is_the_microsecond_before_it_and_no_other_is(
    client: httpx.Client, external_id: str
) -> None:
    """S08: the 27 of Bulletin C, in zones that move them to other days and hours; no other half year's."""
    path = f"{V1}/conversations/{create_conversation(client, external_id)}/messages"
    for day in LEAP_SECONDS:
        for text in (f"{day}T23:59:60Z", f"{day}t22:29:60.999999999999999-01:30", f"{day}T23:59:60.0"):
            made = client.post(path, json=message(timestamp=text))
            assert made.status_code == 200, text
            kept = client.get(f"{path}/{made.json()['id']}").json()["clientTimestamp"]
            assert kept == f"{day}T23:59:59.999999Z"
    for year in range(1970, 2031):
        for day in (f"{year}-06-30", f"{year}-12-31"):
            if day not in LEAP_SECONDS:
                assert client.post(path, json=message(timestamp=f"{day}T23:59:60Z")).status_code == 400, day


@pytest.mark.parametrize(
    ("one", "count"),
    [(b"0", 1), (b'""', 1), (b'"a,[\\"{"', 1), (b"[]", 2), (b'{"":0}', 2), (b"[[[]]]", 4)],
    ids=lambda one: one.decode() if isinstance(one, bytes) else "",
)
def test_more_values_than_a_body_may_have_are_400_01(client: httpx.Client, one: bytes, count: int) -> None:
    """J01, O08: each would be an object of the server's. As many as there may be are accepted, and ignored."""
    path = f"{V1}/conversations/{create_conversation(client, f'values {next(_numbers)}')}/messages/batch"
    headers = {"content-type": "application/json"}
    for values, code in ((90_000, None), (130_000, "400-01")):
        unknown = b",".join([one] * (values // count))
        body = json.dumps({"messages": [message("x")]}).encode()[:-1] + b',"unknown":[' + unknown + b"]}"
        answer = client.post(path, content=body, headers=headers)
        if code is None:
            assert answer.status_code == 200, answer.text
        else:
            assert "over 100,000 values" in error_of(answer, code)


def test_a_text_may_be_full_of_what_json_is_made_of(client: httpx.Client) -> None:
    """S03: only what stands outside of strings is counted."""
    path = f"{V1}/conversations/{create_conversation(client, f'values {next(_numbers)}')}/messages/batch"
    text = '[{,"\\' * 1000
    answer = client.post(path, json={"messages": [message(text) | {"unknown": 1}] * 100})
    assert answer.status_code == 200, answer.text
