"""How a connection to the file is made, which process may write to it, and what SQLite's errors mean here."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import apsw

from turnlog.errors import SettingError
from turnlog.store.protocol import StoreFailedError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUSY_MS = 5000
"""How long a writer waits for a change of keys made by another process."""
APPLICATION_ID = 0x54524E4C
"""``TRNL`` in the file's header: tells a Turnlog store from somebody else's database."""
_MAGIC = b"SQLite format 3\0"
_HEADER_BYTES = 100
_PAGE_BYTES = 2048
_WRITER_CACHE_KIB = 32 * 1024
_READER_CACHE_KIB = 8 * 1024

# The transaction was refused before anything of it could become durable.
_CERTAINLY_NOT_STORED = (
    apsw.FullError,
    apsw.BusyError,
    apsw.LockedError,
    apsw.ReadOnlyError,
    apsw.PermissionsError,
    apsw.CantOpenError,
    apsw.TooBigError,
)


class _Translation:
    """Not made by ``contextmanager``: a read of one message takes not much longer than one of those."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, apsw.Error):
            return
        # A full disk, met by the WAL's index, is an IOError too.
        full = isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE
        if full or isinstance(error, _CERTAINLY_NOT_STORED):
            raise StoreUnavailableError(str(error)) from error
        raise StoreFailedError(f"{type(error).__name__}: {error}") from error


_TRANSLATION = _Translation()


def translated() -> _Translation:
    """Turn the driver's errors into the protocol's two; the only place that knows them."""
    return _TRANSLATION


def connect(path: Path, *, readonly: bool = False) -> apsw.Connection:
    """A connection as this program needs it: WAL, every commit synced to the disk before it returns.

    ``synchronous=FULL`` syncs the WAL at each commit; checkpoints are the store's own doing, behind a batch and never
    inside one. Raises SettingError, naming the path, where the file cannot be opened or is none of ours.
    """
    try:
        connection = apsw.Connection(str(path), statementcachesize=64)
        connection.set_busy_timeout(BUSY_MS)
        if path.stat().st_size == 0:
            # Concurrent messages belong to many conversations, and each rewrites a page of the listing's index: smaller
            # pages are less to write (a sixth more messages a second than with 4096).
            connection.pragma("page_size", _PAGE_BYTES)
            # Before WAL mode, so that the mark is in the file itself from its first page on: a WAL may be lost.
            connection.pragma("application_id", APPLICATION_ID)
        # One that only reads takes the file as it finds it: a backup, for one, is not in WAL mode.
        mode = "wal" if readonly else connection.pragma("journal_mode", "wal")
        if mode != "wal":
            raise SettingError(f"{path}: the file system does not offer what SQLite's WAL mode needs ({mode})")
        connection.pragma("synchronous", "FULL")
        connection.wal_autocheckpoint(0)
        connection.pragma("temp_store", "MEMORY")
        connection.pragma("cache_size", -(_READER_CACHE_KIB if readonly else _WRITER_CACHE_KIB))
        if readonly:
            connection.pragma("query_only", 1)
    except apsw.Error as error:
        raise SettingError(f"cannot open the store {path}: {_first_line(error)}") from error
    return connection


@contextmanager
def transaction(connection: apsw.Connection, kind: str = "IMMEDIATE") -> Iterator[None]:
    """One transaction, undone where the block raises."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def check_file(path: Path) -> None:
    """Raises SettingError unless the file is empty or a store, by its header and before SQLite touches it.

    Only for a process without a connection to the file: closing any descriptor of a file drops all the locks that the
    process has on it (POSIX), SQLite's among them, and another program could then take the WAL for abandoned.
    """
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except OSError as error:
        raise SettingError(f"cannot open the store {path}: {error.strerror}") from error
    if not header:
        return
    if not header.startswith(_MAGIC):
        raise SettingError(f"{path} is not an SQLite database")
    if header[68:72] != APPLICATION_ID.to_bytes(4):
        raise SettingError(f"{path} is an SQLite database of another program")


def create_file(path: Path) -> None:
    """Make sure that the file exists and that its name is on the disk, readable by the owner only.

    SQLite ignores an error when it syncs a folder, so the folder is synced here, where an error counts. Only for a
    process without a connection to the file, as ``check_file``.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.close(descriptor)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SettingError(f"cannot open the store {path}: {error.strerror}") from error


class ServerLock:
    """The right to record in a file: one process at a time holds it, and the kernel takes it back when that one dies.

    A file of its own beside the database, because SQLite's locks on the database are lost when any descriptor to it is
    closed.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock for the store at ``path``. Raises SettingError where another process holds it."""
        name = path.with_name(path.name + ".lock")
        try:
            self._descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingError(f"cannot lock the store {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise SettingError(f"the store {path} is in use by another server (process {holder})") from None
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)
