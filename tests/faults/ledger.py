"""What a run of a fault driver came to: the same for all of them, so that one table can show them.

The last recorded run of each measure is kept in docs/ledger.json, and shown in docs/reliability.md between two marks.
"""

from __future__ import annotations

import fcntl
import json
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.harness import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

KEPT = REPOSITORY / "docs" / "ledger.json"
PAGE = REPOSITORY / "docs" / "reliability.md"
MOST_SHOWN = 4
"""Of what one run missed, in the table."""
BEGIN, END = "<!-- ledger: begin -->", "<!-- ledger: end -->"


@dataclass(frozen=True)
class Entry:
    """One run of one driver."""

    measure: str
    """The rows of the fault list and a few words, as in ``C01 kill -9 under load``."""
    store: str
    """``sqlite``, ``postgresql``, or empty where no store matters."""
    figures: dict[str, int | float | str] = field(default_factory=dict)
    """In the order in which they are shown, as in ``{"cycles": 500, "acknowledged": 512_345, "lost": 0}``."""
    problems: tuple[str, ...] = ()
    """What broke a promise; empty where all is well."""
    invalid: str = ""
    """Why the run proves nothing: nothing was acknowledged, no fault hit a busy moment. Not passed, then."""

    @property
    def passed(self) -> bool:
        return not self.problems and not self.invalid


Kept = list[dict[str, Any]]
"""Entries as they are kept: their fields, and ``commit`` and ``date`` of their run."""


def kept() -> Kept:
    """Every recorded run, by measure and store."""
    found: Kept = json.loads(KEPT.read_text("utf-8")) if KEPT.exists() else []
    return found


def record(entries: Iterable[Entry]) -> None:
    """Keep the runs, each in the place of the last one of its measure and store, and write the page anew."""
    about = {"commit": _commit(), "date": datetime.now(UTC).date().isoformat()}
    with PAGE.open("r+", encoding="utf-8") as page:
        fcntl.flock(page, fcntl.LOCK_EX)  # another driver may run beside this one
        rows = {(one["measure"], one["store"]): one for one in kept()}
        for entry in entries:
            rows[entry.measure, entry.store] = asdict(entry) | about
        ordered = [rows[key] for key in sorted(rows)]
        KEPT.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")
        text = page.read()
        before, after = text.partition(BEGIN)[0], text.partition(END)[2]
        page.seek(0)
        page.truncate()
        page.write(f"{before}{BEGIN}\n{table(ordered)}{END}{after}")


def _commit() -> str:
    """That of the program and the tests that ran; other changes, as to the ledger, do not count."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "src", "tests", "requirements")
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The ledger in Markdown."""
    lines = ["| Measure | Store | Figures | Verdict | Commit, date |", "|---|---|---|---|---|"]
    for row in rows:
        figures = ", ".join(f"{_shown(value)} {name}" for name, value in row["figures"].items())
        missed = f"**missed**: {'; '.join(row['problems'][:MOST_SHOWN])}" if row["problems"] else "passed"
        verdict = row["invalid"] or missed
        when = f"`{row['commit']}`, {row['date']}"
        lines.append(f"| {row['measure']} | {row['store'] or 'any'} | {figures} | {verdict} | {when} |")
    return "\n".join(lines) + "\n"


def _shown(value: float | str) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def line(entry: Entry) -> str:
    """One run as it is printed."""
    figures = ", ".join(f"{name} {_shown(value)}" for name, value in entry.figures.items())
    verdict = "passed" if entry.passed else f"NOT PASSED {entry.invalid}".rstrip()
    return "\n  ".join([f"{entry.measure} ({entry.store or 'any'}): {verdict}: {figures}", *entry.problems])
