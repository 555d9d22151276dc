"""Folds the WAL into the database: most of it beside the batches, on a thread of its own, the end between two of them.

Done on the recording thread alone, each checkpoint is 10 to 40 ms in which nothing is recorded: the slowest hundredth.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import apsw
import structlog

from turnlog.store.sqlite.connection import BUSY_MS, connect, was_refused
from turnlog.store.sqlite.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_CHECKPOINT_PAGES = 4000
"""8 MiB of WAL: large enough that pages written again and again reach the database once, small enough to open fast."""
_FORCE_CHECKPOINT_PAGES = 32_768
"""64 MiB: by then readers are waited for, so that the WAL can start over and stays bounded."""
_READERS_WAITED_FOR_MS = 100
_log = structlog.get_logger()


class Checkpoints:
    """The checkpoints of one store, whose batches ``writer`` records on the thread of ``recording``.

    ``on_failure`` hears, on whatever thread, of a checkpoint that failed: what the kernel did with the database's pages
    is unknown then, and the WAL, which still has them, must be left alone.
    """

    def __init__(
        self, path: Path, writer: apsw.Connection, recording: Worker, on_failure: Callable[[BaseException], None]
    ) -> None:
        self._writer = writer
        self._recording = recording
        self._on_failure = on_failure
        self._stopped = False
        self._under_way = False
        self._wal_pages = 0
        self._due_pages = _CHECKPOINT_PAGES
        self._beside = connect(path)
        # Never closed before the connections are: closing it takes SQLite's locks on the database away.
        self._database = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._worker = Worker("turnlog-checkpointer")
        writer.set_wal_hook(self._committed)

    def _committed(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def after_batch(self) -> None:
        """Begin a checkpoint where the WAL has grown enough."""
        if self._wal_pages >= self._due_pages and not self._under_way and not self._stopped:
            self._under_way = True
            self._worker.then(self._beside_the_batches)

    def _beside_the_batches(self) -> None:
        if self._carried_out(self._beside, apsw.SQLITE_CHECKPOINT_PASSIVE):
            # SQLite syncs the database only at the end of the WAL, where this one hardly gets while batches go on.
            with self._telling_failures():
                os.fdatasync(self._database)
        self._recording.then(self._between_two_batches)

    def _between_two_batches(self) -> None:
        """To the end of the WAL, so that the next batch begins it anew: that batch alone waits for it."""
        forced = self._wal_pages >= _FORCE_CHECKPOINT_PAGES
        mode = apsw.SQLITE_CHECKPOINT_RESTART if forced else apsw.SQLITE_CHECKPOINT_PASSIVE
        if self._carried_out(self._writer, mode):
            self._wal_pages, self._due_pages = 0, _CHECKPOINT_PAGES
        elif forced and not self._stopped:
            # None of ours reads for so long. Not every batch is to wait for it, only one in so much of the WAL.
            if self._due_pages == _CHECKPOINT_PAGES:
                _log.warning(
                    "wal_held", pages=self._wal_pages, hint="a reader that is not the server's keeps it growing"
                )
            self._due_pages = self._wal_pages + _CHECKPOINT_PAGES
        self._under_way = False

    def _carried_out(self, connection: apsw.Connection, mode: int) -> bool:
        """Whether it got as far as it could."""
        if self._stopped:
            return False
        done = False
        with self._telling_failures():
            connection.set_busy_timeout(_READERS_WAITED_FOR_MS)
            try:
                connection.wal_checkpoint(mode=mode)
                done = True
            except apsw.BusyError:
                pass  # a reader stood in the way; the next batch asks again
            except apsw.FullError:
                pass  # the WAL still has everything; recording answers for the full disk
            except apsw.IOError as error:
                if not was_refused(error, connection):  # which is as good as full
                    raise
            finally:
                connection.set_busy_timeout(BUSY_MS)
        return done

    @contextlib.contextmanager
    def _telling_failures(self) -> Iterator[None]:
        """Raises nothing: nobody waits for a checkpoint, and the store must not go on as if nothing had happened."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - whatever it is
            self._on_failure(error)

    def stop(self) -> None:
        """Begin none any more: the WAL is to be left as it is."""
        self._stopped = True

    async def finish(self) -> None:
        """Carry out what is under way, but for the end of it, which may be waiting on the recording thread then."""
        await self._worker.close()

    @property
    def connection(self) -> apsw.Connection:
        """What is to be closed with the store's other connections, before ``close``."""
        return self._beside

    def close(self) -> None:
        """Let go of the file; every connection to it is closed."""
        os.close(self._database)
