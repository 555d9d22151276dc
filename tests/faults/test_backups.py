"""B01: the drill in its short form, and that it would notice a backup that lacks something."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.faults import backups
from tests.faults.backups import drill
from tests.faults.ledger import line
from tests.faults.site import Site
from tests.harness import run_cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

pytestmark = pytest.mark.sqlite_only("a database is backed up in its own way")


def test_everything_acknowledged_before_a_backup_is_in_it(new_store: Callable[[], str]) -> None:
    """B01."""
    with Site("sqlite", new_store) as site:
        entry = drill(site, messages=100_000, acknowledged=300)
    assert entry.passed, line(entry)


def test_the_drill_notices_a_backup_of_the_file_without_its_wal(
    new_store: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a person would do who copies the database and nothing else."""

    def copy_instead(*arguments: str, **options: Any) -> Any:
        if arguments[0] == "backup":
            target, url = arguments[1], arguments[3]
            shutil.copy(url.removeprefix("sqlite:///"), f"{target}.copied")
            done = run_cli(*arguments, **options)
            Path(f"{target}.copied").replace(target)
            return done
        return run_cli(*arguments, **options)

    monkeypatch.setattr(backups, "run_cli", copy_instead)
    with Site("sqlite", new_store) as site:
        entry = drill(site, messages=0, acknowledged=300)
    assert any(problem.startswith("lost") for problem in entry.problems), line(entry)
