"""What the file system of ``tests.faults.filesystem`` is told, and what it tells: for whoever has no libfuse, too."""

from __future__ import annotations

import sys

import msgspec

CHANGING = ("write", "size", "link", "unlink", "rename", "sync", "sync-folder")
"""The kinds of system calls that change files or make a change durable."""


class Change(msgspec.Struct, array_like=True, frozen=True):
    """One change, or one sync: all of it happened at ``at_ns`` of the monotonic clock, which the machine shares."""

    at_ns: int
    kind: str
    inode: int
    name: str = ""
    """Of ``link``, ``unlink`` and ``rename``."""
    number: int = 0
    """The offset of ``write``, the new ``size``; of the syncs how many changes came before they were asked for."""
    data: bytes = b""
    """Of ``write``; the new name of ``rename``."""


class Trace(msgspec.Struct, frozen=True):
    """What was there, all of it durable, and what happened to it."""

    names: dict[str, int]
    files: dict[int, bytes]
    changes: list[Change]


class Rule(msgspec.Struct, frozen=True):
    """What becomes of calls of these ``kinds`` to files of these ``names``, a pattern: of so many, after ``skip``.

    Such a call waits for ``delay_s``, then fails with ``error``, or has its caller killed and changes nothing.
    """

    kinds: tuple[str, ...] = CHANGING
    names: str = ".*"
    skip: int = 0
    times: int = sys.maxsize
    error: int = 0
    kill: bool = False
    delay_s: float = 0.0


class Order(msgspec.Struct, frozen=True):
    """One of them: the rule from now on, the file into which the trace is to be written, or to begin the trace anew."""

    rule: Rule | None = None
    trace: str | None = None
    forget: bool = False


class Answer(msgspec.Struct, frozen=True):
    """What calls met the last rule: each is named by its kind and its file."""

    met: list[str] = []
