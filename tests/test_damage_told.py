"""What is said of files that cannot be used, and what a mark of damage keeps away."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

import pytest

from tests.damage import Filled, fill, place_of, turn_over
from tests.harness import run_cli
from turnlog.store.sqlite.damage import mark_path

pytestmark = pytest.mark.sqlite_only("a database has its own words, and checksums of its own")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A store that is only copied."""
    return fill(f"sqlite:///{tmp_path_factory.mktemp('filled') / 'turnlog.db'}", 3)


@pytest.fixture
def filled(original: Filled, tmp_path: Path) -> Filled:
    """A store of the test's own."""
    path = tmp_path / "turnlog.db"
    shutil.copy(original.path, path)
    return original._replace(url=f"sqlite:///{path}")


def said(command: str, *arguments: str) -> str:
    """What a command that refuses says, in one line."""
    done = run_cli(command, *arguments)
    assert done.returncode == 1, done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("turnlog: ")
    return line


def schema_place(path: Path) -> int:
    """Where in the file a table is described, outside of the page that everything begins with."""
    return path.read_bytes().index(b"CREATE TABLE webhook")


@pytest.mark.parametrize("page", ["first", "of the schema"])
def test_a_page_that_everything_hangs_on_is_named_like_any_other(filled: Filled, page: str) -> None:
    """D11: by a check; a start says that the file is damaged, and what to do."""
    number = turn_over(filled.path, 50 if page == "first" else schema_place(filled.path))
    done = run_cli("check", "--store", filled.url)
    assert done.returncode == 1
    assert f"page {number} of the file" in done.stdout
    refused = said("serve", "--port", "0", "--store", filled.url)
    assert f"the store {filled.path} is damaged" in refused
    assert "turnlog restore" in refused


def test_a_file_that_ends_too_soon_is_called_damaged_by_its_own_name(filled: Filled, tmp_path: Path) -> None:
    with filled.path.open("r+b") as file:
        file.truncate(2048 * 5)
    assert f"the store {filled.path} is damaged" in said("serve", "--port", "0", "--store", filled.url)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    refused = said("restore", str(filled.path), "--store", other)
    assert refused.startswith(f"turnlog: {filled.path} cannot be used, nothing was restored: ")
    assert "restoring" not in refused


def test_a_mark_keeps_away_also_what_would_change_keys(filled: Filled) -> None:
    turn_over(filled.path, place_of(filled.path, filled.texts[-1]))
    before = filled.path.read_bytes()
    mark_path(filled.path).write_text("no longer to be read", "utf-8")
    for command in (("serve", "--port", "0"), ("keys", "create", "one more")):
        refused = said(*command, "--store", filled.url)
        assert f"the store {filled.path} is damaged" in refused
        assert str(mark_path(filled.path)) in refused
    assert filled.path.read_bytes() == before


def test_a_damaged_store_that_makes_room_for_a_backup_keeps_its_mark(filled: Filled, original: Filled) -> None:
    mark = {"inode": filled.path.stat().st_ino, "problem": "what is in page 7"}
    mark_path(filled.path).write_text(json.dumps(mark), "utf-8")
    done = run_cli("restore", str(original.path), "--store", filled.url, "--force", "--json")
    assert done.returncode == 0, done.stderr
    kept = json.loads(done.stdout)["kept"]
    assert "what is in page 7" in said("serve", "--port", "0", "--store", f"sqlite:///{kept}")
    assert not mark_path(filled.path).exists()


def test_a_store_made_in_an_empty_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch(0o644)
    for command in (("keys", "list"), ("check",), ("backup", str(tmp_path / "b.db"))):
        assert f"there is no store in {path}: the file is empty" in said(*command, "--store", f"sqlite:///{path}")
    assert run_cli("keys", "create", "first", "--store", f"sqlite:///{path}").returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_backup_names_what_is_in_its_way(filled: Filled, tmp_path: Path) -> None:
    for target, why in (
        (tmp_path / "none" / "b.db", f"there is no folder {tmp_path / 'none'}"),
        (tmp_path, f"{tmp_path} is a folder"),
        (filled.path, f"{filled.path} is the store itself"),
        (Path("/dev/null"), "/dev/null is no regular file"),
    ):
        assert why in said("backup", str(target), "--force", "--store", filled.url)
    (tmp_path / "empty").touch()
    assert "it is an empty file" in said("restore", str(tmp_path / "empty"), "--store", filled.url, "--force")
