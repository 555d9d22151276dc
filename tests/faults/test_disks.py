"""D06, D07, D08: a full disk, one that takes no writes, a slow one, in the short form; and a start on such a disk."""

from __future__ import annotations

import errno
import os
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.faults.disk import Disk, need_mounts
from tests.faults.disks import FULL, QUOTA, READ_ONLY, refusing, slow
from tests.faults.tracing import Rule
from tests.harness import TURNLOG, clean_environment, forgo, need, run_cli
from tests.older import old_store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.sqlite_only("the disk is the server's own")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a file system of the test's own is mounted."""
    need_mounts()
    return tmp_path / "disk"


@pytest.mark.parametrize(
    ("measure", "rule"),
    [("D06 a full disk", FULL), ("D06 a quota that is used up", QUOTA), ("D07 a disk made read-only", READ_ONLY)],
    ids=["full", "quota", "read-only"],
)
def test_a_disk_that_takes_no_writes_refuses_them_and_recovers(folder: Path, measure: str, rule: Rule) -> None:
    """D06, D07: 503-01, reads go on, no restart; then all is well without help, and a power cut loses nothing."""
    entry = refusing(folder, measure, rule, times=1)
    assert entry.passed, entry


def test_a_slow_disk_is_waited_for(folder: Path) -> None:
    """D08, 300 ms: batches grow, the queue is bounded, the rest is 503-01, health answers, nothing is early."""
    entry = slow(folder, delay_s=0.3, seconds=1.5)
    assert entry.passed, entry


def test_a_disk_slower_than_the_deadline_leaves_the_outcome_open(folder: Path) -> None:
    """D08, seconds: 503-02 at the deadline, never 200 before the sync, and the server goes on once it has ended."""
    entry = slow(folder, delay_s=1.5, deadline_s=0.4, seconds=2)
    assert entry.passed, entry


# At the start.


@contextmanager
def _mounted_read_only(folder: Path) -> Iterator[None]:
    """The folder as it is, on a file system that takes no writes, which the superuser feels, too."""
    mount = need("mount")
    for options in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        if subprocess.run([mount, *options], check=False, capture_output=True, timeout=30).returncode:
            forgo("mounting is not permitted")
    try:
        yield
    finally:
        subprocess.run([need("umount"), str(folder)], check=True, capture_output=True, timeout=30)


def _refused(folder: Path, cwd: Path, *, as_one_of_many: bool = False) -> None:
    """A start there ends with a line that names the path, and leaves nothing where it was started."""
    command = [TURNLOG, "serve", "--port", "0", "--store", f"sqlite:///{folder / 'turnlog.db'}"]
    if as_one_of_many and os.geteuid() == 0:
        command = [need("setpriv"), "--bounding-set", "-dac_override,-dac_read_search", *command]
    done = subprocess.run(
        command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(folder) in done.stderr
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize("there", [True, False], ids=["a store", "none"])
def test_a_start_on_a_read_only_disk_names_the_path(tmp_path: Path, *, there: bool) -> None:
    """D07: it ends at once, and leaves everything as it is, there and elsewhere."""
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    if there:
        old_store(disk, 1)
    before = {path.name: path.read_bytes() for path in disk.iterdir()}
    with _mounted_read_only(disk):
        _refused(disk, elsewhere)
        assert {path.name: path.read_bytes() for path in disk.iterdir()} == before


def test_a_start_in_a_folder_that_is_not_there_names_the_path(tmp_path: Path) -> None:
    """D07: the folder is not made, nor anything in the folder where the server was started."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    _refused(tmp_path / "no such folder", elsewhere)
    assert not (tmp_path / "no such folder").exists()


@pytest.mark.parametrize("there", [True, False], ids=["a store", "none"])
def test_a_start_without_permission_names_the_path(tmp_path: Path, *, there: bool) -> None:
    """D07: the folder, and the store in it, are somebody else's; also for the superuser, once it obeys permissions."""
    disk, elsewhere = tmp_path / "disk", tmp_path / "elsewhere"
    disk.mkdir()
    elsewhere.mkdir()
    if there:
        old_store(disk, 1)
    nobody = 65534
    for path in (*disk.iterdir(), disk):
        path.chmod(0o500 if path == disk else 0o400)
        if os.geteuid() == 0:
            os.chown(path, nobody, nobody)
    before = {path.name: path.read_bytes() for path in disk.iterdir()}
    _refused(disk, elsewhere, as_one_of_many=True)
    assert {path.name: path.read_bytes() for path in disk.iterdir()} == before


def test_a_start_on_a_full_disk_names_the_path(folder: Path, tmp_path: Path) -> None:
    """D06: no half-made store is taken for one; with room again, the next start makes it."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with Disk(folder) as disk:
        disk.rule(Rule(("write",), error=errno.ENOSPC))
        _refused(folder, elsewhere)
        disk.rule(Rule(times=0))
        done = run_cli("keys", "create", "tests", "--store", disk.url)
        assert done.returncode == 0, done.stderr
