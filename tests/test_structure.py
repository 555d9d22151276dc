"""The house rules that a reviewer should not have to remember: which way imports go, where libraries live, how large
things grow. Each rule is a row with its reason; a failure names the rule, the place and the reason.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.harness import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# Floors from the ground up. A module may import its own floor's package and what lies on a lower floor.
FLOORS = (
    ("turnlog", "turnlog.errors"),
    ("turnlog.model", "turnlog.instants", "turnlog.ids", "turnlog.secret", "turnlog.logs", "turnlog.config"),
    ("turnlog.supervisor", "turnlog.peers"),
    (
        "turnlog.limits",
        "turnlog.pace",
        "turnlog.guesses",
        "turnlog.sent",
        "turnlog.signing",
        "turnlog.addresses",
        "turnlog.lookups",
    ),
    ("turnlog.store",),
    ("turnlog.writer", "turnlog.metrics"),
    ("turnlog.service", "turnlog.keyring"),
    ("turnlog.feed",),
    ("turnlog.sending", "turnlog.webhooks", "turnlog.deliveries"),
    ("turnlog.http", "turnlog.transcripts"),
    ("turnlog.targets", "turnlog.comparison"),
    ("turnlog.importing", "turnlog.copying", "turnlog.following"),
    ("turnlog.cli",),
    ("turnlog.__main__",),
)
WHY_FLOORS = "arrows only point down: what is below can be read, tested and replaced without what is above"

# What must not be imported although it lies lower: (who, what, but for, why). Health is the exception because it is a
# plain record without behaviour, made to be shown on the metrics page.
WALLS = (
    ("turnlog.http", "turnlog.store", "turnlog.store.protocol.Health", "HTTP speaks to the service, not to storage"),
    ("turnlog.service", "turnlog.store.sqlite", None, "the service knows the protocol, not a driver"),
    ("turnlog.service", "turnlog.store.connect", None, "cli/serve.py alone decides which store there is"),
    ("turnlog.writer", "turnlog.store.sqlite", None, "the queue works in front of any store"),
    ("turnlog.writer", "turnlog.store.connect", None, "the queue is given its store"),
    ("turnlog.keyring", "turnlog.store.sqlite", None, "keys come from any store"),
    ("turnlog.keyring", "turnlog.store.connect", None, "the keyring is given its store"),
    ("turnlog.metrics", "turnlog.store", "turnlog.store.protocol.Health", "metrics count what they are told"),
    ("turnlog.store", "turnlog.config", None, "the store gets values, not the settings"),
    ("turnlog.writer", "turnlog.config", None, "the writer gets values, not the settings"),
    ("turnlog.service", "turnlog.config", None, "the service gets values, not the settings"),
)  # fmt: skip

# Third-party libraries and their one home; ``None`` is anywhere. One that is not here is not allowed at all.
HOMES: dict[str, tuple[str, ...] | None] = {
    "httptools": ("turnlog.http",),
    "uvloop": ("turnlog.cli.serve",),
    "apsw": ("turnlog.store.sqlite",),
    "asyncpg": ("turnlog.store.postgres",),
    "aiohttp": ("turnlog.sending",),
    "click": ("turnlog.cli",),
    "rich": ("turnlog.cli",),
    "prometheus_client": ("turnlog.metrics",),
    "urllib3": ("turnlog.targets", "turnlog.following"),
    "structlog": None,
    "msgspec": None,
}
WHY_HOMES = "one library, one home: replacing one touches one place"

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
FORBIDDEN_NAMES = frozenset({"utils", "helpers", "common", "core", "base", "manager"})
UNFINISHED = re.compile("TO" + "DO|FIX" + "ME|XX" + "X")


@dataclass(frozen=True)
class Import:
    """One imported name, as ``module.name``, and where."""

    target: str
    line: int
    in_function: bool


@dataclass(frozen=True)
class Module:
    """One source file."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    def imports(self) -> Iterator[Import]:
        functions = [node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        inside = {id(node) for function in functions for node in ast.walk(function)}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for name in names:
                yield Import(name, node.lineno, id(node) in inside)

    def at(self, line: int) -> str:
        return f"{self.path.relative_to(REPOSITORY)}:{line}"


def _read(folder: str, root: str) -> list[Module]:
    found = []
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        parts = path.relative_to(REPOSITORY / root).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        text = path.read_text("utf-8")
        found.append(Module(name, path, text, ast.parse(text)))
    return found


@cache
def _source() -> list[Module]:
    return _read("src/turnlog", "src")


@cache
def _everything() -> list[Module]:
    return [*_source(), *_read("tests", "."), *_read("bench", ".")]


def _within(name: str, packages: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _floor(name: str) -> int:
    """The number of the floor that a module or one of its names is on; the longest row that fits decides."""
    fits = [(len(row), number) for number, rows in enumerate(FLOORS) for row in rows if _within(name, [row])]
    return max(fits)[1] if any(length > len("turnlog") for length, _ in fits) or name == "turnlog" else -1


def _package(name: str) -> str:
    return ".".join(name.split(".")[:2])


def _upward(modules: list[Module]) -> list[str]:
    problems = []
    for module in modules:
        here = _floor(module.name)
        if here < 0:
            problems.append(f"{module.at(1)}: {module.name} has no floor in FLOORS: give it one. Why: {WHY_FLOORS}")
        for one in module.imports():
            if not one.target.startswith("turnlog.") or _package(one.target) == _package(module.name):
                continue
            there = _floor(one.target)
            there = 0 if there < 0 and one.target.count(".") == 1 else there  # a name of turnlog/__init__.py
            if there >= here > 0:
                problems.append(f"{module.at(one.line)}: {module.name} imports {one.target}. Why not: {WHY_FLOORS}")
    return problems


def _through_walls(modules: list[Module]) -> list[str]:
    return [
        f"{module.at(one.line)}: {module.name} imports {one.target}. Why not: {why}"
        for module in modules
        for one in module.imports()
        for who, what, but_for, why in WALLS
        if _within(module.name, [who]) and _within(one.target, [what]) and one.target != but_for
    ]


def _strays(modules: list[Module]) -> list[str]:
    problems = []
    for module in modules:
        for one in module.imports():
            library = one.target.partition(".")[0]
            if library == "turnlog" or library in sys.stdlib_module_names:
                continue
            homes = HOMES.get(library, ())
            if homes is not None and not _within(module.name, homes):
                problems.append(f"{module.at(one.line)}: {library} belongs to {homes or 'nobody'}. Why: {WHY_HOMES}")
    return problems


def _hidden(modules: list[Module]) -> list[str]:
    why = "an import inside a function hides an arrow and usually a cycle"
    return [f"{m.at(one.line)}: {one.target} is imported in a function. Why not: {why}" for m in modules
            for one in m.imports() if one.in_function]  # fmt: skip


def _cycles(modules: list[Module]) -> list[str]:
    """What is left when modules that import none of the rest, or that none of the rest imports, are gone."""
    names = {module.name for module in modules}
    left = {module.name: _imported_modules(module, names) for module in modules}
    while True:
        wanted = {need for needs in left.values() for need in needs}
        kept = {name: needs & left.keys() for name, needs in left.items() if needs & left.keys() and name in wanted}
        if kept == left:
            break
        left = kept
    why = "modules in a cycle can only be read, tested and replaced together"
    return [f"{name} is in a cycle through {sorted(needs)}. Why not: {why}" for name, needs in left.items()]


def _imported_modules(module: Module, names: set[str]) -> set[str]:
    targets = {one.target if one.target in names else one.target.rpartition(".")[0] for one in module.imports()}
    return (targets & names) - {module.name}


def _too_long(modules: list[Module]) -> list[str]:
    problems = []
    for module in modules:
        lines = len(module.text.splitlines())
        if lines > MAX_FILE_LINES:
            problems.append(f"{module.at(1)}: {lines} lines, over {MAX_FILE_LINES}. Why: a file is read in one go")
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    why = "a function fits on a screen"
                    problems.append(f"{module.at(node.lineno)}: {node.name} has {lines} lines, over "
                                    f"{MAX_FUNCTION_LINES}. Why: {why}")  # fmt: skip
    return problems


def _vague(modules: list[Module]) -> list[str]:
    why = "such a name says nothing of what belongs in it, so everything ends up there"
    return [f"{m.at(1)}: a module named {part}. Why not: {why}" for m in modules for part in m.name.split(".")
            if part in FORBIDDEN_NAMES]  # fmt: skip


def _unfinished(modules: list[Module]) -> list[str]:
    why = "a wish in the code is seen by nobody: do it, or write an issue"
    return [f"{m.at(n)}: {line.strip()}. Why not: {why}" for m in modules
            for n, line in enumerate(m.text.splitlines(), 1) if UNFINISHED.search(line)]  # fmt: skip


SOURCE_RULES = (_upward, _through_walls, _strays, _hidden, _cycles)
RULES_FOR_ALL = (_too_long, _vague, _unfinished)


@pytest.mark.parametrize("rule", [*SOURCE_RULES, *RULES_FOR_ALL], ids=lambda rule: rule.__name__.strip("_"))
def test_the_house_keeps_its_rules(rule: object) -> None:
    assert callable(rule)
    problems = rule(_source() if rule in SOURCE_RULES else _everything())
    assert not problems, "\n" + "\n".join(problems)


# The rules have to be seen failing, or their silence says nothing.


def _module(name: str, text: str) -> Module:
    path = REPOSITORY / "src" / f"{name.replace('.', '/')}.py"
    return Module(name, path, text, ast.parse(text))


@pytest.mark.parametrize(
    ("rule", "name", "text", "part"),
    [
        (_upward, "turnlog.store.x", "from turnlog.http.app import App", "turnlog.http.app.App"),
        (_upward, "turnlog.model", "import turnlog.service", "turnlog.service"),
        (_upward, "turnlog.http.x", "from turnlog.cli import serve", "turnlog.cli.serve"),
        (_upward, "turnlog.service", "from turnlog.keyring import Keyring", "turnlog.keyring.Keyring"),
        (_upward, "turnlog.new", "", "no floor"),
        (_through_walls, "turnlog.http.x", "if TYPE_CHECKING:\n    from turnlog.store.protocol import Store", "x.py:2"),
        (_through_walls, "turnlog.service", "from turnlog.store.sqlite import open_store", "not a driver"),
        (_strays, "turnlog.service", "import apsw", "apsw belongs to"),
        (_strays, "turnlog.http.app", "from click import echo", "click belongs to"),
        (_strays, "turnlog.service", "import numpy", "nobody"),
        (_hidden, "turnlog.service", "def f():\n    import json", "service.py:2"),
        (_too_long, "turnlog.service", "\n" * 401, "401 lines"),
        (_too_long, "turnlog.service", "def f():\n" + "    pass\n" * 60, "f has 61 lines"),
        (_vague, "turnlog.http.utils", "", "utils"),
        (_unfinished, "turnlog.service", "# TO" + "DO: later", "service.py:1"),
    ],
)
def test_a_broken_rule_is_found(rule: object, name: str, text: str, part: str) -> None:
    assert callable(rule)
    (problem,) = rule([_module(name, text)])
    assert part in problem
    assert "Why" in problem


def test_a_cycle_is_found() -> None:
    ring = [_module("turnlog.a", "from turnlog.b import B"), _module("turnlog.b", "import turnlog.a")]
    others = [_module("turnlog.c", "import turnlog.a, turnlog.d"), _module("turnlog.d", "")]
    assert [problem.split()[0] for problem in _cycles([*ring, *others])] == ["turnlog.a", "turnlog.b"]
    assert _cycles([ring[0], *others]) == []


def test_every_library_that_is_listed_is_used_and_declared() -> None:
    """A row that nothing needs is a hole."""
    used = Counter(one.target.partition(".")[0] for module in _source() for one in module.imports())
    declared = (REPOSITORY / "pyproject.toml").read_text("utf-8").replace("_", "-")
    for library in HOMES:
        assert used[library], f"nothing imports {library}"
        assert f'"{library.replace("_", "-")}>=' in declared, f"{library} is not among the dependencies"
