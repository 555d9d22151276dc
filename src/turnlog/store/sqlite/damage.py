"""Damage to a file: what a start looks at before it records, and the mark that keeps the next start away.

The mark is a file beside the database, which may be past writing to. It names the file's inode: of a backup that is put
in the damaged file's place it says nothing.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import msgspec

from turnlog.errors import FinalError
from turnlog.store.protocol import StoreFailedError
from turnlog.store.sqlite import entries
from turnlog.store.sqlite.connection import WHAT_TO_DO, translated
from turnlog.store.sqlite.pages import pages_in_wal

if TYPE_CHECKING:
    from pathlib import Path

    import apsw

    from turnlog.store.sqlite.pages import Pages

_START_PAGES = 4096
"""8 MiB from the beginning and from the end: some 20 ms."""
_START_ENTRIES = 100
_START_ACCOUNTS = 1000
_SHOWN_PAGES = 10
# The ends of every table and index that recording adds to, and everything small.
_ENDS = (
    "SELECT * FROM sqlite_schema",
    "SELECT * FROM api_key JOIN api_secret ON api_key.number = api_secret.api_key",
    "SELECT * FROM webhook",
    "SELECT * FROM (SELECT * FROM conversation ORDER BY number DESC LIMIT 100)",
    "SELECT * FROM (SELECT * FROM conversation_change ORDER BY entry DESC LIMIT 100)",
    "SELECT * FROM (SELECT * FROM message ORDER BY entry DESC LIMIT 100)",
    "SELECT * FROM (SELECT * FROM authentication ORDER BY number DESC LIMIT 100)",
    "SELECT * FROM (SELECT * FROM idempotency ORDER BY created_at DESC LIMIT 100)",
    "SELECT max(id) FROM message",  # each by itself: SQLite finds one end by its index, and for two reads all of it
    "SELECT min(id) FROM message",
)
_ACCOUNTS = "SELECT number, name FROM account LIMIT ?"
_IN_SPAN = """
    SELECT (SELECT count(*) FROM message WHERE entry > ?1 AND entry <= ?2)
         + (SELECT count(*) FROM conversation_change WHERE entry > ?1 AND entry <= ?2)
"""


class _Mark(msgspec.Struct, frozen=True):
    inode: int
    problem: str


def mark_path(path: Path) -> Path:
    """Where the mark of the database at ``path`` is, where there is one."""
    return path.with_name(path.name + ".damaged")


def mark(path: Path, problem: str) -> None:
    """Keep the next start away. What cannot be written now, the next look at the page will find again."""
    with contextlib.suppress(OSError):
        mark_path(path).touch(0o600)
        mark_path(path).write_bytes(msgspec.json.encode(_Mark(path.stat().st_ino, problem)))


def marked(path: Path) -> str | None:
    """What was found wrong with this very file."""
    try:
        found = msgspec.json.decode(mark_path(path).read_bytes(), type=_Mark)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError):
        return f"{mark_path(path)} marks it, and cannot be read"
    return found.problem if found.inode == path.stat().st_ino else None


def refuse_marked(path: Path) -> None:
    """Raises FinalError where the file is marked."""
    problem = marked(path)
    if problem is not None:
        raise _damaged(path, problem)


def _damaged(path: Path, problem: str) -> FinalError:
    return FinalError(f"the store {path} is damaged: {problem}. {WHAT_TO_DO}")


def keep_mark(path: Path, kept: Path) -> None:
    """The file gets ``kept`` as a second name: a mark goes with it."""
    if marked(path) is not None:
        mark_path(kept).write_bytes(mark_path(path).read_bytes())


def unmark(path: Path) -> None:
    """Let the file be served again."""
    mark_path(path).unlink(missing_ok=True)


def damaged_pages(pages: Pages, path: Path, first: int, count: int) -> list[int]:
    """Those of the pages that are damaged, as far as one look can tell: a checkpoint may be writing one just now."""
    wrong = pages.wrong(first, count)
    return [page for page in wrong if page not in pages_in_wal(path)] if wrong else []


def tell_pages(numbers: list[int]) -> str:
    """Damaged pages, as a message names them."""
    more = len(numbers) - _SHOWN_PAGES
    shown = ", ".join(map(str, numbers[:_SHOWN_PAGES])) + (f" and {more} more" if more > 0 else "")
    return f"what is in page {shown} of the file is not what was written there, or cannot be read"


def refuse_damaged(connection: apsw.Connection, pages: Pages, path: Path) -> None:
    """Raises FinalError where this process may not record in the file: it is marked, or a quick look finds damage.

    The look is at both ends of the file and of its tables: some 30 ms, whatever the size. The process holds the lock.
    """
    problem = marked(path)
    if problem is None:
        try:
            with translated():
                problem = _quick_look(connection, pages, path)
        except StoreFailedError as error:
            problem = str(error)
    if problem is not None:
        raise _damaged(path, problem)


def _quick_look(connection: apsw.Connection, pages: Pages, path: Path) -> str | None:
    last = len(pages)
    wrong = damaged_pages(pages, path, 1, min(_START_PAGES, last))
    if last > _START_PAGES:
        wrong += damaged_pages(pages, path, max(_START_PAGES, last - _START_PAGES) + 1, _START_PAGES)
    if wrong:
        return tell_pages(wrong)
    for statement in _ENDS:
        for _ in connection.execute(statement):
            pass
    accounts: list[tuple[Any, ...]] = connection.execute(_ACCOUNTS, (_START_ACCOUNTS,)).fetchall()
    for number, name in accounts:
        head = entries.entry(number, entries.last_position(connection, number))
        before = max(head - _START_ENTRIES, entries.entry(number, entries.start(connection, number)))
        if connection.execute(_IN_SPAN, (before, head)).fetchone() != (head - before,):
            return f"the log of account {name} has a gap before position {entries.position(head)}"
    return None
