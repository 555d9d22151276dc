"""From the ``store`` setting to an open store: the one place that knows which kinds there are."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from turnlog.errors import SettingError
from turnlog.store import postgres, sqlite
from turnlog.store.postgres import address
from turnlog.store.protocol import KeyStore, LogReader
from turnlog.store.webhooks import WebhookStore

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

    from turnlog.store.audit import Findings
    from turnlog.store.protocol import Store
    from turnlog.store.sqlite.restore import Restored
    from turnlog.store.transfer import Source, Target

_SQLITE = "sqlite:///"
_EXPECTED = f"sqlite:///relative/path.db, sqlite:////absolute/path.db or {address.EXPECTED}"


def _is_postgres(url: str) -> bool:
    return url.partition("://")[0] in address.SCHEMES


def shown(url: str) -> str:
    """``url`` without a password: for logs and messages."""
    try:
        if _is_postgres(url):
            return address.parse(url).shown
    except SettingError:
        pass  # what cannot be read is shown with less in it
    # Greedy: an unescaped password may hold whatever else has a meaning in a URL.
    return re.sub(r"(?<=password=)[^&]*", "…", re.sub(r":.*@", ":…@", url))


def is_shared(url: str) -> bool:
    """Whether several processes may record in the store at once. Raises SettingError where it is no store's URL."""
    if not _is_postgres(url) and not url.startswith(_SQLITE):
        raise SettingError(f"the store {shown(url)!r} is not a store's URL: expected {_EXPECTED}")
    return _is_postgres(url)


def _path(url: str) -> Path:
    """The file that ``url`` names.

    Its folder must exist: with a name mistyped or a disk not mounted, nothing may be recorded somewhere else instead.
    """
    name = url.removeprefix(_SQLITE)
    if not url.startswith(_SQLITE) or not name or "?" in name or "#" in name or "\0" in name:
        raise SettingError(f"the store {shown(url)!r} is not a store's URL: expected {_EXPECTED}")
    path = Path(name).absolute()
    if path.is_dir():
        raise SettingError(f"the store {path} is a folder: expected the name of a file, as in {path / 'turnlog.db'}")
    if not path.parent.is_dir():
        raise SettingError(f"cannot open the store {path}: there is no folder {path.parent}")
    # Two names of one file must meet at one lock.
    return path.resolve()


async def open_store(url: str, *, idempotency_ttl_us: int, deadline_s: float = 10.0, create: bool = True) -> Store:
    """The store at ``url``, opened for recording; a file by this process alone. Raises SettingError.

    Where there is none it is made; a file without ``create`` is not.
    ``deadline_s`` is how long a batch may take where the store is at the other end of a network.
    """
    if _is_postgres(url):
        where = address.parse(url)
        return await postgres.open_store(where, idempotency_ttl_us=idempotency_ttl_us, deadline_s=deadline_s)
    return await sqlite.open_store(_path(url), idempotency_ttl_us=idempotency_ttl_us, create=create)


class KeysAndWebhooks(KeyStore, WebhookStore, LogReader, Protocol):
    """What another process may change beside those that record, and the logs, which it may read."""


def open_keys(url: str, *, create: bool = False) -> AbstractAsyncContextManager[KeysAndWebhooks]:
    """The keys and webhooks of the store at ``url``, also while servers run on it. Raises SettingError."""
    if _is_postgres(url):
        return postgres.open_keys(address.parse(url), create=create)
    return sqlite.open_keys(_path(url), create=create)


def open_log(url: str) -> AbstractAsyncContextManager[LogReader]:
    """The logs of the store at ``url``, to be read by another process than those that record; nothing is changed.

    Raises SettingError, also where the store is of an older program's schema; StoreUnavailableError.
    """
    if _is_postgres(url):
        return postgres.open_log(address.parse(url))
    return sqlite.open_log(_path(url))


async def migrate_store(url: str) -> tuple[int, int]:
    """Bring the store at ``url`` to this program's schema; its number before and after. Raises SettingError.

    A database that has no store yet gets one; a file that is not there is not made.
    """
    if _is_postgres(url):
        return await postgres.migrate_store(address.parse(url))
    return sqlite.migrate_store(_path(url))


async def open_source(url: str) -> Source:
    """The store at ``url``, to be copied from, also while servers run on it. Raises SettingError."""
    if _is_postgres(url):
        return await postgres.open_source(address.parse(url))
    return sqlite.open_source(_path(url))


async def open_target(url: str, source: Source) -> Target:
    """The store at ``url``, for ``source`` to be copied into while nobody serves it. Raises SettingError."""
    if _is_postgres(url):
        return await postgres.open_target(address.parse(url), source)
    return sqlite.open_target(_path(url), source)


async def check_store(url: str) -> Findings:
    """Everything that can be checked in the store at ``url``, also while servers run on it; nothing is changed.

    Raises SettingError, StoreUnavailableError.
    """
    if _is_postgres(url):
        return await postgres.check_store(address.parse(url))
    return await sqlite.check_store(_path(url))


async def back_up(url: str, target: Path, *, force: bool = False) -> int:
    """A backup of the file at ``url``, with everything recorded before, also while a server runs on it; its bytes.

    Raises SettingError, also for a database, which has its own way; OSError; StoreFailedError where it is damaged.
    """
    if _is_postgres(url):
        raise SettingError(
            f"{shown(url)} is backed up in PostgreSQL's own way, pg_basebackup with WAL archiving (docs/backup.md)"
        )
    return await asyncio.to_thread(sqlite.back_up, _path(url), target, force=force)


async def restore(url: str, backup: Path, *, stamp: str, force: bool = False) -> Restored:
    """Put the backup in the place of the file at ``url``, which nobody serves; ``stamp`` names the old one, kept aside.

    Raises SettingError, also for a database, which has its own way; OSError.
    """
    if _is_postgres(url):
        raise SettingError(f"{shown(url)} is restored in PostgreSQL's own way (docs/backup.md)")
    # What belongs to it is beside the file, not beside a link to it.
    backup = await asyncio.to_thread(backup.resolve)
    return await sqlite.restore(backup, _path(url), stamp=stamp, force=force)
