"""Request bodies: from bytes to the model, or to the error that says what is wrong, where, and what would be right.

msgspec decodes and checks the published schema in one pass. It does not see duplicate keys, and does not look into
fields that it skips; so a body counts as read only if it holds exactly the strings that the schema names, which a
count of its quotation marks shows, or if the slow and strict reading of ``check_json`` accepts it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from turnlog import instants
from turnlog.errors import MalformedBodyError, SchemaMismatchError, UnprocessableError
from turnlog.model import (
    EVENT_TYPES,
    MAX_BATCH_MESSAGES,
    MAX_ID_CHARS,
    ROLES,
    NewAuthentication,
    NewConversation,
    NewMessage,
    Participant,
    Role,
)

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_DEPTH = 32
MAX_VALUES = 100_000
"""Of one body that is looked at strictly; a batch as the schema has it is a fiftieth of that."""
T = TypeVar("T")

ExternalId = str | int
"""An integer is accepted while leniency is on, because the published example sends one."""


class SenderBody(msgspec.Struct, rename="camel"):
    role: Role
    external_id: ExternalId


class MessageBody(msgspec.Struct):
    text: Annotated[str, Meta(min_length=1)]
    sender: SenderBody
    timestamp: str


class BatchBody(msgspec.Struct):
    messages: Annotated[list[MessageBody], Meta(min_length=1, max_length=MAX_BATCH_MESSAGES)]


class ParticipantBody(msgspec.Struct, rename="camel"):
    external_id: ExternalId
    name: str | UnsetType = UNSET


class ConversationBody(msgspec.Struct, rename="camel"):
    external_id: ExternalId
    customer: ParticipantBody
    timestamp: str
    agent: ParticipantBody | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET
    id: str | UnsetType = UNSET


class AuthBody(msgspec.Struct, rename="camel"):
    body: dict[str, Any] | UnsetType = UNSET
    cookies: dict[str, Any] | UnsetType = UNSET
    headers: dict[str, Any] | UnsetType = UNSET
    token: str | UnsetType = UNSET


class AuthenticationBody(msgspec.Struct, rename="camel"):
    customer_external_id: ExternalId
    auth: AuthBody | UnsetType = UNSET
    token: Any = UNSET
    """Part of the schema only while leniency is on; else a field that nobody knows."""
    stream_id: str | UnsetType = UNSET


_decode_message = msgspec.json.Decoder(MessageBody).decode
_decode_batch = msgspec.json.Decoder(BatchBody).decode
_decode_conversation = msgspec.json.Decoder(ConversationBody).decode
_decode_authentication = msgspec.json.Decoder(AuthenticationBody).decode

# The strings of a message's canonical body: text, sender, role, externalId, timestamp and the values of three of them.
_MESSAGE_STRINGS = 8


class BodyReader:
    """Reads bodies; ``lenient`` accepts what the published examples do beyond the published schema."""

    def __init__(self, *, lenient: bool) -> None:
        self._lenient = lenient

    def message(self, raw: bytes) -> NewMessage:
        """The body of operation 4. Raises MalformedBodyError, SchemaMismatchError, UnprocessableError."""
        body = decode(raw, _decode_message)
        if _strings_in(raw) != _MESSAGE_STRINGS + (type(body.sender.external_id) is str):
            check_json(raw)
        return self._message(body, "")

    def batch(self, raw: bytes) -> list[NewMessage]:
        """The body of operation 7. Raises as ``message``."""
        body = decode(raw, _decode_batch)
        expected = 1 + sum(_MESSAGE_STRINGS + (type(m.sender.external_id) is str) for m in body.messages)
        if _strings_in(raw) != expected:
            check_json(raw)
        return [self._message(message, f"/messages/{index}") for index, message in enumerate(body.messages)]

    def conversation(self, raw: bytes) -> NewConversation:
        """The body of operation 1. Raises as ``message``."""
        body = decode(raw, _decode_conversation)
        check_json(raw)
        return NewConversation(
            self._external_id(body.external_id, "/externalId"),
            self._participant(body.customer, "/customer"),
            instant(body.timestamp, "/timestamp"),
            None if body.agent is UNSET else self._participant(body.agent, "/agent"),
            None if body.metadata is UNSET else body.metadata,
            None if body.id is UNSET else body.id,
        )

    def authentication(self, raw: bytes) -> NewAuthentication:
        """The body of operation 9: which parts were sent; what they hold ends here. Raises as ``message``."""
        body = decode(raw, _decode_authentication)
        check_json(raw)
        auth = body.auth
        if self._lenient and body.token is not UNSET:
            if not isinstance(body.token, str):
                raise SchemaMismatchError("[Path '/token'] Expected `str`")
            auth = AuthBody(token=body.token) if auth is UNSET else auth
        if auth is UNSET:
            raise SchemaMismatchError("[Path '/auth'] required field is missing")
        parts = tuple(name for name in auth.__struct_fields__ if getattr(auth, name) is not UNSET)
        if not parts:
            raise SchemaMismatchError("[Path '/auth'] expected at least one of body, cookies, headers, token")
        return NewAuthentication(
            self._external_id(body.customer_external_id, "/customerExternalId"),
            parts,
            None if body.stream_id is UNSET else body.stream_id,
        )

    def _message(self, body: MessageBody, pointer: str) -> NewMessage:
        sender = body.sender
        return NewMessage(
            body.text,
            sender.role,
            self._external_id(sender.external_id, f"{pointer}/sender/externalId"),
            instant(body.timestamp, f"{pointer}/timestamp"),
        )

    def _participant(self, body: ParticipantBody, pointer: str) -> Participant:
        external_id = self._external_id(body.external_id, f"{pointer}/externalId")
        return Participant(external_id, None if body.name is UNSET else body.name)

    def _external_id(self, given: ExternalId, pointer: str) -> str:
        if isinstance(given, str):
            return given
        if self._lenient:
            return str(given)
        raise SchemaMismatchError(f"[Path '{pointer}'] Expected `str`, got `int`")


def instant(text: str, pointer: str) -> int:
    """The instant that a timestamp names. Raises SchemaMismatchError, UnprocessableError."""
    try:
        return instants.parse(text)
    except instants.NotAnInstantError:
        raise SchemaMismatchError(f"[Path '{pointer}'] Expected {instants.EXPECTED}") from None
    except instants.OutOfRangeError:
        raise UnprocessableError(f"[Path '{pointer}'] outside the years 0001 to 9999 UTC") from None


def decode(raw: bytes, decoder: Callable[[bytes], T]) -> T:
    """What ``decoder`` makes of a body. Raises MalformedBodyError, SchemaMismatchError, UnprocessableError.

    The caller has to see to what msgspec does not look at (see above).
    """
    try:
        return decoder(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        check_json(raw)  # what is not JSON at all is another error, wherever in the body it shows
        if not isinstance(error, msgspec.ValidationError):
            raise MalformedBodyError("the body is not JSON") from None
        raise _schema_mismatch(str(error)) from None


_PROBLEM = re.compile(r"(?P<what>.*?)(?: - at `(?:key in )?\$(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")


def _schema_mismatch(problem: str) -> SchemaMismatchError | UnprocessableError:
    """Msgspec's words with a JSON pointer for its path, and the values that would be right."""
    match = _PROBLEM.fullmatch(problem)
    what, path = (problem, "") if match is None else (match["what"], match["path"] or "")
    pointer = re.sub(r"\[(\d+)\]", r"/\1", path).replace("[...]", "").replace(".", "/")
    missing = _MISSING.fullmatch(what)
    if missing is not None:
        return SchemaMismatchError(f"[Path '{pointer}/{missing[1]}'] required field is missing")
    if what == "Integer value out of range" and pointer.endswith(("/externalId", "/customerExternalId")):
        return UnprocessableError(f"[Path '{pointer}'] at most {MAX_ID_CHARS} characters are accepted")
    if pointer.endswith("/role"):
        what = f"Expected one of {', '.join(ROLES)}"
    if "/types/" in pointer:
        what = f"Expected one of {', '.join(EVENT_TYPES)}"
    return SchemaMismatchError(f"[Path '{pointer}'] {what}")


def _strings_in(raw: bytes) -> int:
    """How many strings a JSON text holds, names included; -1 where its backslashes make that hard to say."""
    if b"\\" not in raw:
        return raw.count(b'"') // 2
    if b"\\\\" in raw:
        return -1
    return (raw.count(b'"') - raw.count(b'\\"')) // 2


def check_json(raw: bytes) -> None:
    """Raises MalformedBodyError unless ``raw`` is JSON as the contract has it: 400-01 lists what it is not."""
    _check_shape(raw)
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_without_duplicates,
            parse_constant=_no_constant,
            parse_int=_any_number,
            parse_float=_any_number,
        )
        _check_strings(value)
    except json.JSONDecodeError as error:
        raise MalformedBodyError(f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except UnicodeDecodeError as error:
        raise MalformedBodyError(f"the body is not JSON: not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise MalformedBodyError("the body is not JSON: a surrogate stands alone") from None
    except RecursionError:
        raise MalformedBodyError(_TOO_DEEP) from None


_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _check_shape(raw: bytes) -> None:
    """Refuse what would take an object of Python's for every few bytes, before there are any.

    In passes of C over bytes: strings are taken out, then the innermost brackets, as often as there may be levels.
    """
    if (raw.count(b'"') - raw.count(b'\\"')) // 4 > MAX_VALUES:  # a backslash before a quote may be escaped itself
        raise MalformedBodyError(_TOO_MANY)
    outside = _STRING.sub(b"", raw)
    brackets = outside.translate(_BRACKETS, _ALL_BUT_BRACKETS)
    if outside.count(b",") + len(brackets) // 2 > MAX_VALUES:
        raise MalformedBodyError(_TOO_MANY)
    for _ in range(MAX_DEPTH):
        if not brackets:
            return
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets:
        raise MalformedBodyError(_TOO_DEEP)


_TOO_DEEP = f"the body is not accepted as JSON: nested deeper than {MAX_DEPTH}"
_TOO_MANY = f"the body is not accepted as JSON: over {MAX_VALUES:,} values"


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedBodyError("the body is not accepted as JSON: a name occurs twice in one object")
    return found


def _no_constant(_text: str) -> Any:
    raise MalformedBodyError("the body is not JSON: NaN and Infinity are not numbers there")


def _any_number(_text: str) -> int:
    return 0  # its digits are not looked at here: a number of any length is JSON


def _check_strings(value: Any) -> None:
    """Raises UnicodeEncodeError where a surrogate stands alone."""
    level = [value]
    while level:
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, str):
                item.encode("utf-8")
            elif isinstance(item, dict):
                deeper.extend(item)
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        level = deeper
