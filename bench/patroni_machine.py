"""One machine of a Patroni cluster: its processes, started as an unprivileged user and ended by their ids.

Knows nothing of what the servers are told, nor of the other machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PACKAGES = {"etcd": "etcd-server", "patroni": "patroni", "haproxy": "haproxy"}


def programs() -> dict[str, str]:
    """The path of every server. Exits, saying how to install it, where one is missing."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"
    found = {name: shutil.which(name, path=path) or "" for name in PACKAGES}
    missing = [PACKAGES[name] for name, place in found.items() if not place]
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda one: int(one.parts[-3]))
    if not versions:
        missing.append("postgresql")
    if missing:
        raise SystemExit(f"missing: apt-get install --no-install-recommends {' '.join(missing)}")
    return found | {"postgresql": str(versions[-1].parent)}


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float) -> None:
    """Ask again and again until ``condition`` holds. Raises TimeoutError, naming ``what`` was waited for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {timeout_s:.0f} s there is still no {what}")
        time.sleep(0.05)


class Owner:
    """The user that runs the servers, since PostgreSQL refuses root: ``postgres`` or ``nobody``; whoever else runs this
    script runs them too.
    """

    def __init__(self) -> None:
        self._entry: pwd.struct_passwd | None = None
        if os.geteuid() == 0:
            names = {entry.pw_name: entry for entry in pwd.getpwall()}
            self._entry = names.get("postgres") or names["nobody"]

    def give(self, path: Path) -> None:
        """Make the user the owner of ``path``."""
        if self._entry is not None:
            os.chown(path, self._entry.pw_uid, self._entry.pw_gid)

    def start(self, command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a server in the folder of its log, with nothing of this process's environment."""
        clean = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(log.parent), **environment}
        who: dict[str, Any] = {}
        if self._entry is not None:
            who = {"user": self._entry.pw_uid, "group": self._entry.pw_gid, "extra_groups": []}
        with log.open("ab") as output:
            where: dict[str, Any] = {"cwd": log.parent, "env": clean, "stdin": subprocess.DEVNULL}
            # A Ctrl-C is not for the servers: they are ended in their order.
            return subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, **where, **who)


class Machine:
    """A member of etcd, PostgreSQL, and the Patroni that looks after it. ``ports`` are by their usual numbers."""

    def __init__(self, name: str, folder: Path, ports: Mapping[str, int], owner: Owner) -> None:
        self.name = name
        self.folder = folder
        self.ports = ports
        self._owner = owner
        self._running: list[subprocess.Popen[bytes]] = []
        folder.mkdir(mode=0o700)
        owner.give(folder)

    @property
    def data(self) -> Path:
        return self.folder / "postgresql"

    def start(self, etcd: Mapping[str, str], patroni: str) -> None:
        """Start etcd and Patroni, which starts PostgreSQL, with these settings."""
        config = self.folder / "patroni.yml"
        config.write_text(patroni, "utf-8")
        self._owner.give(config)
        paths = programs()
        settings = {**etcd, "ETCD_DATA_DIR": str(self.folder / "etcd")}
        self._running = [
            self._owner.start([paths["etcd"]], self.folder / "etcd.log", settings),
            self._owner.start([paths["patroni"], str(config)], self.folder / "patroni.log", {}),
        ]

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and body of an answer of Patroni's; 0 where there is none."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self.ports['8008']}{path}", timeout=3, trust_env=False)
            return answer.status_code, answer.json()
        except (httpx.HTTPError, json.JSONDecodeError):
            return 0, {}

    def _postmaster(self) -> list[int]:
        """Its process id, where it runs and is not somebody who has got its number since."""
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int((self.data / "postmaster.pid").read_text("ascii").split()[0])
            if os.fsencode(self.data) in Path(f"/proc/{pid}/cmdline").read_bytes():
                return [pid]
        return []

    def _others(self) -> list[int]:
        return [process.pid for process in self._running if process.poll() is None]

    def freeze(self) -> list[int]:
        """Stop everything in its tracks, connections left open: a machine that answers nothing. The process ids."""
        stopped: list[int] = []
        while new := [pid for pid in _families([*self._others(), *self._postmaster()]) if pid not in stopped]:
            for pid in new:  # and then what they forked meanwhile
                _send(pid, signal.SIGSTOP)
            stopped += new
        return stopped

    def thaw(self) -> None:
        """Let it go on where it was."""
        for pid in _families([*self._others(), *self._postmaster()]):
            _send(pid, signal.SIGCONT)

    def kill(self) -> None:
        """``kill -9`` of everything, as when the power goes: nothing says goodbye, nothing starts anything again."""
        killed = self.freeze()
        for pid in killed:
            _send(pid, signal.SIGKILL)
        self._await(killed)

    def stop(self) -> None:
        """End everything; PostgreSQL gets to give its shared memory back."""
        postmaster = self._postmaster()
        for pid in _families(self._others()):
            if pid not in postmaster:
                _send(pid, signal.SIGKILL)
        for pid in postmaster:
            _send(pid, signal.SIGCONT)
            _send(pid, signal.SIGQUIT)
        with contextlib.suppress(TimeoutError):
            self._await(postmaster)
        self.kill()

    def _await(self, pids: Iterable[int]) -> None:
        wait_until(lambda: not any(_alive(pid) for pid in pids), f"end of {self.name}", 10)
        for process in self._running:
            process.poll()


def _families(pids: list[int]) -> list[int]:
    """``pids`` with all their descendants, parents first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text("ascii", "replace").rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(stat.parent.name))
    found = list(pids)
    for pid in found:  # which grows on the way
        found += parents.get(pid, [])
    return found


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _alive(pid: int) -> bool:
    """Whether the process runs; one that has ended, and that its parent has not asked after yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
