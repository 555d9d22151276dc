"""A mounted file system whose every change is known, and which fails as told (``tests.faults.filesystem``)."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Self

import msgspec

from tests.faults.tracing import Answer, Order, Rule, Trace
from tests.harness import REPOSITORY, forgo, need, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping


def need_mounts() -> None:
    """A visible skip where a file system of one's own cannot be mounted."""
    mounting = [need("unshare"), "--mount", "true"]
    need("fusermount3")
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        forgo(f"mounting a FUSE file system is not permitted: {error}")


class Disk:
    """The file system at ``folder``, a folder that is empty before and after; it begins with ``files``."""

    def __init__(self, folder: Path, files: Mapping[str, bytes] | None = None) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder / 'turnlog.db'}"
        self._files = files or {}

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        for name, content in self._files.items():
            (self.folder / name).write_bytes(content)
        command = [sys.executable, "-m", "tests.faults.filesystem", str(self.folder)]
        pipe = subprocess.PIPE
        # What libfuse says of its own options is of no use to anybody.
        self._process = subprocess.Popen(command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
        wait_for(lambda: self.folder.is_mount() or self._process.poll() is not None, 30)
        assert self._process.poll() is None, "the file system was not mounted"
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["fusermount3", "-u", "-z", str(self.folder)], check=False, capture_output=True, timeout=30)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(30)
        finally:
            self._process.kill()
            self._process.wait()
            self._process.stdout.close()
            for name in self._files:
                (self.folder / name).unlink()

    def _order(self, order: Order) -> Answer:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Answer)

    def rule(self, rule: Rule) -> None:
        """What becomes of calls from now on."""
        self._order(Order(rule))

    def met(self) -> list[str]:
        """The calls that the last rule was about, in their order: ``write turnlog.db-wal``."""
        return self._order(Order()).met

    def trace(self) -> Trace:
        """Everything that happened so far."""
        with tempfile.NamedTemporaryFile() as file:
            self._order(Order(trace=file.name))
            return msgspec.msgpack.decode(Path(file.name).read_bytes(), type=Trace)

    def put(self, files: Mapping[str, bytes]) -> None:
        """These and no other files, as if the file system were new."""
        for path in self.folder.iterdir():
            path.unlink()
        for name, content in files.items():
            (self.folder / name).write_bytes(content)
        self._order(Order(forget=True))

    def files(self) -> dict[str, bytes]:
        """What is there now, as a process that was killed leaves it."""
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}
