"""Answers: a status, headers and a body, or a stream of bodies; every error as the one envelope; all of it as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import TYPE_CHECKING

import msgspec

from turnlog.errors import Error, MethodNotAllowedError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Iterable

Header = tuple[bytes, bytes]

JSON = b"application/json"
CHALLENGE = b'ApiKey realm="turnlog", headers="asapp-api-id asapp-api-secret"'

# Transcripts are nobody's to cache, and JSON is never anything else.
_STANDING = b"cache-control: no-store\r\nx-content-type-options: nosniff\r\n"
_HEAD = b"HTTP/1.1 %b\r\n%bx-request-id: %b\r\n" + _STANDING + b"%b%b\r\n"
_STATUS = {status.value: f"{status.value} {status.phrase}".encode() for status in HTTPStatus}
_JSON_OF_LENGTH = b"content-type: " + JSON + b"\r\ncontent-length: %d\r\n"
_WHOLE_JSON = b"HTTP/1.1 200 OK\r\n%bx-request-id: %b\r\n" + _STANDING + _JSON_OF_LENGTH + b"\r\n%b"
_CLOSE = b"connection: close\r\n"
_SECURE = b"strict-transport-security: max-age=31536000\r\n"


class Response(msgspec.Struct):
    """An answer. With ``stream``, the body is what it yields and ``body`` is not looked at."""

    body: bytes = b""
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()
    stream: AsyncIterator[bytes] | None = None


def standing_headers(date: str, *, secure: bool) -> bytes:
    """The lines that every answer of a moment has; ``secure`` where they go over TLS."""
    return b"date: %b\r\n%b" % (date.encode(), _SECURE if secure else b"")


def whole_answer(response: Response, request_id: str, standing: bytes, *, close: bool, with_body: bool = True) -> bytes:
    """An answer without a stream, head and body, as it goes over the wire; ``with_body`` is not so for HEAD."""
    body = response.body
    if with_body and not close and not response.headers and response.status == 200 and response.content_type is JSON:
        return _WHOLE_JSON % (standing, request_id.encode(), len(body), body)
    fields = [*response.headers]
    if response.status != 204:
        fields += ((b"content-type", response.content_type), (b"content-length", b"%d" % len(body)))
    return _head(response.status, standing, request_id, fields, close=close) + (body if with_body else b"")


def stream_head(response: Response, request_id: str, standing: bytes, *, close: bool, chunked: bool) -> bytes:
    """The head of a streamed answer; one that is not ``chunked`` ends where the connection does."""
    fields = [*response.headers, (b"content-type", response.content_type)]
    if chunked:
        fields.append((b"transfer-encoding", b"chunked"))
    return _head(response.status, standing, request_id, fields, close=close)


def _head(status: int, standing: bytes, request_id: str, fields: Iterable[Header], *, close: bool) -> bytes:
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    return _HEAD % (_STATUS[status], standing, request_id.encode(), lines, _CLOSE if close else b"")


class _ErrorView(msgspec.Struct, rename="camel"):
    request_id: str
    code: str
    message: str


class _Envelope(msgspec.Struct):
    error: _ErrorView


def error_response(error: Error, request_id: str) -> Response:
    """``error`` in the envelope, with the headers that its code calls for."""
    headers: list[Header] = []
    if isinstance(error, UnauthenticatedError):
        headers.append((b"www-authenticate", CHALLENGE))
    if isinstance(error, MethodNotAllowedError):
        headers.append((b"allow", error.allow.encode()))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % error.retry_after_s))
    body = msgspec.json.encode(_Envelope(_ErrorView(request_id, error.code, error.message)))
    return Response(body, error.status, headers=tuple(headers))
