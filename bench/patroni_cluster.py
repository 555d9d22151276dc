"""The cluster of docs/patroni.md on one machine: the very files of that page, with other addresses and paths."""

from __future__ import annotations

import contextlib
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests import postgres_guard

from bench.patroni_machine import Machine, Owner, programs, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE = Path(__file__).resolve().parent.parent / "docs" / "patroni.md"
MACHINES = (1, 2, 3)
WHOLE_TIMEOUT_S = 240
_LAG_BYTES = 1024 * 1024
_PORTS = range(20_000, 32_000)
"""Below those that Linux gives to outgoing connections, one of which could take the place of a killed server."""


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface on which nobody listens."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            if len(found) < count:
                with contextlib.suppress(OSError):
                    held.enter_context(socket.create_server(("127.0.0.1", port)))
                    found.append(port)
    return found


class Page:
    """The files on the page, for one machine each, with what differs here put in."""

    def __init__(self, ports: Mapping[int, Mapping[str, int]], *, proxy: int) -> None:
        text = PAGE.read_text("utf-8")
        self._blocks = dict(re.findall(r"^```(ini|yaml|haproxy|sql|text)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
        self._ports = ports
        self._proxy = proxy
        self.passwords = {name: secrets.token_urlsafe(18) for name in re.findall(r"<(\w+) password>", text)}

    def _here(self, text: str) -> str:
        """With the addresses, passwords and paths of this run."""
        text = re.sub(r"10\.0\.0\.(\d):(\d+)", lambda m: f"127.0.0.1:{self._ports[int(m[1])][m[2]]}", text)
        text = re.sub(r"<(\w+) password>", lambda m: self.passwords[m[1]], text)
        return text.replace("10.0.0.0/24", "127.0.0.1/32").replace("127.0.0.1:5000", f"127.0.0.1:{self._proxy}")

    def _of(self, number: int, text: str) -> str:
        """For machine ``number``: a line that names all three is the same on each, the others are about itself."""
        lines = (
            line if "10.0.0.2" in line else line.replace("pg1", f"pg{number}").replace("10.0.0.1", f"10.0.0.{number}")
            for line in text.splitlines(keepends=True)
        )
        return self._here("".join(lines))

    def etcd(self, number: int) -> dict[str, str]:
        """The variables of /etc/default/etcd."""
        return dict(line.split("=", 1) for line in self._of(number, self._blocks["ini"]).split())

    def patroni(self, number: int, data: Path) -> str:
        """/etc/patroni/config.yml."""
        changes = {
            "/usr/lib/postgresql/15/bin": programs()["postgresql"],
            "/var/lib/postgresql/15/turnlog": str(data),
            "/var/run/postgresql": "''",
        }
        text = self._of(number, self._blocks["yaml"])
        for place, here in changes.items():
            text = text.replace(place, here)
        return text

    def haproxy(self) -> str:
        """/etc/haproxy/haproxy.cfg."""
        text = self._blocks["haproxy"]
        for number in MACHINES:
            port = self._ports[number]["8008"]
            text = re.sub(rf"(10\.0\.0\.{number}:5432 check port) 8008", rf"\1 {port}", text)
        return self._here(text)

    def urls(self) -> list[str]:
        """The store's URLs: the owner's, the one that names the machines, the one of HAProxy."""
        return self._here(self._blocks["text"]).split()

    def roles(self) -> str:
        """What psql is told to make the roles and the database."""
        return self._here(self._blocks["sql"])


class PatroniCluster:
    """Three machines and HAProxy, up from ``with`` on; ended with it, and their folder removed.

    Where the block fails, their logs are left in ``keep``.
    """

    def __init__(self, keep: Path | None = None) -> None:
        self._keep = keep
        self.folder = Path(tempfile.mkdtemp(prefix="turnlog-patroni-"))
        names = ("2379", "2380", "5432", "8008")
        free = iter(_free_ports(len(MACHINES) * len(names) + 1))
        ports = {number: {name: next(free) for name in names} for number in MACHINES}
        self._owner = Owner()
        self._owner.give(self.folder)
        self.page = Page(ports, proxy=next(free))
        self.machines = [Machine(f"pg{n}", self.folder / f"pg{n}", ports[n], self._owner) for n in MACHINES]
        self._ends = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as ends:
            # However this process ends, also by kill -9, nothing is left behind.
            command = [sys.executable, "-I", postgres_guard.__file__, str(self.folder)]
            guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            ends.callback(guard.communicate)
            ends.push(self._keep_logs)
            for machine in self.machines:
                ends.callback(machine.stop)
                self.start(machine)
            config = self.folder / "haproxy.cfg"
            config.write_text(self.page.haproxy(), "utf-8")
            command = [programs()["haproxy"], "-db", "-f", str(config)]
            proxy = self._owner.start(command, self.folder / "haproxy.log", {})
            ends.callback(proxy.wait)
            ends.callback(proxy.kill)
            self.wait_whole()
            self._psql(self.page.roles())
            self._ends = ends.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._ends.__exit__(*error)

    def _keep_logs(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None and self._keep is not None:
            self._keep.mkdir(parents=True, exist_ok=True)
            for log in self.folder.rglob("*.log"):
                shutil.copy(log, self._keep / f"{log.parent.name}-{log.name}")

    def start(self, machine: Machine) -> None:
        """Switch the machine on."""
        number = int(machine.name[-1])
        machine.start(self.page.etcd(number), self.page.patroni(number, machine.data))

    def primary(self) -> Machine | None:
        """The machine that holds the leader's lock, where there is one."""
        return next((machine for machine in self.machines if machine.ask("/primary")[0] == 200), None)

    def require_primary(self) -> Machine:
        """The same. Raises LookupError."""
        primary = self.primary()
        if primary is None:
            raise LookupError("there is no primary")
        return primary

    def _psql(self, text: str) -> None:
        """Let psql carry this out on the primary as the superuser. Raises CalledProcessError."""
        port = self.require_primary().ports["5432"]
        address = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-d", "postgres"]
        subprocess.run(
            [f"{programs()['postgresql']}/psql", "-Xq", "-v", "ON_ERROR_STOP=1", *address],
            env={"PGPASSWORD": self.page.passwords["superuser"], "PATH": "/usr/bin:/bin"},
            input=text,
            text=True,
            check=True,
            timeout=60,
        )

    def wait_whole(self) -> None:
        """Wait until all machines take part, and one of the standbys may follow the primary without loss."""
        try:
            wait_until(lambda: not self.missing(), "whole cluster", WHOLE_TIMEOUT_S)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.missing()}") from None

    def missing(self) -> str:
        """What the cluster lacks to survive the death of its primary; empty where nothing is."""
        primary = self.primary()
        if primary is None:
            return "no primary"
        members = primary.ask("/cluster")[1].get("members", [])
        roles = sorted(member["role"] for member in members)
        if roles != ["leader", "replica", "sync_standby"]:
            return f"roles {roles}"
        if any(member["state"] not in ("running", "streaming") for member in members):
            return f"states {[member['state'] for member in members]}"
        if len({member.get("timeline") for member in members}) != 1:
            return "standbys on another timeline"
        if any(member.get("lag", 0) == "unknown" or member.get("lag", 0) > _LAG_BYTES for member in members):
            return "standbys behind"
        connected = [one["state"] for one in primary.ask("/patroni")[1].get("replication", [])]
        return "" if connected == ["streaming", "streaming"] else f"replication {connected}"
