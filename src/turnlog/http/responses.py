"""Answers: a status, headers and a body, or a stream of bodies; and every error as the one envelope."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from turnlog.errors import Error, MethodNotAllowedError, UnauthenticatedError

if TYPE_CHECKING:
    from collections.abc import Iterable

Header = tuple[bytes, bytes]

JSON = b"application/json"
_STANDING: tuple[Header, ...] = ((b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"))
"""Transcripts are nobody's to cache, and JSON is never anything else."""
CHALLENGE = b'ApiKey realm="turnlog", headers="asapp-api-id asapp-api-secret"'


class Response(msgspec.Struct):
    """An answer. With ``stream``, the body is what it yields and ``body`` is not looked at."""

    body: bytes = b""
    status: int = 200
    content_type: bytes = JSON
    headers: tuple[Header, ...] = ()
    stream: AsyncIterator[bytes] | None = None

    def head(self, request_id: str, extra: Iterable[Header] = ()) -> list[Header]:
        """The complete headers."""
        head = [(b"x-request-id", request_id.encode()), *_STANDING, *self.headers, *extra]
        if self.stream is not None:
            head.append((b"content-type", self.content_type))
        elif self.status != 204:
            head.append((b"content-type", self.content_type))
            head.append((b"content-length", b"%d" % len(self.body)))
        return head


def rendered(headers: Iterable[Header]) -> bytes:
    """Headers as header lines."""
    return b"".join([b"%s: %s\r\n" % header for header in headers])


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
