"""Servers that start in a fraction of the time: forked by a process that has already imported the program.

They are the command line's own, each a process of its own in a process group of its own. For drivers that need
thousands of starts; what a start takes a user is not to be measured here.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.harness import clean_environment, wait_for
from turnlog.cli.main import main
from turnlog.store.sqlite import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.context import ForkServerContext

    # Each is carried out in a server's process before it begins.
    Changes = tuple[Callable[[], None], ...]

_START_TIMEOUT_S = 60


@cache
def _context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "tests.faults.nursery", "turnlog.cli.serve"])
    return context


def small_checkpoints(pages: int) -> None:
    """Have the WAL folded into the database after so many pages, where the program takes 4000."""
    checkpoints._CHECKPOINT_PAGES = pages


def with_settings(settings: dict[str, str]) -> None:
    """Give the server these settings: names of its environment's variables, without their prefix, and values."""
    os.environ.update({f"TURNLOG_{name.upper()}": value for name, value in settings.items()})


def _serve(arguments: list[str], said: str, changes: Changes) -> None:
    """In the new process: be ``turnlog`` with these arguments."""
    os.setsid()
    for stream in (1, 2):
        os.dup2(os.open(said, os.O_WRONLY | os.O_APPEND), stream)
    for name in set(os.environ) - set(clean_environment()):
        del os.environ[name]
    for change in changes:
        change()
    sys.argv = ["turnlog", *arguments]
    main()


class Quick:
    """One ``turnlog serve`` on a free port; ``changes`` are carried out in its process before it begins."""

    def __init__(self, url: str, *arguments: str, changes: Changes = ()) -> None:
        self.url = url
        self._said = tempfile.NamedTemporaryFile(prefix="turnlog-said-")  # noqa: SIM115 - closed by kill
        command = ["serve", "--port", "0", "--store", url, *arguments]
        self.process = _context().Process(target=_serve, args=(command, self._said.name, changes), daemon=False)
        self.process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def said(self) -> str:
        return Path(self._said.name).read_text("utf-8")

    @property
    def port(self) -> int:
        """Where it listens, 0 before it does."""
        for line in self.said.splitlines():
            if '"event":"listening"' in line:
                return int(json.loads(line)["address"].rpartition(":")[2])
        return 0

    @property
    def ended(self) -> bool:
        return not self.process.is_alive()

    def listens(self) -> bool:
        """Wait until it either listens or has ended; whether it listens."""
        wait_for(lambda: self.port or self.ended, _START_TIMEOUT_S)
        return self.port != 0

    def events(self, name: str) -> list[dict[str, Any]]:
        """What it logged under this name."""
        lines = [line for line in self.said.splitlines() if line.startswith("{")]
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def stop(self, timeout_s: float = 30) -> int:
        """SIGTERM; its exit status."""
        if self.process.is_alive():
            assert self.process.pid is not None
            os.kill(self.process.pid, signal.SIGTERM)
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, self.said
        return self.process.exitcode

    def kill(self) -> None:
        """``kill -9`` of it and of its workers, wherever they are."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # all of them have ended
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self._said.close()
