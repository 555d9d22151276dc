"""A running server at the other end of HTTP: its address, the key to it, and what its answers say."""

from __future__ import annotations

import re
import ssl
from typing import TYPE_CHECKING

import msgspec
import urllib3

from turnlog.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Mapping

_CREDENTIAL = re.compile(r"[\x21-\x7e]{1,255}")


class _Problem(msgspec.Struct):
    message: str


class _Envelope(msgspec.Struct):
    error: _Problem


def credentials(url: str, api_id: str, api_secret: str) -> dict[str, str]:
    """The headers that a request to the server at ``url`` carries. Raises SettingError where one of them cannot be."""
    try:
        parts = urllib3.util.parse_url(url)
    except urllib3.exceptions.LocationParseError:
        parts = urllib3.util.Url()
    if parts.scheme not in ("http", "https") or not parts.host or parts.auth or parts.query or parts.fragment:
        raise SettingError("--url: expected the address of a server, as in http://127.0.0.1:8080")
    if not _CREDENTIAL.fullmatch(api_id) or not _CREDENTIAL.fullmatch(api_secret):
        raise SettingError("TURNLOG_API_ID and TURNLOG_API_SECRET must hold a key of the server and its secret")
    return {"asapp-api-id": api_id, "asapp-api-secret": api_secret}


def key_refused(url: str) -> SettingError:
    """What a 401 means, whichever operation answers it."""
    return SettingError(f"{url} refuses the key: TURNLOG_API_ID and TURNLOG_API_SECRET must hold a live one")


def redirected(url: str, headers: Mapping[str, str]) -> SettingError:
    """A redirect is not followed: it could lead the secret elsewhere."""
    return SettingError(f"{url} redirects to {headers.get('location')!r}: give that address")


def reason(error: BaseException) -> str:
    """The system's own words, where it had any; what to do about a certificate."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted ({cause.verify_message}); SSL_CERT_FILE names authorities to trust"
        if isinstance(cause, ssl.SSLError) and cause.reason == "WRONG_VERSION_NUMBER":
            return "it does not speak TLS: expected http://"
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        if isinstance(cause, TimeoutError):
            return "it has been silent for too long"
        cause = cause.__cause__ or cause.__context__
    return str(error)


def said(body: bytes) -> str:
    """The message of an error answer."""
    try:
        return msgspec.json.decode(body, type=_Envelope).error.message
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "without saying why"


def seconds(text: str | None) -> float:
    """What a Retry-After asks for; 0 where it asks for nothing that can be read."""
    return float(text) if text is not None and text.isascii() and text.isdecimal() else 0.0
