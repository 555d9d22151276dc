"""How a connection to the file is made, which process may write to it, and what SQLite's errors mean here."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import quote

import apsw
import apsw.sqlite_extra

from turnlog.errors import FinalError, SettingError
from turnlog.store.protocol import StoreDamagedError, StoreFailedError, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

BUSY_MS = 5000
"""How long a writer waits for a change of keys made by another process."""
APPLICATION_ID = 0x54524E4C
"""``TRNL`` in the file's header: tells a Turnlog store from somebody else's database."""
_MAGIC = b"SQLite format 3\0"
HEADER_BYTES = 100
PAGE_BYTES = 2048
CHECKSUM_BYTES = 8
"""At the end of each page of a store with checksums; older stores have none (docs/decisions/0013-integrity.md)."""
_PLACE_OF_RESERVE = 20
"""Where the header says how many bytes at the end of a page are not SQLite's."""
NOT_AS_WRITTEN = "what was read of the file is not what was written there"
WHAT_TO_DO = "`turnlog check` says what, `turnlog restore` puts a backup in its place"
_LOCK_TRIES = 50
_LOCK_PAUSE_S = 0.02
"""A process that was killed holds its lock until the kernel has taken back all that it had."""
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

# What a file system says that takes no writes: read-only after an error, an immutable file, a quota that is used up.
_REFUSALS = frozenset({errno.EROFS, errno.EPERM, errno.EACCES, errno.EDQUOT})


def _load_checksums() -> bool:
    """Make SQLite's checksum VFS the default one, for every connection of the process from now on.

    What it does to a file with room for checksums: each page gets one as it is written into the database, and none is
    read with a wrong one. Another file it leaves as it is.
    """
    passing = apsw.Connection(":memory:")
    try:
        apsw.sqlite_extra.load(passing, "cksumvfs")
    except (LookupError, apsw.sqlite_extra.NotAvailable, apsw.Error):
        return False
    finally:
        passing.close()
    return True


HAS_CHECKSUMS = _load_checksums()
"""Whether this machine's APSW brings the checksum VFS, as its wheels do."""


class Translation:
    """See ``translated``; ``on_damage`` hears of damage before whoever has met it does.

    Not made by ``contextmanager``: a read of one message takes not much longer than one of those.
    """

    def __init__(self, on_damage: Callable[[StoreDamagedError], None] | None = None) -> None:
        self._on_damage = on_damage

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, apsw.Error):
            return
        # A full disk, met by the WAL's index, is an IOError too.
        full = isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_SHMSIZE
        if full or isinstance(error, _CERTAINLY_NOT_STORED):
            raise StoreUnavailableError(str(error)) from error
        # A wrong checksum. "Malformed" is no proof of damage: SQLite says it of a page that could not be read, too.
        if getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA:
            damage = StoreDamagedError(NOT_AS_WRITTEN)
            if self._on_damage is not None:
                self._on_damage(damage)
            raise damage from error
        raise StoreFailedError(f"{type(error).__name__}: {error}") from error


_TRANSLATION = Translation()


def translated() -> Translation:
    """Turn the driver's errors into the protocol's two; the only place that knows them."""
    return _TRANSLATION


def was_refused(error: BaseException | None, connection: apsw.Connection) -> bool:
    """Whether the connection's last call failed with ``error`` because a write was refused: nothing of it was done.

    As with a full disk, which SQLite tells apart by itself: everything goes on once writes are let through again.
    """
    is_write = isinstance(error, apsw.IOError) and getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_WRITE
    return is_write and connection.system_errno in _REFUSALS


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Where the driver fails while the store at ``path`` is opened, raise SettingError, naming the path."""
    try:
        yield
    except apsw.Error as error:
        if getattr(error, "extendedresult", 0) == apsw.SQLITE_IOERR_DATA:
            raise FinalError(f"the store {path} is damaged: {NOT_AS_WRITTEN}. {WHAT_TO_DO}") from error
        if isinstance(error, apsw.CorruptError):  # which SQLite says of what could not be read just now, too
            said = _first_line(error)
            raise SettingError(f"the store {path} is damaged or cannot be read: {said}. {WHAT_TO_DO}") from error
        raise SettingError(f"cannot open the store {path}: {_first_line(error)}") from error


def connect(path: Path, *, readonly: bool = False) -> apsw.Connection:
    """A connection as this program needs it: WAL, every commit synced to the disk before it returns.

    ``synchronous=FULL`` syncs the WAL at each commit; checkpoints are the store's own doing, behind a batch and never
    inside one. The names of the file and of its WAL are on the disk when this returns, but for one that only reads.
    Raises SettingError, naming the path, where the file cannot be opened or is none of ours.
    """
    with opening(path):
        if readonly and _is_at_rest(path):
            flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
            connection = apsw.Connection(f"file:{quote(str(path))}?immutable=1", flags=flags, statementcachesize=64)
        else:
            connection = apsw.Connection(str(path), statementcachesize=64)
        connection.set_busy_timeout(BUSY_MS)
        if not connection.pragma("page_count"):  # or there is a first page that is undone now: its maker was killed
            # Concurrent messages belong to many conversations, and each rewrites a page of the listing's index: smaller
            # pages are less to write (a sixth more messages a second than with 4096).
            connection.pragma("page_size", PAGE_BYTES)
            if HAS_CHECKSUMS:
                connection.reserve_bytes("main", CHECKSUM_BYTES)
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
        else:
            connection.pragma("schema_version")  # the first read in WAL mode makes the WAL
            _sync_folder(path)
    return connection


def _is_at_rest(path: Path) -> bool:
    """Whether nobody can record in the file: even to read it in WAL mode, SQLite would write a file beside it."""
    wal = path.with_name(path.name + "-wal")
    return not os.access(path.parent, os.W_OK) and not (wal.exists() and wal.stat().st_size)


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
            header = file.read(HEADER_BYTES)
    except OSError as error:
        raise SettingError(f"cannot open the store {path}: {error.strerror}") from error
    if not header.strip(b"\0"):
        return  # zeros are what a power cut may leave of a first page
    if not header.startswith(_MAGIC):
        raise SettingError(f"{path} is not an SQLite database")
    if header[68:72] != APPLICATION_ID.to_bytes(4):
        raise SettingError(f"{path} is an SQLite database of another program")
    if has_checksums(header) and not HAS_CHECKSUMS:
        raise SettingError(
            f"the store {path} has checksums, and APSW is installed here without SQLite's checksum VFS, which keeps "
            "them: install APSW from its wheel"
        )


def has_checksums(header: bytes) -> bool:
    """Whether the pages of the file that begins with ``header`` have checksums."""
    return header[_PLACE_OF_RESERVE] == CHECKSUM_BYTES


def create_file(path: Path) -> None:
    """Make sure that the file exists, readable by the owner only; its name is on the disk once there is a connection.

    Only for a process without a connection to the file, as ``check_file``.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not os.fstat(file).st_size:  # it may have been there, empty and readable by others
                os.fchmod(file, 0o600)
        finally:
            os.close(file)
    except OSError as error:
        raise SettingError(f"cannot open the store {path}: {error.strerror}") from error


def _sync_folder(path: Path) -> None:
    """Bring the names of the file and of those beside it to the disk. Raises SettingError where that fails.

    SQLite syncs the folder too, and ignores what comes of it.
    """
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise SettingError(f"cannot sync the folder of the store {path}: {error.strerror}") from error


class ServerLock:
    """The right to record in a file: one process at a time holds it, and the kernel takes it back when that one dies.

    A file of its own beside the database, because SQLite's locks on the database are lost when any descriptor to it is
    closed.
    """

    def __init__(self, path: Path) -> None:
        """Take the lock for the store at ``path``. Raises SettingError where another process keeps it for a second."""
        name = path.with_name(path.name + ".lock")
        try:
            self._descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingError(f"cannot lock the store {path}: {error.strerror}") from error
        if not self._taken():
            holder = os.pread(self._descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(self._descriptor)
            raise SettingError(f"the store {path} is in use by another server (process {holder})")
        with suppress(OSError):  # on a full disk nobody is told who holds it
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def _taken(self) -> bool:
        for left in reversed(range(_LOCK_TRIES)):
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if left:
                    time.sleep(_LOCK_PAUSE_S)
            else:
                return True
        return False

    def release(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)
