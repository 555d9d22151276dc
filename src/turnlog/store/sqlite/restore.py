"""A backup put in a store's place. Killed at any instant, the old store is there whole, or the new one."""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, NamedTuple

import apsw

from turnlog.errors import SettingError
from turnlog.store.protocol import StoreFailedError
from turnlog.store.sqlite.backup import copy_bytes, file_aside, put_in_place, remove_log, sync_folder
from turnlog.store.sqlite.check import check_store
from turnlog.store.sqlite.connection import ServerLock, check_file, connect, translated
from turnlog.store.sqlite.damage import keep_mark, unmark
from turnlog.store.sqlite.migrate import is_current, is_store, migrate

if TYPE_CHECKING:
    from pathlib import Path

    from turnlog.store.audit import Findings


class Restored(NamedTuple):
    """What is in the store now, and where the one is that was there before."""

    findings: Findings
    kept: Path | None


async def restore(backup: Path, path: Path, *, stamp: str, force: bool = False) -> Restored:
    """Make the store at ``path`` what ``backup`` is, of this program's schema; an old one is kept as ``path.stamp``.

    The copy is checked wholly before anything is touched. Raises SettingError where the backup is none or damaged,
    where another process has the store open, where there is one and no ``force``.
    """
    _refuse_no_backup(backup, path)
    lock = ServerLock(path)
    try:
        if is_store(path) and not force:
            raise SettingError(f"there is a store at {path}: --force keeps it aside and puts the backup in its place")
        with file_aside(path, ".restoring") as (partial, copy):
            await asyncio.to_thread(_prepare, backup, partial, copy)
            findings = await check_store(partial)
            if findings.problems:
                raise SettingError(f"{backup} is damaged, nothing was restored: {'; '.join(findings.problems)}")
            kept = _keep(path, path.with_name(f"{path.name}.{stamp}")) if is_store(path) else None
            _keep_owner(path, copy)
            put_in_place(partial, path)
            unmark(path)
        return Restored(findings, kept)
    finally:
        lock.release()


def _keep_owner(path: Path, copy: int) -> None:
    """Whoever serves the store may do so still, where somebody else restores it."""
    with contextlib.suppress(FileNotFoundError, PermissionError):
        found = path.stat()
        os.fchown(copy, found.st_uid, found.st_gid)


def _refuse_no_backup(backup: Path, path: Path) -> None:
    if not is_store(backup):
        empty = "an empty file" if backup.is_file() else "a folder" if backup.is_dir() else ""
        raise SettingError(f"{backup} is no backup: it is {empty}" if empty else f"there is no backup at {backup}")
    check_file(backup)
    if path.exists() and backup.samefile(path):
        raise SettingError(f"{backup} is the store itself")
    if backup.with_name(backup.name + ".lock").exists():
        ServerLock(backup).release()  # a server that records in it would say so here
    wal = backup.with_name(backup.name + "-wal")
    if wal.exists() and wal.stat().st_size:
        raise SettingError(f"{backup} is a store in use, whose newest entries are in {wal}: `turnlog backup` it first")


def _prepare(backup: Path, partial: Path, copy: int) -> None:
    """A copy of the backup, of this program's schema."""
    source = os.open(backup, os.O_RDONLY | os.O_CLOEXEC)
    try:
        copy_bytes(source, copy)
    finally:
        os.close(source)
    try:
        connection = connect(partial)
        try:
            with translated():
                if not is_current(connection, backup):
                    migrate(connection)
        finally:
            connection.close()
    except (SettingError, StoreFailedError) as error:
        said = str(error).replace(str(partial), str(backup))
        raise SettingError(f"{backup} cannot be used, nothing was restored: {said}") from error


def _keep(path: Path, kept: Path) -> Path:
    """Give the old store a second name; from then on it may lose the first.

    Its WAL is folded into it before: a database and its WAL cannot be replaced in one step, and one without the other
    is neither store. Where SQLite cannot do that, the old one is not whole anyhow; its WAL goes with it.
    """
    wal = path.with_name(path.name + "-wal")
    try:
        check_file(path)
        connection = connect(path)
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        finally:
            connection.close()
    except apsw.BusyError:
        raise SettingError(f"another program has the store {path} open") from None
    except (SettingError, apsw.Error):
        pass
    kept.hardlink_to(path)
    keep_mark(path, kept)
    if wal.exists() and wal.stat().st_size:
        wal.with_name(kept.name + "-wal").hardlink_to(wal)
    sync_folder(path)
    remove_log(path)
    sync_folder(path)
    return kept
