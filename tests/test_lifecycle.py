"""A server's life: how it starts, what it refuses to start on, how it stops, what it does when the disk is full."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import apsw
import httpx
import pytest

from tests.harness import (
    TURNLOG,
    V1,
    Server,
    clean_environment,
    complain,
    conversation,
    create_conversation,
    error_of,
    message,
    need,
    run_cli,
    wait_for,
)
from tests.history import Caller, Listings, Load, check, log_problems, read_listings
from tests.stores import contents, path_of, place, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _refused_start(*arguments: str, cwd: Path | None = None, **environment: str) -> str:
    """The one line that ``turnlog`` says when it does not start."""
    done = run_cli(*arguments, cwd=cwd, **environment)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("turnlog: ")
    return lines[0]


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Stopping.


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_under_load_drains(start: Callable[..., Server], number: int) -> None:
    """C06: status 0, nothing accepted is answered 5xx, everything acknowledged is there after a restart."""
    server = start()
    key = server.create_key("load")
    with server.client(key):
        pass  # waits until the key is known

    async def scenario() -> tuple[Load, int, float, Listings]:
        caller = Caller(server.port, key.headers)
        names = [(await caller.ask("POST", f"{V1}/conversations", conversation(f"c{n}")))[1]["id"] for n in range(3)]
        await caller.close()
        load = Load(server.port, key.headers, names, number)
        load.up.set()
        running = asyncio.create_task(load.run(16))
        load.want(500)
        await asyncio.wait_for(load.acknowledged.wait(), 60)
        load.up.clear()
        started_at = time.monotonic()
        status = await asyncio.to_thread(server.stop, number)
        took_s = time.monotonic() - started_at
        await asyncio.to_thread(server.start)
        load.stopping = True
        load.up.set()
        await asyncio.wait_for(running, 60)
        listings = await read_listings(caller, names, page=1000)
        await caller.close()
        return load, status, took_s, listings

    load, status, took_s, listings = asyncio.run(scenario())
    assert status == 0
    assert took_s < 10
    assert set(load.statuses) <= {200, 400}, load.statuses
    assert load.history.count("acknowledged") >= 500
    assert check(load.history.requests, listings) == []
    assert [e["clean"] for e in server.log if e["event"] == "stopped"] == [True]
    assert not [e for e in server.log if e["level"] == "error"]
    assert server.stop() == 0
    assert log_problems(server.url) == []


def test_a_request_under_way_is_finished_before_the_end(start: Callable[..., Server]) -> None:
    """Its head has come when the signal does; its body comes after."""
    server = start()
    key = server.create_key("tests")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"

    async def scenario() -> tuple[bytes, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        fields = "".join(f"{name}: {value}\r\n" for name, value in key.headers.items())
        body = b'{"text": "a", "sender": {"role": "agent", "externalId": "b"}, "timestamp": "2021-11-23T12:13:14Z"}'
        head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{fields}content-type: application/json\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\nexpect: 100-continue\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        os.kill(server.pid, signal.SIGTERM)
        await asyncio.to_thread(wait_for, lambda: _refuses_connections(server.port))
        writer.write(body)
        answer = await reader.read()
        writer.close()
        return answer, await asyncio.to_thread(server.wait)

    answer, status = asyncio.run(scenario())
    assert answer.startswith(b"HTTP/1.1 200")
    assert status == 0


def _refuses_connections(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


# Starting again, and what is refused.


def test_a_second_start_keeps_data_and_keys(start: Callable[..., Server]) -> None:
    server = start()
    key = server.create_key("tests")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert client.post(path, json=message()).status_code == 200
        before = client.get(path).json()
    assert server.stop() == 0
    server.start()
    with httpx.Client(base_url=server.base, headers=key.headers) as client:
        assert client.get(path).json() == before


@pytest.mark.sqlite_only("one process records in a file; a database takes what many record")
@pytest.mark.parametrize("name", ["turnlog.db", "link.db", "sub/../turnlog.db"])
def test_a_second_server_on_the_same_file_is_refused(start: Callable[..., Server], name: str) -> None:
    """C11: by whatever name; the first one goes on, and nothing changes under it."""
    server = start()
    path = path_of(server.url)
    folder = path.parent
    (folder / "sub").mkdir()
    (folder / "link.db").symlink_to(path)
    before = _contents(folder / "sub"), path.read_bytes()
    line = _refused_start("serve", "--port", "0", "--store", f"sqlite:///{folder / name}")
    assert str(path) in line
    assert str(server.worker_pid) in line
    assert (_contents(folder / "sub"), path.read_bytes()) == before
    key = server.create_key("tests")
    with server.client(key) as client:
        create_conversation(client, "still-there")


NEWER = {
    "sqlite": "PRAGMA user_version = 999",
    "postgresql": "UPDATE schema_version SET version = 999, oldest_program = 999",
}


def test_a_newer_schema_is_refused(start: Callable[..., Server], store_kind: str) -> None:
    """U02."""
    server = start()
    assert server.stop() == 0
    rows(server.url, NEWER[store_kind])
    before = contents(server.url)
    line = _refused_start("serve", "--port", "0", "--store", server.url)
    assert place(server.url) in line
    assert "999" in line
    assert contents(server.url) == before


@pytest.mark.sqlite_only("a file may be anything")
@pytest.mark.parametrize("version", [0, 1, 7])
@pytest.mark.parametrize("command", [("serve", "--port", "0"), ("keys", "list"), ("keys", "create", "name")])
def test_another_programs_database_is_refused_and_left_as_it_is(
    tmp_path: Path, command: tuple[str, ...], version: int
) -> None:
    """Byte for byte, whatever number it gives to its own schema; with nothing left beside it but perhaps a lock."""
    path = tmp_path / "other.db"
    other = apsw.Connection(str(path))
    other.execute("CREATE TABLE precious (data); INSERT INTO precious VALUES ('x')")
    other.pragma("user_version", version)
    other.close()
    before = path.read_bytes()
    line = _refused_start(*command, "--store", f"sqlite:///{path}")
    assert f"{path} is an SQLite database of another program" in line
    assert path.read_bytes() == before
    assert set(_contents(tmp_path)) <= {"other.db", "other.db.lock"}


@pytest.mark.sqlite_only("a file may be anything")
@pytest.mark.parametrize("content", [b"not a database\n" * 500, b"a short note\n"])
def test_a_file_that_is_no_database_is_refused_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    line = _refused_start("serve", "--port", "0", "--store", f"sqlite:///{path}")
    assert str(path) in line
    assert path.read_bytes() == content


@pytest.mark.sqlite_only("a file has a path")
def test_a_path_that_cannot_be_a_store_is_named(tmp_path: Path) -> None:
    """D07; a folder that nobody may write to, without relying on permissions, which the superuser does not feel."""
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, file / "turnlog.db", "/proc/turnlog.db", "/proc/turnlog/turnlog.db"):
        line = _refused_start("serve", "--port", "0", "--store", f"sqlite:///{path}")
        assert str(path) in line
    assert set(_contents(tmp_path)) == {"file"}


@pytest.mark.parametrize(
    "url", ["", "turnlog.db", "sqlite:///", "mysql://x/y", "sqlite:///a?mode=ro", "postgresql://x"]
)
def test_a_store_that_is_no_stores_url_is_refused(url: str, tmp_path: Path) -> None:
    line = _refused_start("serve", "--port", "0", "--store", url, cwd=tmp_path)
    assert "is not a store's URL" in line
    assert repr(url) in line or url == "postgresql://x"  # which could hold a password where it is not understood
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_is_taken_is_named_and_the_store_is_not_touched(new_store: Callable[[], str]) -> None:
    store = new_store()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = _refused_start("serve", "--port", str(port), "--store", store)
    assert str(port) in line
    assert contents(store) == {}


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.1", "a" * 300])
def test_a_host_that_is_not_here_is_named(new_store: Callable[[], str], host: str) -> None:
    line = _refused_start("serve", "--host", host, "--port", "0", "--store", new_store())
    assert host in line


def test_version_and_module() -> None:
    told = run_cli("--version")
    assert told.returncode == 0
    assert re.fullmatch(r"turnlog \d+\.\d+\S*\n", told.stdout)
    module = subprocess.run(
        [sys.executable, "-m", "turnlog", "--version"],
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (module.returncode, module.stdout, module.stderr) == (0, told.stdout, "")


# When the store fails.


class SmallDisk:
    """A server in a mount namespace of its own, whose store is on a file system of a few megabytes."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        self.store = f"sqlite:///{folder / 'turnlog.db'}"
        self._mount = f'mount -t tmpfs -o size={megabytes}m none "$0" && exec "$@"'

    def command(self, *command: str) -> list[str]:
        namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
        return [*namespace, "sh", "-c", self._mount, str(self.folder), *command]

    def possible(self) -> bool:
        need("unshare")
        return subprocess.run(self.command("true"), capture_output=True, timeout=30, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[httpx.Client, Path]]:
    """A client of such a server, and its file system as it is seen from here."""
    disk = SmallDisk(tmp_path, 6)
    if not disk.possible():
        complain("mounting a file system is not permitted")
    serve = [TURNLOG, "serve", "--port", "0", "--store", disk.store, "--first-key"]
    process = subprocess.Popen(
        disk.command(*serve), env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        banner = ""
        while "stop: Ctrl-C" not in banner:
            line = process.stdout.readline()
            assert line, "the server ended"
            banner += line
        base, key_id, secret = re.findall(
            r"on (http://\S+)\. |asapp-api-id: +(\S+)\n|asapp-api-secret: +(\S+)\n", banner
        )[:3]
        headers = {"asapp-api-id": key_id[1], "asapp-api-secret": secret[2]}
        with httpx.Client(base_url=base[0], headers=headers, timeout=30) as client:
            yield client, Path(f"/proc/{process.pid}/root{tmp_path}")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.sqlite_only("the disk is the server's own")
def test_a_full_disk_refuses_writes_goes_on_reading_and_recovers(small_disk: tuple[httpx.Client, Path]) -> None:
    """D06: 503-01, certainly not stored; no restart, no help; the store is sound afterwards."""
    client, folder = small_disk
    path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
    acknowledged = [client.post(path, json=message(f"before {n}")).json()["id"] for n in range(5)]
    for _ in range(2):
        _take_all_room(folder / "ballast")
        refused = _fill(client, path, acknowledged)
        assert refused["retry-after"]
        error_of(client.post(f"{V1}/conversations", json=conversation("d")), "503-01")
        listed = client.get(path).json()["items"]
        assert [m["messageId"] for m in listed] == acknowledged
        assert client.get("/readyz").status_code == client.get("/metrics").status_code == 200
        (folder / "ballast").unlink()
        after = client.post(path, json=message("after"))
        assert after.status_code == 200, after.text
        acknowledged.append(after.json()["id"])
    assert [m["messageId"] for m in client.get(path).json()["items"]] == acknowledged


def _take_all_room(path: Path) -> None:
    with path.open("wb", buffering=0) as ballast:
        for _ in range(100_000):
            try:
                ballast.write(bytes(4096))
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017 - the one way out of the loop
                return
    raise AssertionError("the disk never filled up")


def _fill(client: httpx.Client, path: str, acknowledged: list[str]) -> httpx.Headers:
    """Record until there is no room; the headers of the refusal."""
    for n in range(10_000):
        answer = client.post(path, json=message(f"{n} " + "x" * 3000))
        if answer.status_code != 200:
            error_of(answer, "503-01")
            return answer.headers
        acknowledged.append(answer.json()["id"])
    raise AssertionError("the disk never filled up")
