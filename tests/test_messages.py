"""Operations 4 to 8: what is recorded comes back as it was, in its order, whole or page by page."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import ULID, V1, create_conversation, error_of, message

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

    from tests.harness import Server

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
BY_EXTERNAL_ID = f"{V1}/conversation/messages"
PROPERTY = settings(max_examples=60, deadline=None, database=None)
_numbers = itertools.count(1)


@pytest.fixture
def path(client: httpx.Client, external_id: str) -> str:
    """The messages of a conversation of the test's own, whose external id is ``external_id``."""
    return new_path(client, external_id)


def new_path(client: httpx.Client, external_id: str | None = None) -> str:
    conversation_id = create_conversation(client, external_id or f"messages-{next(_numbers)}")
    return f"{V1}/conversations/{conversation_id}/messages"


def record(client: httpx.Client, path: str, text: str = "Hello!", **changes: Any) -> str:
    answer = client.post(path, json=message(text, **changes))
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"id"}
    return str(answer.json()["id"])


def record_all(client: httpx.Client, path: str, messages: list[dict[str, Any]]) -> list[str]:
    answer = client.post(f"{path}/batch", json={"messages": messages})
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) == {"ids"}
    return list(answer.json()["ids"])


def listed(client: httpx.Client, path: str, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    assert set(answer.json()) <= {"items", "nextCursor"}
    return list(answer.json()["items"])


def texts(items: list[dict[str, Any]]) -> list[str]:
    return [item["text"] for item in items]


def at(second: int) -> str:
    return f"2021-11-23T12:{second // 60:02}:{second % 60:02}.000Z"


def time_of(ulid: str) -> int:
    """The milliseconds since 1970 that a ULID begins with."""
    value = 0
    for character in ulid[:10]:
        value = value * 32 + CROCKFORD.index(character)
    return value


def milliseconds(timestamp: str) -> int:
    return round(datetime.fromisoformat(timestamp).timestamp() * 1000)


# Recording and reading one.


@pytest.mark.parametrize("role", ["agent", "customer", "system"])
@pytest.mark.parametrize(
    ("given_id", "kept_id"), [("jane", "jane"), (123, "123"), (-7, "-7"), ("", ""), ("Ä b", "Ä b")]
)
def test_a_message_reads_as_it_was_sent(
    client: httpx.Client, path: str, role: str, given_id: str | int, kept_id: str
) -> None:
    """Exactly the documented fields: sender and text as sent, an integer id as its decimal string, both times."""
    message_id = record(client, path, "Hi", sender={"role": role, "externalId": given_id})
    item = client.get(f"{path}/{message_id}").json()
    created = item.pop("createdTimestamp")
    assert item == {
        "messageId": message_id,
        "text": "Hi",
        "sender": {"role": role, "externalId": kept_id},
        "clientTimestamp": "2021-11-23T12:13:14.555Z",
    }
    assert listed(client, path) == [item | {"createdTimestamp": created}]


def test_ids_are_increasing_ulids_of_the_servers_time(client: httpx.Client, path: str) -> None:
    """Whatever the caller's timestamp: an id's time is ``createdTimestamp``, between the request and its answer."""
    before = datetime.now(UTC).timestamp() * 1000 // 1
    ids = [record(client, path, timestamp=f"{year}-01-01T00:00:00Z") for year in ("1999", "2099", "0001")]
    ids += record_all(client, path, [message("x", timestamp="9999-12-31T00:00:00Z")] * 300)
    after = datetime.now(UTC).timestamp() * 1000
    assert all(ULID.fullmatch(message_id) for message_id in ids)
    assert ids == sorted(set(ids))
    assert all(before <= time_of(message_id) <= after for message_id in ids)
    for item in listed(client, path):
        assert before <= milliseconds(item["createdTimestamp"]) <= after
        assert abs(time_of(item["messageId"]) - milliseconds(item["createdTimestamp"])) <= 100


def test_what_a_caller_cannot_set_is_ignored(client: httpx.Client, path: str) -> None:
    """Unknown fields, and those that are the server's to give, are neither stored nor returned."""
    forged = {"id": "FORGED", "messageId": "FORGED", "createdTimestamp": at(1), "clientTimestamp": at(2)}
    message_id = record(client, path, **forged, __proto__={"a": 1}, nextCursor="x")
    [item] = listed(client, path)
    assert set(item) == {"messageId", "text", "sender", "createdTimestamp", "clientTimestamp"}
    assert message_id != "FORGED"
    assert (item["messageId"], item["clientTimestamp"]) == (message_id, "2021-11-23T12:13:14.555Z")
    assert item["createdTimestamp"] > "2024"


def test_a_message_is_found_only_in_its_conversation(client: httpx.Client, path: str) -> None:
    """404-01 for an id that never was, for a message of another conversation and in one that never was."""
    message_id, elsewhere = record(client, path), new_path(client)
    unknown = f"{V1}/conversations/01BX5ZZKBKACTAV9WEVGEMMVRZ/messages"
    answers = [client.get(url) for url in (f"{path}/NOSUCH", f"{elsewhere}/{message_id}", f"{unknown}/{message_id}")]
    assert len({error_of(answer, "404-01") for answer in answers}) == 1
    error_of(client.get(f"{path}/{message_id.lower()}"), "404-01")
    for answer in (client.get(unknown), client.get(unknown, params={"limit": 1}), client.post(unknown, json=message())):
        error_of(answer, "404-01")


# Text.

TEXTS = (
    "e\u0301 is not \u00e9", "\u1112\u1161\u11ab", "\ufb01 \u212b", "👩\u200d👩\u200d👧",
    "\u202eright\u202c \u2066\u2069", "\ufeffmark\ufeff", "\u0001\u001f\u007f\u0085\u009f", "\r\n\t\v\f", " ",
    "\u00a0\u2003\u3000", "\u2028\u2029", "\uffff\ufffe\U0010ffff", "\ufdd0",
    "null", "'; DROP TABLE message; --", '"\\"\\\\u0000',
    "{{7*7}}${x}%s%n<script>&amp;", "  padded  ", "\ud7ff\ue000", "9" * 400,
)  # fmt: skip


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_text_comes_back_byte_for_byte(client: httpx.Client, path: str, text: str) -> None:
    """No trimming, no normalisation: alone, in a batch and in a sender's id, sent as it is and as JSON escapes."""
    sender = {"role": "agent", "externalId": text[:255]}
    ids = [record(client, path, text, sender=sender), *record_all(client, path, [message(text, sender=sender)])]
    escaped = json.dumps(message(text, sender=sender), ensure_ascii=True)
    ids.append(client.post(path, content=escaped, headers={"content-type": "application/json"}).json()["id"])
    for item in [*listed(client, path), *(client.get(f"{path}/{message_id}").json() for message_id in ids)]:
        assert (item["text"], item["sender"]) == (text, sender)


def test_a_long_text_comes_back_whole(client: httpx.Client, path: str) -> None:
    """900 KB in characters of one to four bytes."""
    text = ("aé€😀" * 100_000)[: 900_000 * 4 // 10]
    assert len(text.encode()) == 900_000
    message_id = record(client, path, text)
    assert client.get(f"{path}/{message_id}").json()["text"] == text
    assert texts(listed(client, path)) == [text]


@PROPERTY
@given(texts_sent=st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1), min_size=1))
def test_any_text_comes_back(client: httpx.Client, texts_sent: list[str]) -> None:
    """Any Unicode but U+0000, alone and in company."""
    path = new_path(client)
    record_all(client, path, [message(text) for text in texts_sent])
    record(client, path, texts_sent[0])
    assert texts(listed(client, path)) == [*texts_sent, texts_sent[0]]


# Timestamps.

ACCEPTED = [
    ("2021-11-23T12:13:14.555Z", "2021-11-23T12:13:14.555Z"), ("2021-11-23t12:13:14z", "2021-11-23T12:13:14.000Z"),
    ("2021-11-23T12:13:14", "2021-11-23T12:13:14.000Z"), ("2021-11-23T12:13:14.5", "2021-11-23T12:13:14.500Z"),
    ("2021-11-23T12:13:14.000001Z", "2021-11-23T12:13:14.000001Z"),
    ("2021-11-23T12:13:14.1234Z", "2021-11-23T12:13:14.123400Z"),
    ("2021-11-23T12:13:14.555999999999999Z", "2021-11-23T12:13:14.555999Z"),
    ("2021-11-23T12:13:14-00:00", "2021-11-23T12:13:14.000Z"),
    ("2021-11-23T12:13:14.9999999Z", "2021-11-23T12:13:14.999999Z"),
    ("2021-11-23T00:00:00+23:59", "2021-11-22T00:01:00.000Z"),
    ("2021-11-23T12:13:14-23:59", "2021-11-24T12:12:14.000Z"),
    ("2021-11-23T12:13:14+05:45", "2021-11-23T06:28:14.000Z"), ("2020-02-29T23:59:59Z", "2020-02-29T23:59:59.000Z"),
    ("2000-02-29T00:00:00Z", "2000-02-29T00:00:00.000Z"), ("1969-12-31T23:59:59.999Z", "1969-12-31T23:59:59.999Z"),
    ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00.000Z"), ("0000-12-31T23:30:00-00:30", "0001-01-01T00:00:00.000Z"),
    ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
    ("9999-12-31T23:59:59+00:01", "9999-12-31T23:58:59.000Z"), ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.999999Z"),
    ("2017-01-01T05:44:60.5+05:45", "2016-12-31T23:59:59.999999Z"),
    ("1972-06-30T23:59:60.999Z", "1972-06-30T23:59:59.999999Z"),
]  # fmt: skip
NO_TIMESTAMPS = (
    "2021-11-23", "2021-11-23T12:13Z", "2021-W47-2T12:13:14Z", "20211123T121314Z", "2021-11-23T12:13:14,5Z",
    "2021-327T12:13:14Z", "2021-11-23T24:00:00Z", "2021-02-30T12:13:14Z", "2021-02-29T12:13:14Z",
    "1900-02-29T00:00:00Z", "2021-00-01T00:00:00Z", "2021-13-01T00:00:00Z", "2021-11-00T00:00:00Z",
    "2021-11-31T00:00:00Z", "2021-11-23T12:60:00Z", "2021-11-23T12:13:61Z", "2021-11-23T12:13:14.Z",
    "2021-11-23T12:13:14.1234567890123456Z", "2021-11-23T12:13:14+24:00", "2021-11-23T12:13:14+01:60",
    "2021-11-23T12:13:14+0100", "2021-11-23T12:13:14+01", "2021-11-23T12:13:14 Z", " 2021-11-23T12:13:14Z",
    "2021-11-23T12:13:14Z\n", "2021-11-23T12:13:14ZZ", "2021-11-23T12:13:14UTC", "+2021-11-23T12:13:14Z",
    "-2021-11-23T12:13:14Z", "21-11-23T12:13:14Z", "12021-11-23T12:13:14Z", "2021-1-23T12:13:14Z",
    "\uff12\uff10\uff12\uff11-11-23T12:13:14Z", "2021-11-23T12:13:14.\u0665\u0665\u0665Z",
    "2021-11-23T12:13:1\u0664.555Z", "2021-11-23T12:13:14\u221201:00", "1637669594", "now", "", "2015-12-31T23:59:60Z",
    "2016-12-31T22:59:60Z", "2016-12-31T23:58:60Z", "2016-12-31T23:59:60+01:00", "2016-12-30T23:59:60Z",
    "0000-02-30T00:00:00Z",
)  # fmt: skip
OUT_OF_RANGE = (
    "0000-01-01T00:00:00Z", "0000-02-29T12:00:00Z", "0000-12-31T23:59:59.999999Z", "0001-01-01T00:59:59+01:00",
    "9999-12-31T23:59:59-00:01", "9999-12-31T23:00:00-01:00",
)  # fmt: skip
REFUSED = [("400-03", text) for text in NO_TIMESTAMPS] + [("422-01", text) for text in OUT_OF_RANGE]


@pytest.mark.parametrize(("text", "kept"), ACCEPTED)
def test_a_timestamp_comes_back_in_utc(client: httpx.Client, path: str, text: str, kept: str) -> None:
    """Every RFC 3339 form: kept to the microsecond; a real leap second is the last microsecond before it."""
    record(client, path, timestamp=text)
    record_all(client, path, [message(timestamp=text)])
    assert [item["clientTimestamp"] for item in listed(client, path)] == [kept, kept]


@pytest.mark.parametrize(("code", "text"), REFUSED, ids=ascii)
def test_what_is_no_timestamp_or_out_of_range_is_refused(client: httpx.Client, path: str, code: str, text: str) -> None:
    """Not RFC 3339, no such day, no such leap second: 400-03; outside the years 0001 to 9999 in UTC: 422-01."""
    assert "[Path '/timestamp']" in error_of(client.post(path, json=message(timestamp=text)), code)
    assert listed(client, path) == []


@PROPERTY
@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31)), st.integers(-1439, 1439))  # noqa: DTZ001 - zone follows
def test_any_instant_in_any_zone_is_the_same_instant(client: httpx.Client, local: datetime, minutes: int) -> None:
    """An independent calendar agrees on what comes back, to the microsecond."""
    instant = local.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    path = new_path(client)
    record(client, path, timestamp=instant.isoformat())
    [item] = listed(client, path)
    assert datetime.fromisoformat(item["clientTimestamp"]) == instant
    assert len(item["clientTimestamp"]) in (24, 27)


# Batches.


@pytest.mark.parametrize("size", [1, 300])
def test_a_batch_is_recorded_in_its_order(client: httpx.Client, path: str, size: int) -> None:
    """Input order is arrival order: ids in it, and listings of equal timestamps."""
    sent = [message(f"text {number}") for number in range(size)]
    ids = record_all(client, path, sent)
    items = listed(client, path)
    assert (ids, texts(items)) == ([item["messageId"] for item in items], [body["text"] for body in sent])
    assert ids == sorted(set(ids))


@pytest.mark.parametrize("fault", [{"text": ""}, {"text": "\0"}, {"timestamp": "now"}, {"sender": None}])
@pytest.mark.parametrize("place", [0, 150, 299])
def test_a_batch_with_one_fault_records_nothing(
    client: httpx.Client, path: str, fault: dict[str, Any], place: int
) -> None:
    """All or nothing, and the error points at the item."""
    sent = [message(f"text {number}") for number in range(300)]
    sent[place] |= fault
    answer = client.post(f"{path}/batch", json={"messages": sent})
    assert f"[Path '/messages/{place}/" in error_of(answer, "422-01" if fault == {"text": "\0"} else "400-03")
    assert listed(client, path) == []


# Listings.


def test_a_listing_is_chronological_then_by_arrival(client: httpx.Client, path: str, external_id: str) -> None:
    """By the caller's timestamp, to the microsecond and across zones; equal ones in the order of their arrival."""
    stamps = [at(3), at(1), at(3), at(2), "2021-11-23T13:00:01.000001+01:00", at(1), "1970-01-01T00:00:00Z", at(3)]
    for number, stamp in enumerate(stamps):
        record(client, path, str(number), timestamp=stamp)
    expected = ["6", "1", "5", "4", "3", "0", "2", "7"]
    assert texts(listed(client, path)) == expected
    assert texts(listed(client, BY_EXTERNAL_ID, externalId=external_id)) == expected


def pages(client: httpx.Client, url: str, limit: int, **query: Any) -> Iterator[list[dict[str, Any]]]:
    """The pages of a listing, following ``nextCursor`` until there is none."""
    after: dict[str, str] = {}
    while True:
        answer = client.get(url, params={"limit": limit, **query, **after})
        assert answer.status_code == 200, answer.text
        yield answer.json()["items"]
        if "nextCursor" not in answer.json():
            return
        after = {"after": answer.json()["nextCursor"]}


@pytest.fixture(scope="module")
def book(client: httpx.Client) -> str:
    """The path of a conversation of 60 messages with few different timestamps; its external id is ``book``."""
    path = new_path(client, "book")
    record_all(client, path, [message(f"{number}", timestamp=at(number * 7 % 5)) for number in range(60)])
    return path


@pytest.mark.parametrize("limit", [*range(1, 14), 29, 30, 31, 59, 60, 61, 1000])
def test_pages_of_any_size_make_up_the_whole(client: httpx.Client, book: str, limit: int) -> None:
    """By conversation and by external id: full pages, a last one without ``nextCursor``, and nothing lost between."""
    whole = listed(client, book)
    for url, query in ((book, {}), (BY_EXTERNAL_ID, {"externalId": "book"})):
        got = list(pages(client, url, limit, **query))
        assert list(itertools.chain(*got)) == whole
        assert [len(page) for page in got[:-1]] == [limit] * ((60 - 1) // limit)


def test_after_without_limit_is_a_page(client: httpx.Client, book: str) -> None:
    """A cursor works with another page size, and again: it is a place, not a session."""
    whole = listed(client, book)
    cursor = client.get(book, params={"limit": 7}).json()["nextCursor"]
    for _ in range(2):
        assert listed(client, book, after=cursor) == whole[7:]
        assert listed(client, book, after=cursor, limit=2) == whole[7:9]
    assert client.get(new_path(client), params={"limit": 5}).json() == {"items": []}


def test_a_cursor_belongs_to_its_conversation_and_account(server: Server, client: httpx.Client, book: str) -> None:
    """Elsewhere it is 400-02, and so is one that was tampered with."""
    cursor = client.get(book, params={"limit": 7}).json()["nextCursor"]
    error_of(client.get(new_path(client), params={"after": cursor}), "400-02")
    for place in range(0, len(cursor), 5):
        forged = cursor[:place] + ("A" if cursor[place] != "A" else "B") + cursor[place + 1 :]
        error_of(client.get(book, params={"after": forged}), "400-02")
    with server.client(server.create_key("thief", "--account", "thieves")) as thief:
        twin = create_conversation(thief, "book", id=book.split("/")[4])
        error_of(thief.get(f"{V1}/conversations/{twin}/messages", params={"after": cursor}), "400-02")


def test_paging_neither_skips_nor_repeats_what_existed(client: httpx.Client, path: str) -> None:
    """Messages that arrive between pages, before, at and behind the cursor's place, do not disturb those before."""
    first = record_all(client, path, [message(f"{n}", timestamp=at(10 + n // 4)) for n in range(40)])
    seen: list[str] = []
    for turn, page in enumerate(pages(client, path, 3)):
        seen += [item["messageId"] for item in page]
        if turn < 15:
            record_all(client, path, [message("late", timestamp=at(second)) for second in (0, 10 + turn // 2, 59)])
    assert len(seen) == len(set(seen))
    assert [message_id for message_id in seen if message_id in first] == first


def test_a_long_conversation_is_streamed_whole(client: httpx.Client, path: str, external_id: str) -> None:
    """3,000 messages without parameters, in order; several readers at once get the same while others write."""
    sent = [f"{number} " + "x" * (number % 300) for number in range(3000)]
    for start in range(0, 3000, 300):
        record_all(client, path, [message(text, timestamp=at(1)) for text in sent[start : start + 300]])
    assert texts(listed(client, BY_EXTERNAL_ID, externalId=external_id)) == sent
    with ThreadPoolExecutor(4) as pool:
        reading = [pool.submit(listed, client, path) for _ in range(4)]
        ids = record_all(client, path, [message("later", timestamp=at(2))])
        for future in reading:
            assert texts(future.result())[:3000] == sent
    assert listed(client, path)[-1]["messageId"] == ids[0]


@pytest.mark.parametrize(
    "query", ["", "external_id=x", "externalId=a&externalId=a", "externalId=%zz", "externalId=%ff"]
)
def test_an_external_id_to_look_for_is_required_once(client: httpx.Client, query: str) -> None:
    """Missing, doubled or not UTF-8: 400-02 on operations 2 and 8."""
    for url in (BY_EXTERNAL_ID, f"{V1}/conversations"):
        error_of(client.get(f"{url}?{query}"), "400-02")


BAD_LIMITS = ("", "0", "1001", "-1", "+1", "1.0", "x", "%EF%BC%91", "1&limit=1")
BAD_CURSORS = ("", "x", "AAAA", "%00", "a&after=a", "A" * 32)


@pytest.mark.parametrize("page", [f"limit={n}" for n in BAD_LIMITS] + [f"after={cursor}" for cursor in BAD_CURSORS])
def test_a_malformed_page_is_400_02(client: httpx.Client, book: str, page: str) -> None:
    """``limit`` is a whole number from 1 to 1000 and ``after`` a cursor, each given once: on operations 5 and 8."""
    error_of(client.get(f"{book}?{page}"), "400-02")
    error_of(client.get(f"{BY_EXTERNAL_ID}?externalId=book&{page}"), "400-02")


def test_an_unknown_external_id_has_no_listing(client: httpx.Client) -> None:
    """404-01 on operation 8, whatever its page."""
    for page in ({}, {"limit": "1"}):
        error_of(client.get(BY_EXTERNAL_ID, params={"externalId": "nobody's", **page}), "404-01")
