"""Real PostgreSQL servers for the tests: started, stopped, killed, frozen and followed as the tests say.

PostgreSQL refuses to run as root. Where the tests do, its processes run as ``nobody``, so a server's folder is not
pytest's, which only its owner may enter. Linux only: children are found in ``/proc``.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import quote, urlencode

import asyncpg

from tests import postgres_guard
from tests.harness import wait_for
from tests.postgres_programs import PACKAGE, as_nobody

if TYPE_CHECKING:
    from collections.abc import Iterator

START_TIMEOUT_S = 60
USER = "turnlog"
PASSWORD = "of: the/tests@100%"  # noqa: S105 - of servers that live for one test; needs quoting in a URL, as some do
# Everything that makes a commit durable stays as PostgreSQL has it. What is here keeps a server small.
SETTINGS = """
listen_addresses = '127.0.0.1'
max_connections = 100
shared_buffers = 16MB
max_wal_size = 256MB
"""
# Below the ports that Linux gives to outgoing connections: one of these stays free while its server is down.
PORTS = range(20_000, 32_000)


class Home:
    """The folder of the servers of one run, and the user they run as. All of it goes when the run ends, however."""

    def __init__(self, programs: Path) -> None:
        self._start = as_nobody()
        self.folder = Path(tempfile.mkdtemp(prefix="turnlog-postgresql-", dir=self._open_to_all()))
        self.folder.chmod(0o755)
        self._give(self.folder)
        self._guard = subprocess.Popen(
            [sys.executable, "-I", postgres_guard.__file__, str(self.folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C is not for it
        )
        self._numbers = itertools.count(1)
        self._clusters: list[Cluster] = []
        self.programs = self._runnable(programs)
        self._initialised: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for cluster in self._clusters:
                cluster.close()
        finally:
            self._guard.communicate(timeout=START_TIMEOUT_S)

    @staticmethod
    def _open_to_all() -> str:
        """Where everybody may go: the usual place, unless a folder above it is somebody's own."""
        places = (tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - mkdtemp makes the folder in it
        return next(
            place for place in places if all(above.stat().st_mode & 0o001 for above in (Path(place) / "x").parents)
        )

    def _give(self, path: Path) -> None:
        """Make it the user's own, with all that is in it."""
        if self._start:
            for one in (path, *path.rglob("*")):
                os.chown(one, self._start["user"], self._start["group"], follow_symlinks=False)

    def _runnable(self, programs: Path) -> Path:
        """The programs; a copy of the package's where it is in a checkout that the user may not enter."""
        try:
            self._popen([str(programs / "postgres"), "--version"], stdout=subprocess.DEVNULL).wait()
        except PermissionError:
            site = programs.parents[2]
            for part in (programs.parent.relative_to(site), Path(f"{PACKAGE}.libs")):
                shutil.copytree(site / part, self.folder / "programs" / part)
            self._give(self.folder / "programs")
            return self.folder / "programs" / programs.relative_to(site)
        return programs

    def _popen(self, command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
        # A Ctrl-C is pytest's: it ends the servers in its own order.
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, start_new_session=True, **self._start, **options
        )

    def spawn(self, program: str, *arguments: object, log: Path) -> subprocess.Popen[bytes]:
        """Start one of PostgreSQL's programs as the user; what it says goes into ``log``."""
        with log.open("ab") as output:
            command = [str(self.programs / program), *map(str, arguments)]
            return self._popen(command, stdout=output, stderr=subprocess.STDOUT)

    def run(self, program: str, *arguments: object, log: Path) -> None:
        """Run one to its good end."""
        with self.spawn(program, *arguments, log=log) as process:
            assert process.wait(START_TIMEOUT_S) == 0, log.read_text("utf-8")

    def place(self) -> Path:
        """A new folder of the user's."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        self._give(folder)
        return folder

    def cluster(self) -> Cluster:
        """A new server with nothing in it, started."""
        if self._initialised is None:
            self._initialised = self._initialise()
        folder = self.place()
        shutil.copytree(self._initialised, folder / "data")
        self._give(folder)
        return self.adopt(folder)

    def _initialise(self) -> Path:
        """A data folder that only has to be copied. Nothing is in it that a crash of this machine could cost."""
        folder = self.place()
        password = folder / "password"
        password.write_text(PASSWORD, "utf-8")
        access = ("--auth-host=scram-sha-256", "--auth-local=trust", f"--pwfile={password}", f"--username={USER}")
        words = ("--encoding=UTF8", "--locale=C")
        self.run("initdb", f"--pgdata={folder / 'data'}", *access, *words, "--no-sync", log=folder / "log")
        with (folder / "data" / "postgresql.conf").open("a", encoding="utf-8") as settings:
            settings.write(SETTINGS)
        return folder / "data"

    def adopt(self, folder: Path) -> Cluster:
        """A server on the data folder in ``folder``, started; it ends with the home."""
        cluster = Cluster(self, folder)
        self._clusters.append(cluster)
        cluster.start()
        return cluster


class Cluster:
    """One PostgreSQL server, always on one port of the loopback interface."""

    def __init__(self, home: Home, folder: Path) -> None:
        self.data = folder / "data"
        self.log = folder / "log"
        self.port = _free_port()
        self._home = home
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._names = (f"test_{number}" for number in itertools.count(1))
        self._standbys: dict[str, Cluster] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Its process.

    def start(self) -> None:
        """Start it and wait until it answers; after a crash, when it has recovered."""
        assert self._process is None, "it runs already"
        self._process = self._home.spawn("postgres", "-D", self.data, "-p", self.port, "-k", self._folder, log=self.log)
        wait_for(self._answers, timeout_s=START_TIMEOUT_S)

    def _answers(self) -> bool:
        """Whether this very process says so in the last line of its file, which an earlier one may have left."""
        assert self._process is not None
        assert self._process.poll() is None, self.log.read_text("utf-8")
        try:
            lines = (self.data / "postmaster.pid").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return False
        return lines[:1] == [str(self._process.pid)] and lines[7:] == ["ready   "]

    def stop(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """End it as its own tools do: ``fast`` ends sessions in order, ``immediate`` leaves recovery to the start."""
        process = self._running()
        process.send_signal({"fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
        process.wait(START_TIMEOUT_S)
        self._process = None

    def kill(self) -> None:
        """``kill -9`` for the server and all its children: then nobody holds its memory and it can start again."""
        process = self._running()
        self.freeze()  # else it would answer the death of a child, or have another one
        ends = [os.pidfd_open(pid) for pid in _children(process.pid)]
        try:
            process.kill()
            for end in ends:
                signal.pidfd_send_signal(end, signal.SIGKILL)
            process.wait()
            for end in ends:
                assert select.select([end], [], [], START_TIMEOUT_S)[0], "a child did not end"
        finally:
            for end in ends:
                os.close(end)
        self._process = None

    def freeze(self) -> None:
        """Stop the server and all its children in the middle of what they do: connections stay, nobody answers."""
        process = self._running()
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: _stat(process.pid)[0] == "T")  # no child is born any more
        for child in _children(process.pid):
            os.kill(child, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        process = self._running()
        for child in _children(process.pid):
            with contextlib.suppress(ProcessLookupError):  # where nobody was frozen, one may end meanwhile
                os.kill(child, signal.SIGCONT)
        process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End it in whatever state it is, and what follows it; its folder goes too."""
        for standby in self._standbys.values():
            standby.close()
        if self._process is not None:
            self.thaw()
            self.stop("immediate")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "it does not run"
        return self._process

    # What is in it.

    def url(self, database: str = "postgres", **query: str) -> str:
        """The URL of a database, with the password."""
        address = f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{self.port}/{database}"
        return f"{address}?{urlencode(query, quote_via=quote)}" if query else address

    def sql(
        self, statement: str, *arguments: object, database: str = "postgres", timeout_s: float = 30
    ) -> list[tuple[Any, ...]]:
        """The rows of one statement over a connection of its own. Within a coroutine, call it in a thread."""
        return asyncio.run(_ask(self.url(database), statement, *arguments, timeout_s=timeout_s))

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = next(self._names)
        self.sql(f"CREATE DATABASE {name}")
        return self.url(name)

    def drop_database(self, url: str) -> None:
        """Drop it, whoever is still connected."""
        self.sql(f"DROP DATABASE {_database(url)} WITH (FORCE)")

    def terminate_backends(self, database: str) -> int:
        """End every session on a database, as an administrator does; how many there were."""
        others = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = $1"
        return len(self.sql(others, database))

    def configure(self, **settings: object) -> None:
        """Change settings for good. They are in force when this returns, if need be after a restart."""
        for name, value in settings.items():
            text = str(value).replace("'", "''")
            self.sql(f"ALTER SYSTEM SET {name} = '{text}'")
        loaded = self.sql("SELECT pg_conf_load_time()")
        self.sql("SELECT pg_reload_conf()")
        wait_for(lambda: self.sql("SELECT pg_conf_load_time()") != loaded)
        if self.sql("SELECT name FROM pg_settings WHERE pending_restart"):
            self.stop()
            self.start()

    # What follows it.

    def standby(self) -> Cluster:
        """A server that follows this one, which from then on commits nothing before it is on that one's disk too."""
        name = f"standby_{len(self._standbys) + 1}"
        folder = self._home.place()
        source = self.url(application_name=name)
        follow = ("--write-recovery-conf", "--create-slot", f"--slot={name}", "--checkpoint=fast", "--no-sync")
        self._home.run("pg_basebackup", f"--pgdata={folder / 'data'}", f"--dbname={source}", *follow, log=self.log)
        follower = self._home.adopt(folder)
        self._standbys[name] = follower
        self.configure(synchronous_standby_names=f"FIRST {len(self._standbys)} ({', '.join(self._standbys)})")
        wait_for(lambda: self._followers() == set(self._standbys))
        return follower

    def _followers(self) -> set[str]:
        """The standbys that a commit waits for, and that take part."""
        rows = "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'sync' AND state = 'streaming'"
        return {name for (name,) in self.sql(rows)}

    def promote(self) -> None:
        """Make a standby a server of its own, which records."""
        assert self.sql("SELECT pg_promote()") == [(True,)]


async def _ask(url: str, statement: str, *arguments: object, timeout_s: float) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(url, timeout=timeout_s)
    try:
        rows = await connection.fetch(statement, *arguments, timeout=timeout_s)
        await connection.close(timeout=timeout_s)
    finally:
        connection.terminate()
    return [tuple(row) for row in rows]


def _database(url: str) -> str:
    return url.rpartition("/")[2].partition("?")[0]


def _free_port() -> int:
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("no port is free")


def _stat(pid: int) -> list[str]:
    """The process's state, its parent, and what else Linux tells; the program's name before it may have blanks."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()


def _children(parent: int) -> Iterator[int]:
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if _stat(int(process.name))[1] == str(parent):
                yield int(process.name)
