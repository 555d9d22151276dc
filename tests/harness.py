"""What the tests drive: the installed command in real processes, spoken to over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

import httpx
import pytest

from tests.canary import canary
from turnlog.cli.keys import DEFAULT_ACCOUNT, new_key
from turnlog.model import DEFAULT_PERMISSIONS
from turnlog.store.connect import open_keys

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator

    from turnlog.model import Permission

TURNLOG = str(Path(sys.executable).with_name("turnlog"))
REPOSITORY = Path(__file__).resolve().parent.parent
START_TIMEOUT_S = 30
V1 = "/conversation/v1"
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def complain(lack: str) -> NoReturn:
    """What a machine lacks is a visible skip, and a failure under ``CI=true``, which must not pass without it."""
    if os.environ.get("CI") == "true":
        pytest.fail(lack)
    pytest.skip(lack)


def forgo(lack: str) -> NoReturn:
    """What a machine does not permit, whatever is installed on it, is a visible skip everywhere."""
    pytest.skip(lack)


def need(program: str) -> str:
    """The program's path."""
    path = shutil.which(program)
    if path is None:
        complain(f"{program} is not installed")
    return path


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without any setting of Turnlog's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TURNLOG_")}
    return kept | {"PYTHONWARNINGS": "error"} | more


def run_cli(
    *arguments: str, cwd: Path | None = None, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``turnlog`` to its end."""
    return subprocess.run(
        [TURNLOG, *arguments],
        cwd=cwd,
        env=clean_environment(**environment),
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Key:
    """A key's credentials."""

    def __init__(self, key_id: str, secret: str) -> None:
        self.id = key_id
        self.secret = secret

    @property
    def headers(self) -> dict[str, str]:
        return {"asapp-api-id": self.id, "asapp-api-secret": self.secret}


def make_key(
    url: str, name: str, account: str = DEFAULT_ACCOUNT, permissions: tuple[Permission, ...] = DEFAULT_PERMISSIONS
) -> Key:
    """A new key in a store, which is made for it where there is none.

    It goes through the store's protocol, as the CLI does: a hundred tests need not each start a process for it.
    """

    async def make() -> Key:
        record, secret = new_key(name, account, permissions)
        async with open_keys(url, create=True) as keys:
            await keys.add_key(record)
        return Key(record.key.id, secret)

    return asyncio.run(make())


class Server:
    """One ``turnlog serve`` on a free port of the loopback interface; ``url`` is its store's."""

    command: tuple[str, ...] = (TURNLOG,)
    """What is run; tests/faults/bugs.py has another."""
    trust: ssl.SSLContext | None = None
    """How to speak to it where it speaks TLS."""

    def __init__(self, url: str, *arguments: str, port: int = 0, environment: dict[str, str] | None = None) -> None:
        self.url = url
        self._arguments = arguments
        self._environment = environment or {}
        self._port = port
        self._process: subprocess.Popen[str] | None = None
        self.base = ""
        self.log_lines: list[str] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start the process and wait until it listens."""
        self._process = subprocess.Popen(
            [*self.command, "serve", "--port", str(self._port), "--store", self.url, *self._arguments],
            env=clean_environment(**self._environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        listening = threading.Event()
        threading.Thread(target=self._follow_log, args=(self._process, listening), daemon=True).start()
        assert listening.wait(START_TIMEOUT_S), "\n".join(self.log_lines)
        assert self._process.poll() is None, "\n".join(self.log_lines)

    def _follow_log(self, process: subprocess.Popen[str], listening: threading.Event) -> None:
        assert process.stderr is not None
        with process.stderr as stream, contextlib.suppress(ValueError):
            for line in stream:
                self.log_lines.append(line.rstrip("\n"))
                canary.look(line, "a server's log")
                if '"event":"listening"' in line:
                    self.base = json.loads(line)["address"]
                    self._port = int(self.base.rpartition(":")[2])
                    listening.set()
        listening.set()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Every event logged so far."""
        return [json.loads(line) for line in list(self.log_lines)]

    @property
    def pid(self) -> int:
        """The parent, which keeps the port and starts the workers."""
        assert self._process is not None
        return self._process.pid

    @property
    def worker_pids(self) -> list[int]:
        """The processes that answer, as they are now."""
        with contextlib.suppress(FileNotFoundError):
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text("ascii").split()]
        return []

    @property
    def worker_pid(self) -> int:
        """The one that answers, where there is one; waits for it to be started."""
        wait_for(lambda: self.worker_pids)
        (pid,) = self.worker_pids
        return pid

    @property
    def port(self) -> int:
        return self._port

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ask the process to end; its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def wait(self, timeout_s: float = 30) -> int:
        """Wait for the process to end; its exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def kill(self) -> None:
        """``kill -9`` of the parent and its workers, as a machine that dies."""
        if self._process is not None and self._process.poll() is None:
            # It stands still from here on, so that it starts nobody again and leaves nobody to stop in good order. That
            # is not waited for, or callers in this process would have all their answers before the workers die.
            self._process.send_signal(signal.SIGSTOP)
            for pid in self.worker_pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.kill_parent()

    def kill_parent(self) -> None:
        """``kill -9`` of the parent; returns when the workers are gone with it, which stop in good order."""
        if self._process is None:
            return
        with contextlib.ExitStack() as stack:
            workers = []
            for pid in self.worker_pids:
                with contextlib.suppress(ProcessLookupError):
                    workers.append(os.pidfd_open(pid))
                    stack.callback(os.close, workers[-1])
            self._process.kill()
            self._process.wait()
            for worker in workers:
                assert select.select([worker], [], [], START_TIMEOUT_S)[0], "a worker outlives its parent"

    def create_key(self, name: str, *arguments: str) -> Key:
        """A new key, made beside the running server; good within a second. What the CLI has flags for, it makes."""
        if not arguments:
            return make_key(self.url, name)
        done = run_cli("keys", "create", name, "--store", self.url, "--json", *arguments)
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)
        return Key(made["id"], made["secret"])

    @contextlib.contextmanager
    def client(self, key: Key | None = None, **options: Any) -> Iterator[httpx.Client]:
        """An HTTP client with the key's credentials; waits until the server knows the key."""
        headers = {} if key is None else key.headers
        options.setdefault("verify", self.trust or False)
        options.setdefault("event_hooks", {"response": [canary.look_at_error]})
        with httpx.Client(base_url=self.base, headers=headers, timeout=30, **options) as client:
            if key is not None:
                wait_for(lambda: client.get("/v1/health").status_code != 401)
            yield client

    @contextlib.contextmanager
    def connection(self) -> Iterator[socket.socket]:
        """A bare connection, for what no HTTP client would send."""
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=30))
            if self.trust is not None:
                secured = self.trust.wrap_socket(connection, server_hostname="localhost", suppress_ragged_eofs=False)
                connection = stack.enter_context(secured)
            yield connection


def wait_for(condition: Any, timeout_s: float = 10) -> None:
    """Ask again and again until ``condition`` holds."""
    pause = threading.Event()
    for _ in range(int(timeout_s / 0.01)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("the condition did not come to hold")


def message(text: str = "Hello!", **changes: Any) -> dict[str, Any]:
    """A message's body."""
    body = {
        "text": text,
        "sender": {"role": "customer", "externalId": "jane"},
        "timestamp": "2021-11-23T12:13:14.555Z",
    }
    return body | changes


def conversation(external_id: str, **changes: Any) -> dict[str, Any]:
    """A conversation's body."""
    body = {"externalId": external_id, "customer": {"externalId": "jane"}, "timestamp": "2021-11-23T12:13:14.555Z"}
    return body | changes


def create_conversation(client: httpx.Client, external_id: str, **changes: Any) -> str:
    """Create a conversation; its id."""
    answer = client.post(f"{V1}/conversations", json=conversation(external_id, **changes))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def error_of(answer: httpx.Response, code: str) -> str:
    """The message of an error answer, after checking that it is the envelope and carries ``code``."""
    assert answer.status_code == int(code[:3]), answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"requestId", "code", "message"}
    assert body["error"]["code"] == code, answer.text
    assert body["error"]["requestId"] == answer.headers["x-request-id"]
    text: str = body["error"]["message"]
    assert text
    return text


def parse_response(raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the first answer in ``raw``."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    return int(lines[0].split()[1]), headers, rest[: int(headers.get("content-length", len(rest)))]
