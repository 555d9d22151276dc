"""Headers and query parameters: the idempotency key, the query, Retry-After; each beside a slow reading of its own."""

from __future__ import annotations

import email.utils
import math
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from tests.fuzz.timestamps import DIGITS
from turnlog.errors import Error, MalformedParameterError
from turnlog.http.parameters import Query, idempotency_key
from turnlog.sending import MAX_RETRY_AFTER_S, read_retry_after
from turnlog.targets import remote

if TYPE_CHECKING:
    from collections.abc import Callable


def _expected_key(text: str) -> str | None:
    """The key that a header's value spells; ``None`` where it spells none. Blanks around it are not the value's."""
    text = text.strip(" \t")
    key, quoted = text, text[:1] == '"'
    if quoted:
        key, place = "", 1
        while place < len(text) and text[place] != '"':
            if text[place] == "\\":
                place += 1
                if text[place : place + 1] not in ('"', "\\"):
                    return None
            key += text[place]
            place += 1
        if place != len(text) - 1:
            return None
    return key if 1 <= len(key) <= 255 and all(" " <= char <= "~" for char in key) else None


def check_idempotency_key(content: bytes) -> None:
    """1 to 255 printable ASCII characters, quoted or bare; both spell one key. Each line is one header of the name."""
    values = [line.decode("latin-1") for line in content.split(b"\n")]
    wanted = _expected_key(values[0]) if len(values) == 1 else None
    try:
        found = idempotency_key(values)
    except MalformedParameterError:
        found = None
    assert found == wanted, (values, found, wanted)
    if found is not None:
        escaped = found.replace("\\", "\\\\").replace('"', '\\"')
        assert idempotency_key([f'"{escaped}"']) == found


KEY_WORDS = (b'"', b"\\", b'\\"', b"\\\\", b" ", b"\t", b"\n", b"a" * 255, b"a" * 256, b'"' + b"a" * 255 + b'"')


def _expected_pairs(content: bytes) -> list[tuple[str, str]] | None:
    """Names and values, each decoded once; ``None`` for what is no query in UTF-8, percent-encoded."""
    pieces = content.split(b"%")[1:]
    if any(len(piece) < 2 or not all(char in b"0123456789abcdefABCDEF" for char in piece[:2]) for piece in pieces):
        return None
    pairs = []
    for part in content.split(b"&"):
        name, _, value = part.replace(b"+", b" ").partition(b"=")
        try:
            part.decode("ascii")
            pair = (unquote_to_bytes(name).decode(), unquote_to_bytes(value).decode())
        except UnicodeDecodeError:
            return None
        if part:
            pairs.append(pair)
    return pairs


def _whole(text: str, least: int, most: int) -> bool:
    return 1 <= len(text) <= 4 and all(char in DIGITS for char in text) and least <= int(text) <= most


def _answered(ask: Callable[[], object]) -> object:
    """What a parameter comes to, or the code of its refusal."""
    try:
        return ask()
    except Error as error:
        return error.code


def _first(values: list[str], right: Callable[[str], object]) -> object:
    """What the one value comes to; a refusal of two."""
    return "400-02" if len(values) > 1 else right(values[0]) if values else None


def check_query(content: bytes) -> None:
    """A query is read as it is written, decoded once, or refused: 400-02, or 422-01 for U+0000 in what is sought."""
    pairs = _expected_pairs(content)
    try:
        query = Query(content)
    except MalformedParameterError:
        assert pairs is None, pairs
        return
    assert pairs is not None

    def values(name: str) -> list[str]:
        return [value for key, value in pairs if key == name]

    sought = _first(values("externalId"), lambda text: "422-01" if "\0" in text else text)
    assert _answered(query.external_id) == ("400-02" if sought is None else sought)
    limit = _first(values("limit"), lambda text: int(text) if _whole(text, 1, 1000) else "400-02")
    assert _answered(query.limit) == limit
    types = _first(values("types"), lambda text: _types(text) or "400-02")
    assert _answered(query.event_types) == types
    pause = _answered(query.wait_s)
    assert pause == "400-02" or (isinstance(pause, float) and 0 <= pause <= 30)
    if len(values("wait")) != 1:
        assert pause == ("400-02" if values("wait") else 0.0)


def _types(text: str) -> frozenset[str]:
    """The types that are named; none where one of them is no type."""
    named = frozenset(text.split(","))
    return named if named <= {"conversation.created", "conversation.updated", "message.created"} else frozenset()


QUERY_WORDS = (b"externalId=", b"&", b"limit=", b"wait=", b"types=", b"after=", b"%00", b"%2B", b"%25", b"%zz", b"%",
               b"+", b"%C3%A9", b"%ff", b"%ED%A0%80", b";", b"1000", b"message.created", b"0.5", b"NaN", b"1_0",
               b",")  # fmt: skip

_NOW_US = 1_637_669_594_555_000


def check_retry_after(content: bytes) -> None:
    """W02. Whatever a receiver writes there, the pause is a number from nothing to a day, or it wrote nonsense."""
    text = content.decode("latin-1")
    found = read_retry_after(text, _NOW_US)
    assert found is None or (0 <= found <= MAX_RETRY_AFTER_S and math.isfinite(found)), found
    bare = text.strip()
    if bare and all(char in DIGITS for char in bare):
        digits = bare.lstrip("0") or "0"
        assert found == (MAX_RETRY_AFTER_S if len(digits) > 6 else min(int(digits), MAX_RETRY_AFTER_S))
    if bare == email.utils.formatdate(_NOW_US // 1_000_000 + 60, usegmt=True):
        assert found is not None
        assert abs(found - (60 - _NOW_US % 1_000_000 / 1_000_000)) < 0.001
    pause_s = remote.seconds(text)
    assert pause_s >= 0
    assert not math.isnan(pause_s)


RETRY_WORDS = (b"Tue, 23 Nov 2021 12:14:14 GMT", b"GMT", b"+0000", b"-9999", b"Sun", b"Feb", b"29", b"9999", b"1e9",
               b"inf", b"nan", b"-", b":", b"\xb2", b"0" * 300, b"9" * 400)  # fmt: skip
