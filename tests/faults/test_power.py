"""D01, D03: power cuts, in the short form; and that the images of a disk are what they say."""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.faults.disk import need_mounts
from tests.faults.images import BLOCK_BYTES, forgotten, image, torn
from tests.faults.nursery import small_checkpoints
from tests.faults.power import control, power_cuts, start_cuts
from tests.faults.tracing import Change, Trace

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.sqlite_only("PostgreSQL answers for its own disk")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a file system of the test's own is mounted."""
    need_mounts()
    return tmp_path / "disk"


def test_power_cuts_lose_nothing_that_was_acknowledged(folder: Path) -> None:
    """D01, D03: what was synced is there and any part of the rest, torn blocks among it; checkpoints are cut, too."""
    entry = power_cuts(folder, lives=2, cuts=6, seconds=0.4, changes=(partial(small_checkpoints, 200),))
    assert entry.passed, entry


def test_a_server_that_does_not_wait_for_its_disk_is_caught(folder: Path) -> None:
    """D01, the control: ``synchronous=NORMAL`` shows a loss."""
    entry = control(folder, runs=1)
    assert entry.passed, entry


def test_power_cuts_while_a_store_is_made_or_migrated(folder: Path) -> None:
    """D01, D03, U01: it opens again, at one whole schema or the next, with what was in it."""
    entry = start_cuts(folder, cuts=2)
    assert entry.passed, entry


# The images have to be what they say, or the cuts prove nothing.

A, B = b"a" * BLOCK_BYTES, b"b" * BLOCK_BYTES


def _trace(*changes: tuple[str, int, str, int, bytes]) -> Trace:
    return Trace({"old": 1}, {1: A + A}, [Change(at, *change) for at, change in enumerate(changes)])


def _write(offset: int, data: bytes, inode: int = 1) -> tuple[str, int, str, int, bytes]:
    return ("write", inode, "", offset, data)


def _sync(covers: int, inode: int = 1) -> tuple[str, int, str, int, bytes]:
    return ("sync" if inode else "sync-folder", inode, "", covers, b"")


def test_what_was_synced_is_in_every_image() -> None:
    trace = _trace(_write(0, B), _sync(1), _write(BLOCK_BYTES, B))
    assert image(trace, 1, forgotten) == {"old": A + A}
    assert image(trace, 2, forgotten) == image(trace, 3, forgotten) == {"old": B + A}


def test_a_sync_is_of_what_came_before_it_was_asked_for() -> None:
    assert image(_trace(_write(0, B), _write(BLOCK_BYTES, B), _sync(1)), 3, forgotten) == {"old": B + A}


def test_any_subset_of_unsynced_blocks_may_persist_in_any_version() -> None:
    trace = _trace(_write(0, B * 2), _write(0, b"c" * BLOCK_BYTES), _write(2 * BLOCK_BYTES, B))
    chance = random.Random(1)  # noqa: S311 - a repeatable run, not a secret
    found = {image(trace, 3, torn(chance))["old"] for _ in range(500)}
    blocks = {tuple(bytes([content[place]]) for place in range(0, len(content), BLOCK_BYTES)) for content in found}
    assert {first for first, *_ in blocks} == {b"a", b"b", b"c"}
    assert {second for _, second, *_ in blocks} == {b"a", b"b"}
    assert {tuple(rest) for _, _, *rest in blocks} == {(), (b"b",), (b"\0",)}


def test_a_file_is_there_once_its_folder_was_synced_and_a_deleted_one_may_come_back() -> None:
    trace = _trace(("link", 2, "new", 0, b""), _write(0, B, 2), _sync(2, 2), _sync(3, 0), ("unlink", 1, "old", 0, b""))
    assert image(trace, 3, forgotten) == {"old": A + A}
    assert image(trace, 5, forgotten) == {"old": A + A, "new": B}
    assert image(trace, 5, lambda versions: versions) == {"new": B}


def test_a_renamed_file_has_one_name_or_the_other() -> None:
    trace = _trace(("rename", 1, "old", 0, b"new"))
    assert image(trace, 1, forgotten) == {"old": A + A}
    assert image(trace, 1, lambda versions: versions) == {"new": A + A}
