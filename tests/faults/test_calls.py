"""C02, D04: faults at single system calls, in the short form."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from tests.faults.calls import every_call
from tests.faults.disk import Disk, need_mounts
from tests.faults.nursery import Quick
from tests.faults.tracing import Rule
from tests.harness import run_cli

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.sqlite_only("PostgreSQL answers for its own disk")
SAMPLE = 61
"""Of so many positions one is tried; it divides no number of calls that come in a row."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a file system of the test's own is mounted."""
    need_mounts()
    return tmp_path / "disk"


def test_a_fault_at_any_call_loses_nothing(folder: Path) -> None:
    """C02, D04, D06: EIO, ENOSPC, kill -9, each at a sample of the calls that ``make faults`` tries all of."""
    entry = every_call(folder, step=SAMPLE)
    assert entry.passed, entry


def test_a_store_whose_making_was_killed_is_made_anew(folder: Path) -> None:
    """C02: also where the first page was written and its journal is still there; then it opens again and again."""
    with Disk(folder) as disk:
        disk.rule(Rule(("sync",), r"turnlog\.db", times=1, kill=True))
        with Quick(disk.url) as server:
            assert not server.listens()
        assert disk.met() == ["sync turnlog.db"]
        for _ in range(2):
            with Quick(disk.url) as server:
                assert server.listens(), server.said
                assert server.stop() == 0


def test_a_folder_that_cannot_be_synced_is_refused(folder: Path) -> None:
    """D04: SQLite passes over such an error, and the store's name could be gone after a power cut."""
    with Disk(folder) as disk:
        disk.rule(Rule(("sync-folder",), error=errno.EIO))
        done = run_cli("serve", "--port", "0", "--store", disk.url)
    assert done.returncode == 1
    assert str(folder) in done.stderr
    assert len(done.stderr.splitlines()) == 1
