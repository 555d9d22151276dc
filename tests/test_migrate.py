"""``turnlog migrate``, and what a start does by itself: a store of every earlier schema opens, and keeps everything."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import apsw
import httpx
import pytest

from tests.harness import REPOSITORY, TURNLOG, V1, Server, clean_environment, run_cli
from tests.older import KEY, NEWEST, old_store
from tests.stores import path_of, rows
from turnlog.store.sqlite.migrate import migrate_store, migrations

if TYPE_CHECKING:
    from pathlib import Path

    from tests.postgres import Cluster

TABLES = (
    "account", "api_key", "api_secret", "keys_version", "conversation", "conversation_change", "message", "idempotency",
    "authentication",
)  # fmt: skip


def dump(url: str) -> dict[str, list[tuple[Any, ...]]]:
    return {table: rows(url, f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}  # noqa: S608


def migrate(url: str) -> dict[str, Any]:
    done = run_cli("migrate", "--store", url, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def refusal(*arguments: str) -> str:
    """The one line of a command that ends with status 1."""
    done = run_cli(*arguments)
    assert (done.returncode, done.stdout) == (1, ""), done.stdout
    (line,) = done.stderr.splitlines()
    return line


older = pytest.mark.parametrize("version", range(1, NEWEST))


@older
def test_an_older_store_is_upgraded_and_keeps_everything(tmp_path: Path, version: int) -> None:
    url = old_store(tmp_path, version)
    before = dump(url)
    assert migrate(url) == {"store": url, "from": version, "to": NEWEST}
    assert dump(url) == before
    assert rows(url, "PRAGMA user_version") == [(NEWEST,)]
    assert rows(url, "PRAGMA integrity_check") == [("ok",)]
    assert migrate(url) == {"store": url, "from": NEWEST, "to": NEWEST}


@older
def test_an_upgraded_store_has_the_schema_of_a_new_one(tmp_path: Path, version: int) -> None:
    (tmp_path / "new").mkdir()
    new = f"sqlite:///{tmp_path / 'new' / 'turnlog.db'}"
    assert run_cli("keys", "create", "tests", "--store", new).returncode == 0
    url = old_store(tmp_path, version)
    migrate(url)
    schema = "SELECT name, sql FROM sqlite_schema ORDER BY name"
    assert rows(url, schema) == rows(new, schema)


@older
def test_a_start_upgrades_by_itself_and_serves_what_is_there(tmp_path: Path, version: int) -> None:
    url = old_store(tmp_path, version)
    with Server(url) as server:
        with httpx.Client(base_url=server.base, headers=KEY.headers) as client:
            found = client.get(f"{V1}/conversation/messages", params={"externalId": "chat-1"}).json()["items"]
            assert [(m["messageId"], m["text"]) for m in found] == [("M1", "Grüße \x01\U0001f600"), ("M2", "Hello")]
            assert client.get(f"{V1}/conversations/C1").json()["agent"] == {"externalId": "bob", "name": "Bob"}
        assert server.stop() == 0
    assert rows(url, "PRAGMA user_version") == [(NEWEST,)]


@older
def test_a_look_at_the_keys_upgrades_too(tmp_path: Path, version: int) -> None:
    url = old_store(tmp_path, version)
    assert KEY.id in run_cli("keys", "list", "--store", url).stdout
    assert rows(url, "PRAGMA user_version") == [(NEWEST,)]


_KILLED = """
import os, signal, sys
from pathlib import Path
from turnlog.store.sqlite.connection import connect
from turnlog.store.sqlite.migrate import migrate

def migrate_for(statements, path):
    def count(*_):
        nonlocal statements
        statements -= 1
        if statements < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return True
    connection = connect(path)
    connection.set_exec_trace(count)
    migrate(connection)
    connection.close()

for statements, path in enumerate(sys.argv[1:]):
    child = os.fork()
    if not child:
        migrate_for(statements, Path(path))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status)
    if status == 0:
        break
"""


@pytest.mark.parametrize("version", range(NEWEST))
def test_killed_at_any_statement_it_is_at_one_whole_version_or_the_next(tmp_path: Path, version: int) -> None:
    urls = []
    for number in range(60):
        folder = tmp_path / str(number)
        folder.mkdir()
        urls.append(old_store(folder, version) if version else f"sqlite:///{folder / 'turnlog.db'}")
        path_of(urls[-1]).touch()
    command = [sys.executable, "-c", _KILLED, *(str(path_of(url)) for url in urls)]
    done = subprocess.run(command, check=True, timeout=60, capture_output=True, text=True)
    statuses = list(map(int, done.stdout.split()))
    assert statuses == [-signal.SIGKILL] * (len(statuses) - 1) + [0]
    ends = set()
    for url in urls[: len(statuses)]:
        ((reached,),) = rows(url, "PRAGMA user_version")
        ends.add(reached)
        assert _tables(url) == _tables_of(reached)
        assert migrate_store(path_of(url)) == (reached, NEWEST)
        assert _tables(url) == _tables_of(NEWEST)
        if version:
            assert rows(url, "SELECT count(*) FROM message") == [(3,)]
    assert ends == set(range(version, NEWEST + 1))


def _tables(url: str) -> list[tuple[Any, ...]]:
    return rows(url, "SELECT name FROM sqlite_schema ORDER BY name")


def _tables_of(version: int) -> list[tuple[Any, ...]]:
    connection = apsw.Connection("")
    for _, sql in migrations()[:version]:
        connection.execute(sql)
    found = list(connection.execute("SELECT name FROM sqlite_schema ORDER BY name"))
    connection.close()
    return found


def test_nothing_is_to_do_beside_a_running_server(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'turnlog.db'}"
    with Server(url) as server:
        done = run_cli("migrate", "--store", url)
        assert (done.returncode, done.stdout) == (0, f"{url} has schema {NEWEST} already: nothing to do.\n")
        assert server.stop() == 0


def test_a_store_that_a_server_of_the_older_program_has_open_is_left_alone(tmp_path: Path) -> None:
    url = old_store(tmp_path, NEWEST - 1)
    lock = path_of(url).with_name("turnlog.db.lock")
    held = subprocess.Popen(["flock", str(lock), "cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with held:
        assert held.stdin is not None
        assert held.stdout is not None
        held.stdin.write(b"x\n")
        held.stdin.flush()
        assert held.stdout.readline() == b"x\n"  # it has the lock
        assert "in use" in refusal("migrate", "--store", url)
        assert rows(url, "PRAGMA user_version") == [(NEWEST - 1,)]
        held.stdin.close()
    migrate(url)


def test_a_newer_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    url = old_store(tmp_path, NEWEST)
    rows(url, "PRAGMA user_version = 999")
    before = path_of(url).read_bytes()
    line = refusal("migrate", "--store", url)
    assert "has schema 999" in line
    assert f"up to {NEWEST}" in line
    assert path_of(url).read_bytes() == before


@pytest.mark.parametrize("content", [None, b"", b"a short note"])
def test_a_file_that_is_no_store_is_neither_made_nor_changed(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "turnlog.db"
    if content is not None:
        path.write_bytes(content)
    line = refusal("migrate", "--store", f"sqlite:///{path}")
    assert str(path) in line
    assert [one.name for one in tmp_path.iterdir()] == ([] if content is None else ["turnlog.db"])
    assert content is None or path.read_bytes() == content


# On PostgreSQL; what the tables must be for is in test_store.py.


def test_an_empty_database_gets_its_tables_from_many_nodes_at_once(cluster: Cluster) -> None:
    url = cluster.create_database()

    async def one() -> tuple[int | None, dict[str, Any]]:
        process = await asyncio.create_subprocess_exec(
            TURNLOG, "migrate", "--store", url, "--json", stdout=subprocess.PIPE, env=clean_environment()
        )
        out, _ = await process.communicate()
        return process.returncode, json.loads(out)

    async def all_at_once() -> list[tuple[int | None, dict[str, Any]]]:
        return list(await asyncio.gather(*(one() for _ in range(5))))

    told = asyncio.run(all_at_once())
    newest = told[0][1]["to"]
    assert {(status, one["to"]) for status, one in told} == {(0, newest)}
    assert migrate(url) | {"store": ""} == {"store": "", "from": newest, "to": newest}
    assert url.partition("@")[0].rpartition(":")[2] not in str(told)  # the password


def test_a_database_that_only_a_newer_program_may_use_is_refused(cluster: Cluster) -> None:
    url = cluster.create_database()
    migrate(url)
    name = url.rpartition("/")[2]
    cluster.sql("UPDATE turnlog.schema_version SET version = 999", database=name)
    assert migrate(url)["to"] == 999  # the newer one says that this program still works with it
    cluster.sql("UPDATE turnlog.schema_version SET oldest_program = 999", database=name)
    assert "has schema 999" in refusal("migrate", "--store", url)


def test_migrations_are_in_the_package() -> None:
    """A file that is not a migration by its name would never be applied."""
    for kind in ("sqlite", "postgres"):
        names = [path.name for path in (REPOSITORY / "src/turnlog/store" / kind / "schema").iterdir()]
        assert all(name[:4].isdecimal() and name.endswith(".sql") for name in names), names
