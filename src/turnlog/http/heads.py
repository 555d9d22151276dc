"""What is wrong with the head of a request: of what the parser lets through, and of what it does not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from turnlog.errors import HeadersTooLargeError, MalformedParameterError, MethodNotAllowedError, TargetTooLongError

if TYPE_CHECKING:
    from turnlog.config import Config
    from turnlog.errors import Error
    from turnlog.http.requests import Request

_VERSIONS = frozenset({"1.1", "1.0"})
_METHODS = "GET, HEAD, OPTIONS, POST"
_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ /[^ ]* HTTP/1\.[01]\r\n")


def check_head(request: Request, target_bytes: int, head_bytes: int, limits: Config) -> None:
    """Raises the refusal of a head that is too large or may be read in two ways.

    ``head_bytes`` is at least what the head takes: it may count a body that came in one piece with it.
    """
    headers, fields = request.headers, request.fields
    if target_bytes > limits.max_target_bytes:
        raise target_too_long(limits)
    if len(headers) > limits.max_headers or (
        # The single number first: only where it is over the limit is it worth adding up.
        head_bytes > limits.max_header_bytes
        and sum(len(name) + len(value) for name, value in headers) > limits.max_header_bytes
    ):
        raise headers_too_large(limits)
    if request.version not in _VERSIONS:
        raise malformed()  # the parser takes HTTP/0.9 for the version of a line that names none
    if not request.raw_path.startswith(b"/"):
        raise MalformedParameterError("the request target must be a path: /…")
    if b"transfer-encoding" in fields:
        codings = b",".join(value.lower() for name, value in headers if name == b"transfer-encoding")
        if codings.strip() != b"chunked" or request.version != "1.1":
            raise MalformedParameterError("[Header 'Transfer-Encoding'] expected chunked, in HTTP/1.1")
    if b"host" not in fields:
        if request.version != "1.0":
            raise MalformedParameterError("[Header 'Host'] not sent: expected once")
    elif request.sent_twice(b"host"):
        raise MalformedParameterError("[Header 'Host'] sent more than once: expected once")


def target_too_long(limits: Config) -> TargetTooLongError:
    """The refusal."""
    return TargetTooLongError(f"the target is over the limit of {limits.max_target_bytes} bytes")


def headers_too_large(limits: Config) -> HeadersTooLargeError:
    """The refusal."""
    return HeadersTooLargeError(
        f"the headers are over the limit of {limits.max_headers} and {limits.max_header_bytes} bytes"
    )


def malformed() -> MalformedParameterError:
    """The refusal of what is not HTTP."""
    return MalformedParameterError("not a well-formed HTTP/1.1 request")


def no_such_method(first_bytes: bytes) -> Error:
    """The refusal of a method that the parser does not know; what it does not know may not be HTTP at all."""
    if _REQUEST_LINE.match(first_bytes):
        return MethodNotAllowedError(f"this server knows no such method: it offers {_METHODS}", _METHODS)
    return malformed()
