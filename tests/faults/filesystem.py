"""``python -m tests.faults.filesystem FOLDER``: a file system in memory that notes every change, and fails as told.

It has files and no folders, begins with what lies in FOLDER and is mounted over it, until it is unmounted. Orders come
as lines of JSON on standard input, each answered by a line on standard output; ``tests.faults.disk.Disk`` gives them.
"""

# ruff: noqa: ARG002 - the kernel says more than is needed here

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mfusepy  # type: ignore[import-untyped, unused-ignore]
import msgspec

from tests.faults.tracing import Answer, Change, Order, Rule, Trace


class Recorded(mfusepy.Operations):  # type: ignore[misc, unused-ignore]
    """The file system; the kernel calls it from several threads."""

    use_ns = True

    def __init__(self, files: dict[str, bytes]) -> None:
        self._changing = threading.Lock()
        self._names = {name: number for number, name in enumerate(sorted(files), 1)}
        self._files = {number: bytearray(files[name]) for name, number in self._names.items()}
        self._next = len(files) + 1
        self._begin()
        self._rule = Rule(times=0)
        self._met: list[str] = []

    def _begin(self) -> None:
        self._began = Trace(dict(self._names), {number: bytes(data) for number, data in self._files.items()}, [])
        self._changes = self._began.changes

    def obey(self, order: Order) -> Answer:
        with self._changing:
            answer = Answer(self._met)
            if order.rule is not None:
                self._rule, self._met = order.rule, []
            if order.trace is not None:
                Path(order.trace).write_bytes(msgspec.msgpack.encode(self._began))
            if order.forget:
                self._begin()
        return answer

    def _ruled(self, kind: str, name: str) -> None:
        """Do to the call what the rule says; raises the error that it gives."""
        with self._changing:
            rule = self._rule
            caller = mfusepy.fuse_get_context()[2]
            if kind not in rule.kinds or not re.fullmatch(rule.names, name) or not caller:
                return  # without a caller, the kernel writes shared memory back
            self._met.append(f"{kind} {name}")
            if not 0 <= len(self._met) - 1 - rule.skip < rule.times:
                return
            if rule.kill:
                os.kill(caller, 9)
        if rule.delay_s:
            time.sleep(rule.delay_s)
        if rule.kill or rule.error:
            raise mfusepy.FuseOSError(rule.error or errno.EINTR)

    def _change(self, kind: str, inode: int, name: str = "", number: int = 0, data: bytes = b"") -> None:
        self._changes.append(Change(time.monotonic_ns(), kind, inode, name, number, data))

    def _inode(self, path: str) -> int:
        try:
            return self._names[path[1:]]
        except KeyError:
            raise mfusepy.FuseOSError(errno.ENOENT) from None

    def _name(self, inode: int) -> str:
        return next((name for name, number in list(self._names.items()) if number == inode), "")

    # What changes nothing.

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        if fh is None and path == "/":
            return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
        inode = self._inode(path or "") if fh is None else fh
        mode = stat.S_IFREG | 0o600
        return {"st_mode": mode, "st_nlink": 1, "st_size": len(self._files[inode]), "st_uid": os.getuid()}

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *list(self._names)]

    def open(self, path: str, flags: int) -> int:
        return self._inode(path)

    def read(self, path: str | None, size: int, offset: int, fh: int) -> bytes:
        self._ruled("read", self._name(fh))
        return bytes(self._files[fh][offset : offset + size])

    def statfs(self, path: str) -> dict[str, int]:
        return {"f_bsize": 4096, "f_frsize": 4096, "f_blocks": 1 << 20, "f_bavail": 1 << 19, "f_bfree": 1 << 19}

    # What does.

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        self._ruled("link", path[1:])
        with self._changing:
            inode = self._names[path[1:]] = self._next
            self._next += 1
            self._files[inode] = bytearray()
            self._change("link", inode, path[1:])
        return inode

    def unlink(self, path: str) -> int:
        self._ruled("unlink", path[1:])
        with self._changing:
            self._change("unlink", self._inode(path), path[1:])
            del self._names[path[1:]]
        return 0

    def rename(self, old: str, new: str, flags: int = 0) -> int:
        self._ruled("rename", old[1:])
        with self._changing:
            self._change("rename", self._inode(old), old[1:], data=new[1:].encode())
            self._names[new[1:]] = self._names.pop(old[1:])
        return 0

    def write(self, path: str | None, data: bytes, offset: int, fh: int) -> int:
        self._ruled("write", self._name(fh))
        with self._changing:
            content = self._files[fh]
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data
            self._change("write", fh, number=offset, data=data)
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        self._ruled("size", path[1:])
        with self._changing:
            inode = self._inode(path)
            content = self._files[inode]
            del content[length:]
            content.extend(bytes(length - len(content)))
            self._change("size", inode, number=length)
        return 0

    def fsync(self, path: str | None, datasync: int, fh: int) -> int:
        before = len(self._changes)
        self._ruled("sync", self._name(fh))
        with self._changing:
            self._change("sync", fh, number=before)
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        before = len(self._changes)
        self._ruled("sync-folder", "")
        with self._changing:
            self._change("sync-folder", 0, number=before)
        return 0

    def chmod(self, path: str, mode: int) -> int:
        return 0

    def chown(self, path: str, uid: int, gid: int) -> int:
        return 0


def main(folder: str) -> None:
    """Serve until FOLDER is unmounted."""
    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    recorded = Recorded(files)

    def obey() -> None:
        for line in sys.stdin.buffer:
            answer = recorded.obey(msgspec.json.decode(line, type=Order))
            sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            sys.stdout.buffer.flush()
        # Whoever gave the orders is gone.
        subprocess.run(["fusermount3", "-u", "-z", folder], check=False, capture_output=True)

    threading.Thread(target=obey, daemon=True).start()
    try:
        mfusepy.FUSE(recorded, folder, foreground=True, hard_remove=True, fsname="turnlog-recorded")
    finally:
        os._exit(0)  # the thread that listens to orders may be waiting for one


if __name__ == "__main__":
    main(sys.argv[1])
