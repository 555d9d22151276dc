"""A small fuzzer that lets itself be led by coverage: inputs that reach a new line by a new way are built upon.

Why not atheris: it does not see into what is compiled (msgspec, httptools), where most of the reading is done here, and
it takes over the process, so that a test could not run a part of it. Why not hypothesis: its examples are no files.
This runs wherever Python does, and a run is repeated by its seed.
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import CodeType, FrameType, ModuleType

CORPUS = Path(__file__).parent / "corpus"
MAX_BYTES = 16 * 1024
MAX_CPU_S = 2.0
"""For one input: what takes longer is a finding, too."""
_NUMBERS = (b"0", b"-1", b"1", b"7", b"31", b"32", b"33", b"59", b"60", b"255", b"256", b"300", b"301", b"1e5", b"1.0",
            b"-0", b"65536", b"2147483648", b"9223372036854775808", b"18446744073709551616")  # fmt: skip
_BYTES = b"\0\t\n\r \"#%'*+,-./09:;=?@[\\]`aTZz{|}~\x7f\x80\xbf\xc3\xed\xef\xf4\xff"


@dataclass(frozen=True)
class Target:
    """Something that takes bytes. ``check`` raises where it breaks its promise; ``modules`` are what it leads into."""

    name: str
    check: Callable[[bytes], None]
    modules: tuple[ModuleType, ...]
    words: tuple[bytes, ...] = ()
    """What its inputs are made of, as far as chance would take long to find it."""

    @property
    def corpus(self) -> Path:
        return CORPUS / self.name

    def seeds(self) -> list[bytes]:
        """The inputs kept for it."""
        return [path.read_bytes() for path in sorted(self.corpus.iterdir())]

    def keep(self, content: bytes) -> Path:
        """Put an input into the corpus, under a name that says nothing but which it is."""
        path = self.corpus / sha256(content).hexdigest()[:16]
        self.corpus.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


class Finding(NamedTuple):
    """An input that broke a promise, as short as it could be made, and how that showed."""

    target: str
    content: bytes
    trace: str

    def __str__(self) -> str:
        shown = repr(self.content)
        return f"{self.target}: {shown[:2000]}{'…' if len(shown) > 2000 else ''}\n{self.trace}"


@dataclass
class Outcome:
    """What a run came to. ``reached`` are the inputs that led somewhere new."""

    executed: int = 0
    ways: int = 0
    reached: list[bytes] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


class _Failure(NamedTuple):
    """What went wrong; failures at one place are one."""

    kind: str
    place: str
    trace: str

    def is_like(self, other: _Failure | None) -> bool:
        return other is not None and (self.kind, self.place) == (other.kind, other.place)


def _failure(target: Target, content: bytes) -> _Failure | None:
    began = time.process_time()
    try:
        target.check(content)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
        last = traceback.extract_tb(error.__traceback__)[-1]
        return _Failure(type(error).__name__, f"{last.filename}:{last.lineno}", traceback.format_exc(limit=-6))
    seconds = time.process_time() - began
    return _Failure("slow", "", f"took {seconds:.1f} s of the processor") if seconds > MAX_CPU_S else None


class _Ways:
    """Which lines of some modules were reached, and from which: the measure of what is new."""

    def __init__(self, modules: Sequence[ModuleType]) -> None:
        self.seen: set[tuple[CodeType, int, int]] = set()
        self._files = frozenset(str(module.__file__) for module in modules)
        self._last = 0

    def watch(self, target: Target, content: bytes) -> _Failure | None:
        before = sys.gettrace()
        self._last = 0
        sys.settrace(self._called)
        try:
            return _failure(target, content)
        finally:
            sys.settrace(before)

    def _called(self, frame: FrameType, _event: str, _argument: Any) -> Any:
        return self._line if frame.f_code.co_filename in self._files else None

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if event == "line":
            line = frame.f_lineno
            self.seen.add((frame.f_code, self._last, line))
            self._last = line
        return self._line


def mutations(chance: random.Random, content: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    """``content`` changed in one to a few places, with parts of ``other`` and ``words``."""
    changed = content
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5, 8))):
        changed = _mutated(chance, changed, other, words)
    return changed[:MAX_BYTES]


def _mutated(chance: random.Random, content: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    begin = chance.randrange(len(content) + 1)
    end = min(len(content), begin + chance.choice((0, 1, 1, 1, 2, 4, 8, 32, 200)))
    part = content[begin:end]
    match chance.randrange(9):
        case 0:
            part = bytes([chance.choice(_BYTES)])
        case 1:
            part = bytes([byte ^ (1 << chance.randrange(8)) for byte in part])
        case 2:
            part = b""
        case 3:
            part *= chance.choice((2, 2, 3, 17, 260))
        case 4:
            part = chance.choice(words) if words else chance.randbytes(2)
        case 5:
            part = chance.choice(_NUMBERS)
        case 6:
            start = chance.randrange(len(other) + 1)
            part = other[start : start + chance.choice((1, 3, 8, 40, 400))]
        case 7:
            part = chance.randbytes(chance.choice((1, 2, 4)))
        case _:
            start = chance.randrange(len(content) + 1)
            part += content[start : start + chance.choice((1, 3, 8, 40))]
    return content[:begin] + part + content[end:]


def _shortened(target: Target, content: bytes, failure: _Failure) -> bytes:
    """The same failure from fewer bytes."""
    size = len(content) // 2
    while size:
        begin = 0
        while begin < len(content):
            shorter = content[:begin] + content[begin + size :]
            if failure.is_like(_failure(target, shorter)):
                content = shorter
            else:
                begin += size
        size //= 2
    return content


def replay(target: Target) -> list[Finding]:
    """The whole corpus as it is."""
    found = ((content, _failure(target, content)) for content in target.seeds())
    return [Finding(target.name, content, failure.trace) for content, failure in found if failure is not None]


def explore(target: Target, seed: int, more: Iterator[object]) -> Outcome:
    """Mutations of the corpus, one for each of ``more``; from the same seed and corpus, the same."""
    chance = random.Random(f"{target.name}/{seed}")  # noqa: S311 - a repeatable run, not a secret
    ways, outcome = _Ways(target.modules), Outcome()
    seeds = target.seeds() or [b""]
    for content in seeds:
        ways.watch(target, content)
    failures: list[_Failure] = []
    for _ in more:
        content = mutations(chance, chance.choice(seeds), chance.choice(seeds), target.words)
        known = len(ways.seen)
        failure = ways.watch(target, content)
        outcome.executed += 1
        if failure is not None:
            if not any(failure.is_like(one) for one in failures):
                failures.append(failure)
                outcome.findings.append(Finding(target.name, _shortened(target, content, failure), failure.trace))
        elif len(ways.seen) > known:
            seeds.append(content)
            outcome.reached.append(content)
    outcome.ways = len(ways.seen)
    return outcome
