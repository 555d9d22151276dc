"""Query parameters and headers: from text to values, or 400-02 naming the one that is wrong."""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import parse_qsl

from turnlog.errors import MalformedParameterError, UnprocessableError
from turnlog.model import EVENT_TYPES, MAX_PAGE_MESSAGES, EventType

MAX_WAIT_S = 30
_SECONDS = re.compile(r"[0-9]{1,2}(?:\.[0-9]{1,6})?", re.ASCII)
_LIMIT = re.compile(r"[0-9]{1,4}", re.ASCII)
_STRUCTURED_STRING = re.compile(r'"((?:[ !#-\[\]-~]|\\["\\])*)"', re.ASCII)
_BARE_KEY = re.compile(r"[!-~](?:[ -~]*[!-~])?", re.ASCII)
_MAX_KEY_CHARS = 255
_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")


class Query:
    """The query of a request. A parameter that the operation does not know is ignored."""

    def __init__(self, raw: bytes) -> None:
        self._pairs: list[tuple[str, str]] = []
        if not raw:
            return
        if _BROKEN_ESCAPE.search(raw):
            raise MalformedParameterError("[Query] a percent sign is not followed by two hexadecimal digits")
        try:
            # Without a limit of its own: the length of the target is bounded long before.
            self._pairs = parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict")
        except (UnicodeDecodeError, ValueError):
            raise MalformedParameterError("[Query] the query is not UTF-8, percent-encoded") from None

    def one(self, name: str) -> str | None:
        """The value of a parameter; ``None`` where it is absent. Raises MalformedParameterError where it is doubled."""
        values = [value for key, value in self._pairs if key == name]
        if len(values) > 1:
            raise MalformedParameterError(f"[Query '{name}'] given {len(values)} times: expected once")
        return values[0] if values else None

    def external_id(self) -> str:
        """The required ``externalId``."""
        value = self.text("externalId")
        if value is None:
            raise MalformedParameterError("[Query 'externalId'] required parameter is missing")
        return value

    def limit(self) -> int | None:
        """The page size, where one is asked for."""
        value = self.one("limit")
        if value is None:
            return None
        if not _LIMIT.fullmatch(value) or not 1 <= int(value) <= MAX_PAGE_MESSAGES:
            raise MalformedParameterError(f"[Query 'limit'] expected a whole number from 1 to {MAX_PAGE_MESSAGES}")
        return int(value)

    def wait_s(self) -> float:
        """How long to wait for something to come, where nothing is there."""
        value = self.one("wait")
        if value is None:
            return 0.0
        if not _SECONDS.fullmatch(value) or float(value) > MAX_WAIT_S:
            raise MalformedParameterError(f"[Query 'wait'] expected a number of seconds from 0 to {MAX_WAIT_S}")
        return float(value)

    def event_types(self) -> frozenset[EventType] | None:
        """The wanted types of events, separated by commas."""
        value = self.one("types")
        if value is None:
            return None
        types = frozenset(value.split(","))
        if not types <= set(EVENT_TYPES):
            raise MalformedParameterError(
                f"[Query 'types'] expected one or several of {', '.join(EVENT_TYPES)}, separated by commas"
            )
        return types  # type: ignore[return-value] # what is left are types

    def text(self, name: str) -> str | None:
        """A parameter that is looked for as it is."""
        value = self.one(name)
        if value is not None and "\0" in value:
            raise UnprocessableError(f"[Query '{name}'] U+0000 is in no stored id")
        return value


@lru_cache(maxsize=256)
def query(raw: bytes) -> Query:
    """The query; the same few are sent again and again. Raises MalformedParameterError."""
    return Query(raw)


def idempotency_key(values: list[str]) -> str | None:
    """The key in the ``Idempotency-Key`` header, quoted (RFC 8941 string) or bare; both spell the same key."""
    if not values:
        return None
    if len(values) > 1:
        raise MalformedParameterError("[Header 'Idempotency-Key'] sent more than once")
    text = values[0].strip(" \t")
    key = text
    if text.startswith('"'):
        match = _STRUCTURED_STRING.fullmatch(text)
        key = "" if match is None else re.sub(r"\\(.)", r"\1", match[1])
    elif not _BARE_KEY.fullmatch(text):
        key = ""
    if not 1 <= len(key) <= _MAX_KEY_CHARS:
        raise MalformedParameterError(
            f"[Header 'Idempotency-Key'] expected 1 to {_MAX_KEY_CHARS} printable ASCII characters, quoted or bare"
        )
    return key
