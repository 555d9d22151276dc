"""The pages of a database file read past SQLite, and held against their checksums: without a lock, beside everybody.

A reading transaction of SQLite's that walked over a large file would keep the WAL from beginning anew for as long.
"""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING

import apsw

from turnlog.errors import SettingError
from turnlog.store.sqlite.connection import HEADER_BYTES, PAGE_BYTES, has_checksums

if TYPE_CHECKING:
    from pathlib import Path

# The VFS computes what it has written, in C and without the interpreter lock. One bit of 2,048 bytes changes both
# halves of a checksum.
_WRONG = """
    WITH RECURSIVE page (number) AS (SELECT 0 UNION ALL SELECT number + 1 FROM page WHERE number + 1 < ?2)
    SELECT number FROM page WHERE ?2 AND NOT verify_checksum(substr(?1, number * ?3 + 1, ?3))
"""


class Pages:
    """A database file, open until ``close``.

    Open before the process has connected to the file, and closed after its connections are: closing any descriptor of
    a file takes SQLite's locks on it away.
    """

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._computing = apsw.Connection(":memory:")
        self._checksums: bool | None = None

    @property
    def has_checksums(self) -> bool:
        """Whether there is anything to hold the pages against: an older program's stores have no checksums."""
        if not self._checksums:
            header = os.pread(self._descriptor, HEADER_BYTES, 0)
            self._checksums = len(header) == HEADER_BYTES and has_checksums(header)
        return self._checksums

    def __len__(self) -> int:
        """How many whole pages the file has now."""
        return os.fstat(self._descriptor).st_size // PAGE_BYTES

    def take(self) -> None:
        """Let no other process take this file to record in, also not by another name of it. Raises SettingError."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingError("the file is in use by another server, by another name (a hard link)") from None

    def is_at(self, path: Path) -> bool:
        """Whether ``path`` still names this file: what is written into one without a name is lost with the process."""
        try:
            found = path.stat()
        except OSError:
            return False
        return os.path.samestat(found, os.fstat(self._descriptor))

    def wrong(self, first: int, count: int) -> list[int]:
        """Those of ``count`` pages from number ``first`` on (SQLite counts from 1) that are not what was written.

        One may be in the middle of being written, by a checkpoint: whoever finds a wrong page looks again. A page that
        cannot be read is wrong, too.
        """
        if not self.has_checksums:
            return []
        try:
            data = os.pread(self._descriptor, count * PAGE_BYTES, (first - 1) * PAGE_BYTES)
        except OSError:
            return [first] if count == 1 else [page for n in range(count) for page in self.wrong(first + n, 1)]
        whole = len(data) // PAGE_BYTES
        return [first + number for (number,) in self._computing.execute(_WRONG, (data, whole, PAGE_BYTES))]

    def close(self) -> None:
        """Let go of the file."""
        self._computing.close()
        os.close(self._descriptor)


_WAL_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24


def pages_in_wal(path: Path) -> set[int]:
    """The pages of the database at ``path`` whose newest content is in its WAL: what the database has is no damage.

    A checkpoint that was cut short, by a power cut for one, leaves half a page there; the next one puts that right.
    """
    found: set[int] = set()
    try:
        wal = os.open(path.with_name(path.name + "-wal"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return found
    try:
        salts = os.pread(wal, _WAL_HEADER_BYTES, 0)[16:24]
        place = _WAL_HEADER_BYTES
        while (frame := os.pread(wal, _FRAME_HEADER_BYTES, place))[8:16] == salts != b"":
            found.add(int.from_bytes(frame[:4]))
            place += _FRAME_HEADER_BYTES + PAGE_BYTES
    finally:
        os.close(wal)
    return found
