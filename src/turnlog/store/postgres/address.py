"""Which database: the URL of a store on PostgreSQL, as libpq writes them, with one or several hosts."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlencode, urlsplit

from turnlog.errors import SettingError

SCHEMES = ("postgresql", "postgres")
EXPECTED = "postgresql://user:password@host:port/database, or …@host1:port1,host2:port2/database"
_CONNECT_S = 1.0
_MAX_CONNECT_S = 60.0
_WRITABLE = ("read-write", "primary")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\[\]:@/]+)(:[0-9]{1,5})?")
_NOT_A_URL = (
    f"the store given is not a store's URL: expected {EXPECTED}, "
    "where user and password have %40 for @, %3A for :, %2F for /, %3F for ?, %23 for # and %25 for %"
)
"""Says nothing of the URL: where it cannot be read, no one knows which part of it is the password."""


class Address(NamedTuple):
    """Where the database is. ``urls`` has one for each host, each leading there alone."""

    urls: tuple[str, ...]
    shown: str
    """Without the password: for logs and messages."""
    connect_s: float
    """How long one attempt may take: the URL's ``connect_timeout``."""


def parse(url: str) -> Address:
    """The address that ``url`` gives. Raises SettingError, without the password in it."""
    try:
        parts = urlsplit(url)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise SettingError(_NOT_A_URL) from None
    user, at, hosts = parts.netloc.rpartition("@")
    has_host = all(map(_HOST.fullmatch, hosts.split(","))) if hosts else "host" in query
    has_name = re.fullmatch(r"/[^/@\0]+", parts.path)
    if not has_host or not has_name or parts.fragment or ("@" in parts.query and not at):
        raise SettingError(_NOT_A_URL)
    shown = _shown(parts, query)
    wanted = query.setdefault("target_session_attrs", _WRITABLE[0])
    if wanted not in _WRITABLE:
        raise SettingError(f"the store {shown!r}: target_session_attrs must be read-write, not {wanted}")
    try:
        connect_s = float(query.pop("connect_timeout", _CONNECT_S))
    except ValueError:
        connect_s = 0
    if not 0 < connect_s <= _MAX_CONNECT_S:
        raise SettingError(f"the store {shown!r}: connect_timeout must be a number of seconds up to {_MAX_CONNECT_S:g}")
    rest = urlencode(query)
    urls = tuple(f"postgresql://{user}{at}{host}{parts.path}?{rest}" for host in hosts.split(","))
    return Address(urls, shown, connect_s)


def _shown(parts: SplitResult, query: dict[str, str]) -> str:
    user, at, hosts = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    kept = {key: value for key, value in query.items() if "password" not in key}
    rest = f"?{urlencode(kept, safe='/:')}" if kept else ""
    return f"{parts.scheme}://{name}{':…' if colon else ''}{at}{hosts}{parts.path}{rest}"
