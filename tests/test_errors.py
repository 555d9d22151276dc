"""Every error by its real cause: its code, the envelope around it, and which of several faults a request hears of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import ULID, V1, conversation, create_conversation, error_of, message, parse_response, wait_for
from turnlog.http.operations import OPERATIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness import Key, Server

LIMIT = 1024 * 1024
BATCH_LIMIT = 8 * 1024 * 1024
JSON = {"content-type": "application/json"}
UNKNOWN = f"{V1}/conversations/01BX5ZZKBKACTAV9WEVGEMMVRZ"
PROPERTY = settings(max_examples=120, deadline=None, database=None)


@pytest.fixture(scope="module")
def one(client: httpx.Client) -> str:
    """The path of a conversation that the tests of this file share."""
    return f"{V1}/conversations/{create_conversation(client, 'errors')}"


@pytest.fixture(scope="module")
def targets(one: str) -> dict[str, tuple[str, bytes]]:
    """Path and good body of each operation that takes a body."""
    return {
        "create_conversation": (f"{V1}/conversations", encoded(conversation("errors"))),
        "create_message": (f"{one}/messages", encoded(message())),
        "create_messages": (f"{one}/messages/batch", encoded({"messages": [message()]})),
        "authenticate": (f"{one}/authenticate", encoded({"customerExternalId": "jane", "auth": {"token": "t"}})),
    }


WITH_BODY = ("create_conversation", "create_message", "create_messages", "authenticate")


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def send(client: httpx.Client, path: str, raw: bytes | Iterator[bytes], **headers: str) -> httpx.Response:
    return client.post(path, content=raw, headers=JSON | headers)


def exchange(server: Server, raw: bytes) -> httpx.Response:
    """Send bytes over a connection of their own, without ending them; what comes back until the server closes."""
    received = b""
    with server.connection() as connection:
        connection.sendall(raw)
        while part := connection.recv(65536):
            received += part
    status, headers, body = parse_response(received)
    return httpx.Response(status, headers=headers, content=body)


def head(key: Key, line: str, *fields: str) -> bytes:
    lines = [f"{line} HTTP/1.1", "Host: turnlog", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in key.headers.items()]
    return "\r\n".join([*lines, *fields, "", ""]).encode()


# The order of the checks.


def test_of_several_faults_the_earliest_check_is_heard(server: Server, client: httpx.Client, one: str) -> None:
    """Transport limits, credentials, permission, rate, path, body, existence, state: in this order, one by one."""
    huge, broken = b" " * (LIMIT + 1), b"{"
    slow = server.create_key("slow reader", "--permission", "read", "--rate", "1/s")
    unknown = f"{UNKNOWN}/messages"
    with server.client(slow) as reader:
        wait_for(lambda: reader.get("/v1/health").status_code == 429)
        error_of(send(reader, unknown, huge, **{"asapp-api-secret": "wrong"}), "413-01")
        error_of(send(reader, unknown, broken, **{"asapp-api-secret": "wrong"}), "401-01")
        error_of(send(reader, unknown, broken), "403-01")
        wait_for(lambda: reader.get("/v1/health").status_code == 429)
        error_of(reader.get(f"{V1}/nowhere"), "429-01")
    error_of(send(client, f"{V1}/nowhere", broken), "404-01")
    error_of(send(client, unknown, broken), "400-01")
    error_of(send(client, unknown, encoded(message("\0"))), "422-01")
    assert send(client, f"{one}/messages", encoded(message()), **{"idempotency-key": "order"}).status_code == 200
    error_of(send(client, unknown, encoded(message("else")), **{"idempotency-key": "order"}), "404-01")
    error_of(send(client, f"{one}/messages", encoded(message("else")), **{"idempotency-key": "order"}), "422-02")


# Request ids.


def test_every_answer_has_a_request_id_of_its_own(client: httpx.Client, one: str) -> None:
    """A success, a 204 and an error each carry a fresh ``x-request-id``; one sent from outside is not taken over."""
    answers = [
        client.get(one, headers={"x-request-id": "FORGED"}),
        client.post(f"{one}/authenticate", json={"customerExternalId": "jane", "auth": {"token": "t"}}),
        client.get(UNKNOWN, headers={"x-request-id": "FORGED"}),
        client.get("/livez"),
    ]
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == len(answers)
    assert all(ULID.fullmatch(request_id) for request_id in ids)


# 405-01.

PATHS = sorted({operation.path for operation in OPERATIONS})


def filled(path: str) -> str:
    return path.replace("{conversationId}", "ABC").replace("{messageId}", "DEF")


def allowed(path: str) -> set[str]:
    methods = {operation.method for operation in OPERATIONS if operation.path == path} | {"OPTIONS"}
    return methods | {"HEAD"} if "GET" in methods else methods


@pytest.mark.parametrize(("path", "method"), [
    (path, method) for path in PATHS for method in ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW")
    if method not in allowed(path)
])  # fmt: skip
def test_a_method_not_offered_is_405_with_allow(server: Server, key: Key, path: str, method: str) -> None:
    """405-01 names in ``Allow`` what the path offers, for every path; nothing sent is echoed."""
    answer = exchange(server, head(key, f"{method} {filled(path)}", "X-Canary: echo"))
    if method == "HEAD":
        assert (answer.status_code, answer.content) == (405, b"")
    else:
        error_of(answer, "405-01")
    if method != "BREW":  # a method that HTTP does not know is refused before its path is looked at
        assert set(answer.headers["allow"].split(", ")) == allowed(path)
    assert answer.headers["allow"]
    assert b"echo" not in answer.content


@pytest.mark.parametrize("path", PATHS)
def test_options_names_what_a_path_offers(client: httpx.Client, path: str) -> None:
    """OPTIONS: 204 with ``Allow`` and no body."""
    answer = client.options(filled(path))
    assert (answer.status_code, answer.content) == (204, b"")
    assert set(answer.headers["allow"].split(", ")) == allowed(path)


def test_head_is_get_without_its_body(client: httpx.Client, one: str) -> None:
    """HEAD has the status and the headers of GET, and no body: for what is there and for what is not."""
    for path in (one, f"{one}/messages", UNKNOWN, "/v1/health"):
        got, headed = client.get(path), client.head(path)
        assert headed.status_code == got.status_code
        assert headed.headers["content-type"] == got.headers["content-type"]
        assert headed.content == b""


# 413-01, 415-01.


@pytest.mark.parametrize(("name", "limit"), [("create_message", LIMIT), ("create_messages", BATCH_LIMIT)])
def test_a_body_of_exactly_the_limit_is_accepted(
    client: httpx.Client, targets: dict[str, tuple[str, bytes]], name: str, limit: int
) -> None:
    """A body may have the limit's size, by length and by chunks; one byte more is 413-01, either way."""
    path, good = targets[name]
    raw = good.ljust(limit)
    assert send(client, path, raw).status_code == 200
    assert send(client, path, iter([raw[:100], raw[100:]])).status_code == 200
    error_of(send(client, path, raw + b" "), "413-01")
    error_of(send(client, path, iter([raw, b" "])), "413-01")


def test_a_body_over_the_limit_is_refused_before_it_is_read(server: Server, key: Key, one: str) -> None:
    """By its Content-Length, and by its chunks once they are over: answered while the sender still has more."""
    declared = head(key, f"POST {one}/messages", "Content-Type: application/json", f"Content-Length: {LIMIT + 1}")
    error_of(exchange(server, declared + b"{"), "413-01")
    chunked = head(key, f"POST {one}/messages", "Content-Type: application/json", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    error_of(exchange(server, chunked + chunk * 17), "413-01")


@pytest.mark.parametrize("fields", [
    {}, {"content-type": ""}, {"content-type": "text/plain"}, {"content-type": "application/jsonx"},
    {"content-type": "application/x-www-form-urlencoded"}, {"content-type": "application/json; charset=latin-1"},
    JSON | {"content-encoding": "gzip"}, JSON | {"content-encoding": "br"},
])  # fmt: skip
def test_another_media_type_is_415(client: httpx.Client, one: str, fields: dict[str, str]) -> None:
    """415-01: not ``application/json``, none named, or a content encoding."""
    error_of(client.post(f"{one}/messages", content=encoded(message()), headers=fields), "415-01")


@pytest.mark.parametrize("fields", [
    {"content-type": "application/json; charset=utf-8"}, {"content-type": 'Application/JSON;charset="UTF-8"'},
    JSON | {"content-encoding": "identity"}, JSON | {"accept": "text/html"}, JSON | {"accept": "image/png;q=1"},
])  # fmt: skip
def test_json_under_its_other_spellings_is_accepted(client: httpx.Client, one: str, fields: dict[str, str]) -> None:
    """The media type is compared without case and with its charset; a foreign ``Accept`` is ignored."""
    answer = client.post(f"{one}/messages", content=encoded(message()), headers=fields)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")


# 400-01: JSON.


def with_field(field: bytes) -> Callable[[bytes], bytes]:
    """Put a field that no schema knows in front of a body's own."""
    return lambda raw: b"{" + field + b"," + raw[1:]


def with_value(value: bytes) -> Callable[[bytes], bytes]:
    """Put ``value`` where the schema has a string, or leniency an integer."""
    return lambda raw: raw.replace(b'"jane"', value)


def nested(depth: int, opening: bytes = b"[", closing: bytes = b"]") -> Callable[[bytes], bytes]:
    """A body in which containers stand ``depth`` deep, the body itself being the first."""
    return with_field(b'"x":' + opening * (depth - 1) + b"0" * (opening != b"[") + closing * (depth - 1))


UNKNOWN_FIELDS_NOT_JSON = (
    b'"x":NaN', b'"x":-Infinity', b'"x":Infinity', b'"x":01', b'"x":+1', b'"x":.5', b'"x":1.', b'"x":1e', b'"x":-',
    b'"x":0x1F', b'"x":nul', b'"x":True', b'"x":[1,]', b'"x":{"a":1,}', b'"x":[1 2]', b"'x':1", b'x:1', b'"x"', b"",
    b'"x":1,"x":1', b'"x":{"a":1,"b":2,"a":1}', b'"x":[{"a":1,"\\u0061":1}]', b'"x":"\\ud800"', b'"x":"\\udc00\\ud800"',
    b'"\\udfff":1', b'"x":"\xed\xa0\x80"', b'"x":"\xff"', b'"x":"\xc0\x80"', b'"x":"\t"', b'"x":"\n"', b'"x":"\0"',
    b'"x":"\\x41"', b'"x":"\\u12g4"', b'"x":"\\"', b"/* why */", b'"x":1 // why\n', b'\x0c"x":1', b'\xc2\xa0"x":1',
)  # fmt: skip
KNOWN_VALUES_NOT_JSON = (
    b'"\t"', b'"\n"', b'"\x1f"', b'"\0"', b'"\xff"', b'"\xc0\x80"', b'"\xed\xa0\x80"', b'"\xf4\x90\x80\x80"', b'"\xc3"',
    b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\ud800\\u0041"', b'"\\ud800x"', b'"\\x41"', b'"\\u12g4"', b'"\\u123"',
    b'"\\"', b'"', b"'a'", b"01", b"-", b"+1", b"1.", b".5", b"1e", b"0x1F", b"1_000", b"NaN", b"Infinity",
    b"-Infinity", b"tru", b"", b'"a" "b"', b'"a"\0',
)  # fmt: skip

BREAKAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"", "blank": lambda _: b" \n", "truncated": lambda raw: raw[:-1], "twice": lambda raw: raw * 2,
    "trailing bytes": lambda raw: raw + b"x", "trailing NUL": lambda raw: raw + b"\0", "NUL": lambda _: b"\0",
    "a byte order mark": lambda raw: b"\xef\xbb\xbf" + raw, "UTF-16": lambda raw: raw.decode().encode("utf-16"),
    "UTF-16 without mark": lambda raw: raw.decode().encode("utf-16-le"),
    "UTF-32": lambda raw: raw.decode().encode("utf-32"), "33 objects deep": nested(33, b'{"a":', b"}"),
    "its own field twice": lambda raw: raw[:-1] + b"," + raw[1:], "33 lists deep": nested(33),
    "1,100 deep": nested(1_100), "200,000 lists deep": nested(200_000),
    "150,000 objects deep": nested(150_000, b'{"a":', b"}"), "never closed": lambda _: b"[" * 200_000,
} | {repr(field)[2:-1]: with_field(field) for field in UNKNOWN_FIELDS_NOT_JSON} | {
    f"value {value!r}": with_value(value) for value in KNOWN_VALUES_NOT_JSON}  # fmt: skip

STRICT = {
    "32 deep": nested(32), "32 objects deep": nested(32, b'{"a":', b"}"),
    "a long number": with_field(b'"x":' + b"9" * 9999),
    "a large exponent": with_field(b'"x":-1.5E+999'), "a pair of surrogates": with_field(b'"x":"\\uD83D\\uDE00"'),
    "names alike in different objects": with_field(b'"x":{"a":{"a":1},"b":[{"a":1},{"a":1}]}'),
    "white space": lambda raw: b"\r\n" + json.dumps(json.loads(raw), indent="\t", separators=(" ,\r", "\n:")).encode(),
    "escapes": with_field(b'"\\u0078":"\\/\\b\\f\\n\\r\\t\\"\\\\"'), "an empty name": with_field(b'"":""'),
}  # fmt: skip


@pytest.mark.parametrize("name", WITH_BODY)
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_what_is_not_json_is_400_01(
    client: httpx.Client, targets: dict[str, tuple[str, bytes]], breakage: str, name: str
) -> None:
    """400-01 wherever in the body the fault is, in known fields and in those that nobody looks at."""
    path, good = targets[name]
    error_of(send(client, path, BREAKAGES[breakage](good)), "400-01")


@pytest.mark.parametrize("name", WITH_BODY)
@pytest.mark.parametrize("form", STRICT)
def test_whatever_is_json_is_read(
    client: httpx.Client, targets: dict[str, tuple[str, bytes]], form: str, name: str
) -> None:
    """Every form that JSON has is accepted, down to depth 32."""
    path, good = targets[name]
    answer = send(client, path, STRICT[form](good))
    assert answer.status_code in (200, 204), answer.text


# 400-03 and 422-01: JSON that is not of the schema, and what is of the schema and refused.

GONE = object()


def changed(raw: bytes, pointer: str, value: Any) -> bytes:
    """The body with another value, or none, at a JSON pointer."""
    body = {"": json.loads(raw)}
    *parents, last = pointer.split("/")
    place: Any = body
    for name in parents:
        place = place[int(name) if isinstance(place, list) else name]
    if value is GONE:
        del place[last]
    else:
        place[int(last) if isinstance(place, list) else last] = value
    return encoded(body[""])


NOT_STRINGS: tuple[Any, ...] = (None, True, 1.5, [], {})
NOT_OBJECTS: tuple[Any, ...] = (None, True, 1, "text", [], [{}])
MISMATCHES: dict[str, dict[str, tuple[Any, ...]]] = {
    "create_message": {
        "": NOT_OBJECTS, "/text": (*NOT_STRINGS, 1, "", GONE), "/timestamp": (*NOT_STRINGS, 1637669594, "now", GONE),
        "/sender": (*NOT_OBJECTS, GONE), "/sender/role": (*NOT_STRINGS, "bot", "Agent", "", GONE),
        "/sender/externalId": (*NOT_STRINGS, GONE),
    },
    "create_messages": {
        "": NOT_OBJECTS, "/messages": (None, {}, "x", [], [message()] * 301, GONE), "/messages/0": NOT_OBJECTS,
        "/messages/0/sender/role": (None, "bot"), "/messages/0/text": (None, ""), "/messages/0/timestamp": (1, "now"),
    },
    "create_conversation": {
        "": NOT_OBJECTS, "/externalId": (*NOT_STRINGS, GONE), "/customer": (*NOT_OBJECTS, GONE),
        "/customer/externalId": (*NOT_STRINGS, GONE), "/customer/name": (*NOT_STRINGS, 1), "/agent": NOT_OBJECTS,
        "/metadata": (None, "x", [], {"a": 1}, {"a": None}, {"a": {}}), "/id": (*NOT_STRINGS, 1),
        "/timestamp": (*NOT_STRINGS, 1, "", "2021-11-23", GONE),
    },
    "authenticate": {
        "": NOT_OBJECTS, "/customerExternalId": (*NOT_STRINGS, GONE), "/auth": (*NOT_OBJECTS, {}, {"other": 1}, GONE),
        "/auth/body": NOT_OBJECTS, "/auth/cookies": NOT_OBJECTS, "/auth/headers": NOT_OBJECTS,
        "/auth/token": (*NOT_STRINGS, 1), "/streamId": (*NOT_STRINGS, 1),
    },
}  # fmt: skip
LONG = "x" * 256
REFUSED: dict[str, dict[str, tuple[Any, ...]]] = {
    "create_message": {"/text": ("\0",), "/sender/externalId": ("a\0", LONG, 10**255, 10**4200)},
    "create_messages": {"/messages/0/text": ("a\0b",), "/messages/0/sender/externalId": (LONG,)},
    "create_conversation": {
        "/externalId": (LONG, "\0"), "/customer/externalId": (LONG, "\0"), "/customer/name": (LONG, "\0"),
        "/agent": ({"externalId": LONG}, {"externalId": "joe", "name": "\0"}),
        "/id": (LONG.upper(), "\0", "", "lower", "A-B", "\u00c4", "A ", "A\n"), "/timestamp": ("0000-01-01T00:00:00Z",),
        "/metadata": ({LONG: ""}, {"\0": ""}, {"a": "x" * 4097}, {"a": "\0"}, {str(n): "" for n in range(101)}),
    },
    "authenticate": {"/customerExternalId": (LONG, "\0"), "/streamId": (LONG, "\0")},
}  # fmt: skip
CASES = [
    (code, name, pointer, value) for code, table in (("400-03", MISMATCHES), ("422-01", REFUSED))
    for name, pointers in table.items() for pointer, values in pointers.items() for value in values
]  # fmt: skip


@pytest.mark.parametrize(("code", "name", "pointer", "value"), CASES)
def test_a_refused_body_is_told_where_and_what(
    client: httpx.Client, targets: dict[str, tuple[str, bytes]], code: str, name: str, pointer: str, value: Any
) -> None:
    """400-03 and 422-01 point at the field, and say more than that it is wrong."""
    path, good = targets[name]
    told = error_of(send(client, path, changed(good, pointer, value)), code)
    where, _, what = told.partition("] ")
    assert where.startswith(f"[Path '{pointer}"), told
    assert what
    if pointer.endswith("/role"):
        assert all(role in what for role in ("agent", "customer", "system")) or value is GONE


# Properties.

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def reads_as_json(raw: bytes) -> bool:
    """Whether Python's own reader takes it: ``int`` takes no NaN, UTF-8 no surrogate; no name is twice in there."""
    try:
        return bool(json.dumps(json.loads(raw.decode(), parse_constant=int), ensure_ascii=False).encode())
    except ValueError:
        return False


@PROPERTY
@given(
    name=st.sampled_from(WITH_BODY),
    at=st.integers(0, 200),
    gone=st.integers(0, 9),
    put=st.binary(max_size=6) | st.text('{}[]":,\\u0dea1.-e', max_size=6).map(str.encode),
)
def test_any_damage_to_a_body_is_judged_as_json_first(
    client: httpx.Client, targets: dict[str, tuple[str, bytes]], name: str, at: int, gone: int, put: bytes
) -> None:
    """Whatever is done to a body: 400-01 exactly where it is no JSON any more, and never a 5xx."""
    path, good = targets[name]
    raw = good[: at % len(good)] + put + good[at % len(good) + gone :]
    answer = send(client, path, raw)
    assert answer.status_code < 500
    assert ("400-01" in answer.text) == (not reads_as_json(raw))


@PROPERTY
@given(name=st.sampled_from(WITH_BODY), at=st.integers(0, 9), value=VALUES, field=st.text(max_size=5))
def test_any_value_in_any_place_is_answered(
    client: httpx.Client, targets: dict[str, tuple[str, bytes]], name: str, at: int, value: Any, field: str
) -> None:
    """Any JSON value in any field, known or not, is accepted or refused by a 4xx: never a 5xx."""
    path, good = targets[name]
    pointers = list(MISMATCHES[name])
    raw = changed(changed(good, f"/x{field.replace('/', '')}", value), pointers[at % len(pointers)], value)
    assert send(client, path, raw).status_code < 500
