"""D04: the names of the file and of its WAL are on the disk before anything is acknowledged.

SQLite syncs the folder too, once the WAL is synced for the first time, and ignores an error.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import TURNLOG, clean_environment, forgo, need

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.sqlite_only("a database's files are its own")


def traced(folder: Path, *strace: str, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
    """Run ``turnlog`` on a store in ``folder`` under strace, which writes to the file ``trace`` beside the folder."""
    program = [need("strace"), "-f", "-y", "-o", str(folder.parent / "trace"), *strace]
    possible = subprocess.run([*program, "true"], capture_output=True, text=True, timeout=60, check=False)
    if possible.returncode:
        forgo(f"strace cannot trace: {possible.stderr}")
    store = ("--store", f"sqlite:///{folder / 'turnlog.db'}")
    return subprocess.run(
        [*program, TURNLOG, *command, *store],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("keys", "create", "first")])
def test_a_folder_that_cannot_be_synced_is_refused(folder: Path, command: tuple[str, ...]) -> None:
    """One line that names the path, status 1, and nothing acknowledged."""
    done = traced(folder, "-P", str(folder), "-e", "trace=fsync", "-e", "inject=fsync:error=EIO", command=command)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    store = folder / "turnlog.db"
    assert done.stderr == f"turnlog: cannot sync the folder of the store {store}: Input/output error\n"


def test_the_folder_is_synced_once_the_wal_is_there(folder: Path) -> None:
    """And before the first commit of the WAL."""
    done = traced(folder, "-e", "trace=openat,fsync,fdatasync", command=("keys", "create", "first"))
    assert done.returncode == 0, done.stderr
    trace = (folder.parent / "trace").read_text("utf-8")
    made = re.search(r"openat\(.*turnlog\.db-wal\".*O_CREAT.*= \d", trace)
    assert made, trace
    synced = re.compile(rf"f(?:data)?sync\(\d+<{re.escape(str(folder))}(?:/(turnlog\.db-wal))?>\) += 0")
    order = [sync[1] for sync in synced.finditer(trace, made.end())]
    assert "turnlog.db-wal" in order, "invalid run: nothing was committed"
    assert order[0] is None, order
