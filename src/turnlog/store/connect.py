"""From the ``store`` setting to an open store: the one place that knows which kinds there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from turnlog.errors import SettingError
from turnlog.store import sqlite

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from turnlog.store.protocol import KeyStore, Store

_SQLITE = "sqlite:///"
EXPECTED = "sqlite:///relative/path.db or sqlite:////absolute/path.db"


def _path(url: str) -> Path:
    """The file that ``url`` names.

    Its folder must exist: with a name mistyped or a disk not mounted, nothing may be recorded somewhere else instead.
    """
    name = url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or not name or "?" in name or "#" in name or "\0" in name:
        shown = re.sub(r"//[^/]*@", "//…@", url)  # a password has no place in a message
        raise SettingError(f"the store {shown!r} is not a store's URL: expected {EXPECTED}")
    path = Path(name).absolute()
    if path.is_dir():
        raise SettingError(f"the store {path} is a folder: expected the name of a file, as in {path / 'turnlog.db'}")
    if not path.parent.is_dir():
        raise SettingError(f"cannot open the store {path}: there is no folder {path.parent}")
    # Two names of one file must meet at one lock.
    return path.resolve()


async def open_store(url: str, *, idempotency_ttl_us: int) -> Store:
    """The store at ``url``, opened for recording by this process alone. Raises SettingError."""
    return sqlite.open_store(_path(url), idempotency_ttl_us=idempotency_ttl_us)


def open_keys(url: str, *, create: bool = False) -> AbstractAsyncContextManager[KeyStore]:
    """The keys of the store at ``url``, also while a server runs on it. Raises SettingError."""
    return sqlite.open_keys(_path(url), create=create)
