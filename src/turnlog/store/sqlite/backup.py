"""A copy of the file while a server records in it, and the way back.

The bytes are copied twice. First without any lock, in whatever state they are; then in a reading transaction, and only
what differs: while that lasts, checkpoints write nothing that is not in the WAL, and the WAL does not begin anew. Then
the WAL. That is what a crash would have left at that moment, and SQLite makes a whole database of it, as it does after
a crash. The transaction lasts as long as it takes to compare the file with its copy, so that the WAL stays short; one
that also wrote the copy would last as long as the slower disk takes for all of it.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import apsw

from turnlog.errors import SettingError
from turnlog.store.protocol import StoreFailedError
from turnlog.store.sqlite.beside import close_reading
from turnlog.store.sqlite.connection import WHAT_TO_DO, check_file, connect, transaction, translated
from turnlog.store.sqlite.migrate import is_store, no_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK_BYTES = 1 << 20
_SYNC_BYTES = 16 << 20
"""So much is handed to the disk at a time: what a kernel gathers for longer it flushes in one go, and the server's
syncs wait behind that."""
_WAL_HEADER_BYTES = 32
_ENDINGS = ("-wal", "-shm", "-journal", ".lock", ".damaged", ".restoring", ".partial")
"""Of what is beside a store and its own."""


def back_up(path: Path, target: Path, *, force: bool = False) -> int:
    """Make ``target`` a backup of the store at ``path``, with everything that was recorded before; its size in bytes.

    Written beside ``target``, checked, synced and renamed: there is a whole backup or none. Only for a process without
    a connection to the store, as ``check_file``. Raises SettingError, OSError; StoreFailedError where it is damaged.
    """
    if not is_store(path):
        raise SettingError(no_store(path))
    check_file(path)
    _refuse_target(path, target, force=force)
    with file_aside(target, ".partial") as (partial, copy):
        _copy(path, partial, copy)
        size = _made_whole(partial)
        put_in_place(partial, target)
    return size


def _refuse_target(path: Path, target: Path, *, force: bool) -> None:
    if not target.parent.is_dir():
        raise SettingError(f"cannot write {target}: there is no folder {target.parent}")
    if target.is_dir():
        raise SettingError(f"{target} is a folder: expected the name of a file, as in {target / 'turnlog.backup'}")
    place = target.resolve()
    if place.parent == path.parent and place.name in {path.name + ending for ending in _ENDINGS}:
        raise SettingError(f"{target} belongs to the store itself: expected the name of another file")
    if not target.exists():
        return
    if target.samefile(path):
        raise SettingError(f"{target} is the store itself: expected the name of another file")
    if not target.is_file():
        raise SettingError(f"{target} is no regular file")
    if not force:
        raise SettingError(f"{target} is there already: --force replaces it")


def _copy(path: Path, partial: Path, copy: int) -> None:
    with ExitStack() as stack:
        # Before the connection and closed behind it: closing a descriptor takes SQLite's locks away (check_file).
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, source)
        connection = connect(path, readonly=True)
        stack.callback(close_reading, connection, path)
        copy_bytes(source, copy)
        with translated(), transaction(connection, "DEFERRED"):
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchall()  # from here on it reads this moment
            copy_bytes(source, copy)
            _copy_wal(path, partial)


def copy_bytes(source: int, copy: int) -> None:
    """Make the file ``copy`` what ``source`` is; where they are alike already, nothing is written."""
    place = unsynced = 0
    while chunk := os.pread(source, CHUNK_BYTES, place):
        if os.pread(copy, len(chunk), place) != chunk:
            _write(copy, chunk, place)
            unsynced += len(chunk)
            if unsynced >= _SYNC_BYTES:
                os.fdatasync(copy)
                unsynced = 0
        place += len(chunk)
    os.ftruncate(copy, place)
    os.fsync(copy)


def _write(descriptor: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, place)
        view = view[written:]
        place += written


def _copy_wal(path: Path, partial: Path) -> None:
    """The WAL as far as it goes. One that is all in the database may begin anew even now: then it is read again."""
    try:
        wal = os.open(_beside(path, "-wal"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    copy = os.open(_beside(partial, "-wal"), flags, 0o600)
    try:
        begun = None
        while begun != (begun := os.pread(wal, _WAL_HEADER_BYTES, 0)):
            copy_bytes(wal, copy)
    finally:
        os.close(copy)
        os.close(wal)


def _made_whole(partial: Path) -> int:
    """The size of the copy, once SQLite has put the WAL into it and found nothing wrong."""
    connection = connect(partial)
    try:
        with translated():
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            found = connection.execute("PRAGMA quick_check(1)").fetchall()
            if found != [("ok",)]:
                raise StoreFailedError(f"it is damaged, no backup was made: {found[0][0]}. {WHAT_TO_DO}")
    finally:
        connection.close()
    return partial.stat().st_size


@contextmanager
def file_aside(path: Path, ending: str) -> Iterator[tuple[Path, int]]:
    """An empty file beside ``path``, this process's alone, and a descriptor of it; gone with the block.

    What a killed process has left of it is overwritten. Raises SettingError where another process is at it.
    """
    aside = path.with_name(path.name + ending)
    descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise SettingError(f"another process is writing {aside}") from None
    try:
        os.ftruncate(descriptor, 0)
        remove_log(aside)
        yield aside, descriptor
    finally:
        remove_log(aside)
        aside.unlink(missing_ok=True)
        os.close(descriptor)


def put_in_place(partial: Path, path: Path) -> None:
    """Sync the file, give it its name, and have the name on the disk."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    sync_folder(path)


def sync_folder(path: Path) -> None:
    """Have the names in the folder of ``path`` on the disk."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove_log(path: Path) -> None:
    """Take away what SQLite keeps beside the database: only where that has it all, or is to go, too."""
    for ending in ("-wal", "-shm"):
        _beside(path, ending).unlink(missing_ok=True)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)
