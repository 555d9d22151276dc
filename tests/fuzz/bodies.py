"""Bodies, read slowly: Python's own JSON with duplicate names refused, then the schemas as the contract has them.

A body that has several things wrong may be refused for any of them; one that is not JSON is 400-01 whatever else.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import UNSET

from tests.fuzz import timestamps
from turnlog.errors import Error
from turnlog.http import webhook_bodies
from turnlog.http.bodies import BodyReader
from turnlog.model import NewAuthentication, NewConversation, NewMessage, Participant
from turnlog.webhooks import NewWebhook, Replay, WebhookChange

if TYPE_CHECKING:
    from collections.abc import Callable

MISMATCH, UNPROCESSABLE = "400-03", "422-01"
EVENTS = ("conversation.created", "conversation.updated", "message.created")


class _Number(NamedTuple):
    """A number as it was written."""

    text: str
    is_whole: bool


class _ConstantError(Exception):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len({name for name, _ in pairs}) == len(pairs)
    return dict(pairs)


def _no(_text: str) -> Any:
    raise _ConstantError


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, (dict, list)) else 0


def read_json(raw: bytes) -> Any:
    """The value of a JSON text as the contract has JSON. Raises RefusedError."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_object,
            parse_constant=_no,
            parse_int=lambda text: _Number(text, True),
            parse_float=lambda text: _Number(text, False),
        )
        json.dumps(value, ensure_ascii=False).encode("utf-8")  # no surrogate stands alone
    except (ValueError, AssertionError, RecursionError, _ConstantError):
        raise timestamps.RefusedError("400-01") from None
    if _depth(value) > 32:
        raise timestamps.RefusedError("400-01")
    return value


class Reading:
    """One reading of a value: what is wrong with it is gathered in ``problems``."""

    def __init__(self, *, lenient: bool) -> None:
        self.lenient = lenient
        self.problems: set[str] = set()

    def wrong(self, code: str = MISMATCH) -> Any:
        self.problems.add(code)

    def object(self, value: Any, *required: str) -> dict[str, Any]:
        """Its fields; a required one that is missing is wrong."""
        if not isinstance(value, dict):
            self.wrong()
            return {}
        for name in required:
            if name not in value:
                self.wrong()
        return value

    def text(self, fields: dict[str, Any], name: str, default: Any = None, *, least: int = 0) -> Any:
        if name not in fields:
            return default
        if not isinstance(fields[name], str) or len(fields[name]) < least:
            return self.wrong()
        return fields[name]

    def external_id(self, fields: dict[str, Any], name: str = "externalId") -> Any:
        value = fields.get(name)
        if isinstance(value, _Number) and value.is_whole and self.lenient:
            try:
                return str(int(value.text))
            except ValueError:  # longer than Python cares to read; longer than any id may be
                return self.wrong(UNPROCESSABLE)
        if isinstance(value, _Number) and value.is_whole and len(value.text) > 4000:
            self.wrong(UNPROCESSABLE)
        return value if isinstance(value, str) else self.wrong()

    def instant(self, fields: dict[str, Any], name: str = "timestamp") -> Any:
        text = self.text(fields, name)
        if text is not None:
            try:
                return timestamps.expected(text)
            except timestamps.RefusedError as refused:
                return self.wrong(refused.code)
        return None

    def types(self, fields: dict[str, Any], default: Any) -> Any:
        value = fields.get("types", default)
        if value is default or value is None:
            return value
        if not isinstance(value, list) or not value or any(one not in EVENTS for one in value):
            return self.wrong()
        return tuple(value)

    # The operations.

    def message(self, value: Any) -> Any:
        fields = self.object(value, "text", "sender", "timestamp")
        sender = self.object(fields.get("sender"), "role", "externalId")
        role = sender.get("role")
        if role not in ("agent", "customer", "system"):
            self.wrong()
        found: Any = (self.text(fields, "text", least=1), role, self.external_id(sender), self.instant(fields))
        return None if self.problems else NewMessage(*found)

    def batch(self, value: Any) -> Any:
        messages = self.object(value, "messages").get("messages")
        if not isinstance(messages, list) or not 1 <= len(messages) <= 300:
            return self.wrong()
        return [self.message(one) for one in messages]

    def conversation(self, value: Any) -> Any:
        fields = self.object(value, "externalId", "customer", "timestamp")
        metadata = fields.get("metadata", {})
        if not isinstance(metadata, dict) or not all(isinstance(entry, str) for entry in metadata.values()):
            self.wrong()
        people: list[Any] = [
            self._participant(fields[name]) if name in fields else None for name in ("customer", "agent")
        ]
        external_id, at, own_id = self.external_id(fields), self.instant(fields), self.text(fields, "id")
        if self.problems:
            return None
        return NewConversation(external_id, people[0], at, people[1], fields.get("metadata"), own_id)

    def _participant(self, value: Any) -> Any:
        fields = self.object(value, "externalId")
        external_id, name = self.external_id(fields), self.text(fields, "name")
        return None if self.problems else Participant(external_id, name)

    def authentication(self, value: Any) -> Any:
        fields = self.object(value, "customerExternalId")
        auth = fields.get("auth")
        if self.lenient and "token" in fields:
            self.text(fields, "token")
            auth = auth if "auth" in fields else {"token": fields["token"]}
        parts = self.object(auth)
        self.text(parts, "token")
        for name in ("body", "cookies", "headers"):
            if name in parts and not isinstance(parts[name], dict):
                self.wrong()
        names = tuple(name for name in ("body", "cookies", "headers", "token") if name in parts)
        if not names:
            self.wrong()
        found = (self.external_id(fields, "customerExternalId"), names, self.text(fields, "streamId"))
        return None if self.problems else NewAuthentication(*found)

    def webhook(self, value: Any) -> Any:
        fields = self.object(value, "url")
        found = (self.text(fields, "url"), self.types(fields, None), self.text(fields, "description", ""))
        more = (self.text(fields, "after", "now"), self.text(fields, "secret"))
        return None if self.problems else NewWebhook(*found, *more)

    def webhook_change(self, value: Any) -> Any:
        fields = self.object(value)
        enabled = fields.get("enabled", UNSET)
        if enabled is not UNSET and not isinstance(enabled, bool):
            self.wrong()
        found = (self.text(fields, "url", UNSET), self.types(fields, UNSET), self.text(fields, "description", UNSET))
        return None if self.problems else WebhookChange(*found, enabled)

    def rotation(self, value: Any) -> Any:
        fields = self.object(value)
        seconds, secret = fields.get("oldEndsInSeconds", _Number("86400", True)), self.text(fields, "secret")
        if not isinstance(seconds, _Number):
            return self.wrong()
        number = float(seconds.text)
        if not 0 <= number <= 30 * 86_400 or number != int(number):
            self.wrong()
        return None if self.problems else (secret, int(number))

    def replay(self, value: Any) -> Any:
        fields = self.object(value)
        given = [name for name in ("failed", "events", "after", "since") if name in fields]
        events = fields.get("events", [""])
        if not isinstance(events, list) or not 1 <= len(events) <= 1000 or any(not isinstance(e, str) for e in events):
            self.wrong()
        if len(given) != 1 or fields.get("failed", True) is not True:
            self.wrong()
        after, since = self.text(fields, "after"), self.instant(fields, "since")
        named = tuple(events) if "events" in fields and not self.problems else None
        return None if self.problems else Replay("failed" in fields, named, after, since)


_READERS = {lenient: BodyReader(lenient=lenient) for lenient in (True, False)}


def _check(raw: bytes, value: Any, name: str, read: Callable[[bytes], Any], *, lenient: bool) -> None:
    """``value`` is the body's, or RefusedError where it is not JSON."""
    reading = Reading(lenient=lenient)
    wanted = None
    if isinstance(value, timestamps.RefusedError):
        reading.wrong(value.code)
    else:
        wanted = getattr(reading, name)(value)
    code, found = "", None
    try:
        found = read(raw)
    except Error as error:
        code = error.code
    assert code in (reading.problems or {""}), (name, lenient, code, found, reading.problems)
    assert found == wanted or code, (name, lenient, found, wanted)


def check(content: bytes) -> None:
    """J01, J09. Each operation accepts exactly what is JSON and of its schema, as what it says."""
    try:
        value = read_json(content)
    except timestamps.RefusedError as refused:
        value = refused
    for lenient, reader in _READERS.items():
        for name in ("message", "batch", "conversation", "authentication"):
            _check(content, value, name, getattr(reader, name), lenient=lenient)
    for name in ("webhook", "webhook_change", "rotation", "replay"):
        _check(content, value, name, getattr(webhook_bodies, f"{name}_body"), lenient=True)


WORDS = (b"null", b"true", b"false", b"NaN", b"-Infinity", b"1.0", b"1E2", b"{", b"}", b"[", b"]", b'"', b"\\",
         b'\\"', b"\\\\", b"\\u0000", b"\\ud800", b"\\udc00", b"\\ud83d\\ude00", b"\xed\xa0\x80", b"\xef\xbb\xbf",
         b",", b":", b'"text":"a"', b'"text":', b'"te\\u0078t":"b",', b'"x":{},', b'"__proto__":{"a":1},',
         b'"externalId":123', b'"timestamp":"2021-11-23T12:13:14Z"', b'"role":"agent"',
         b'"types":["message.created"]', b'"types":null', b'"since":"2021-11-23T12:13:14Z"', b'"failed":true',
         b'"enabled":false', b'"oldEndsInSeconds":60.0', b"[" * 33, b"]" * 33, b'{"a":' * 31, b"}" * 31, b"[" * 1100,
         b"1" * 4400)  # fmt: skip
