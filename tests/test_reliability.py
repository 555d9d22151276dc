"""docs/reliability.md is true: every fault has a test that there is, or a reason; its ledger is docs/ledger.json."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.faults import ledger
from tests.faults.ledger import BEGIN, END, PAGE, Entry, kept, line, table
from tests.harness import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

ROWS = re.findall(
    r"\w+",
    """
C01 C02 C03 C06 C07 C08 C09 C10 C11
D01 D03 D04 D06 D07 D08 D09 D11 D12
P01 P02 P04 P06 P07 P08 P09 P10 P11
N01 N02 N04 T01 T03 O01 O02 O03 O05 O06 O08
H01 H06 H07 H09 H12 H14 H16 J01 J09 S03 S08 S15
A01 A04 A05 A06 I01 I03 L01 L02 W01 W02 W03 W05 E01 E02 B01 U01 U02
""",
)
REASONS = ("not tested here: ", "not a fault of this store: ")
TEXT = PAGE.read_text("utf-8")
LEDGER, _, FAULTS = TEXT.partition(BEGIN + "\n")[2].partition(END)
TABLE = {row: cells for row, *cells in re.findall(r"^\| ([A-Z]\d\d) [^|]+ \| (.+) \| (.+) \|$", FAULTS, re.MULTILINE)}


@cache
def _tests(path: str) -> dict[str, set[str]]:
    """The tests of a file, each with the kinds of store that it is not for."""
    tree = ast.parse((REPOSITORY / "tests" / path).read_text("utf-8"))
    names = {
        ast.unparse(node.targets[0]): ast.unparse(node.value) for node in tree.body if isinstance(node, ast.Assign)
    }

    def excluded(*marks: str) -> set[str]:
        said = " ".join(f"{mark} {names.get(mark, '')}" for mark in marks)
        return {
            kind
            for kind, other in (("postgresql", "sqlite_only"), ("sqlite", "postgresql_only"))
            if f"{other}(" in said
        }

    of_all = excluded("pytestmark")
    return {
        node.name: of_all | excluded(*map(ast.unparse, node.decorator_list))
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_no_row_of_the_fault_list_is_missing() -> None:
    assert list(TABLE) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_each_fault_has_its_tests_or_a_reason(row: str) -> None:
    """Every test that is named is there, and is for the store of its column."""
    sqlite, postgresql = TABLE[row]
    cells = {"sqlite": sqlite, "postgresql": sqlite if postgresql == "the same" else postgresql}
    for kind, cell in cells.items():
        named = re.findall(r"`([\w/]+\.py)::(\w+)`", cell)
        assert cell.count("::") == len(named), cell
        for path, name in named:
            assert name in _tests(path), f"{row}: there is no {path}::{name}"
            if not cell.startswith(REASONS):
                assert kind not in _tests(path)[name], f"{row}: {path}::{name} is not for {kind}"
        assert named or cell.startswith(REASONS), f"{row}, {kind}: {cell}"


def test_the_page_shows_the_ledger() -> None:
    """`python -m tests.faults --record` writes both."""
    assert (table(kept()) if kept() else "") == LEDGER


def test_the_last_run_of_a_measure_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the file and, between its marks, on the page; what stands around them stays."""
    monkeypatch.setattr(ledger, "KEPT", tmp_path / "ledger.json")
    monkeypatch.setattr(ledger, "PAGE", tmp_path / "page.md")
    ledger.PAGE.write_text(f"before\n{BEGIN}\n{END}\nafter\n", "utf-8")
    ledger.record([Entry("C01", "sqlite", {"cycles": 1}), Entry("C01", "postgresql", {"cycles": 2})])
    ledger.record([Entry("C01", "sqlite", {"cycles": 3})])
    assert [(one["store"], one["figures"]) for one in kept()] == [
        ("postgresql", {"cycles": 2}),
        ("sqlite", {"cycles": 3}),
    ]
    page = ledger.PAGE.read_text("utf-8")
    assert page == f"before\n{BEGIN}\n{table(kept())}{END}\nafter\n"


def test_a_run_is_shown_with_its_figures_and_its_verdict() -> None:
    good = Entry("C01 kill -9", "sqlite", {"cycles": 500, "acknowledged": 512_345, "p99 s": 0.7})
    bad = Entry("C01 kill -9", "postgresql", {"lost": 1}, problems=("lost: 'a'",))
    idle = Entry("E01 streams", "", invalid="no stream was cut")
    assert line(good) == "C01 kill -9 (sqlite): passed: cycles 500, acknowledged 512,345, p99 s 0.7"
    assert line(bad).splitlines() == ["C01 kill -9 (postgresql): NOT PASSED: lost 1", "  lost: 'a'"]
    assert [one.passed for one in (good, bad, idle)] == [True, False, False]
    about = {"commit": "abc1234", "date": "2026-01-31"}
    shown = table(
        {"measure": e.measure, "store": e.store, "figures": e.figures, "problems": e.problems, "invalid": e.invalid}
        | about
        for e in (good, bad, idle)
    ).splitlines()
    assert shown[2].startswith(
        "| C01 kill -9 | sqlite | 500 cycles, 512,345 acknowledged, 0.7 p99 s | passed | `abc1234`"
    )
    assert "**missed**: lost: 'a'" in shown[3]
    assert "no stream was cut" in shown[4]
