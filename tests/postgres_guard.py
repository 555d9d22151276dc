"""Ends whatever lives in a folder, and the folder, when its standard input ends.

The tests hold the other end of that pipe. However they end, also by ``kill -9``, no server is left behind.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path


def inhabitants(folder: Path) -> list[int]:
    """The processes that work in the folder or below: a PostgreSQL server and its children do in their data."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if (process / "cwd").readlink().is_relative_to(folder):
                found.append(int(process.name))
    return found


def clear(folder: Path) -> None:
    """End them, and what they start meanwhile; then remove the folder."""
    while left := inhabitants(folder):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.stdin.read()
    clear(Path(sys.argv[1]))
