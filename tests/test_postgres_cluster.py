"""The PostgreSQL servers of the tests do what the tests of durability rely on: those prove nothing otherwise."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import asyncpg
import pytest

from tests.harness import REPOSITORY, wait_for
from tests.postgres import PASSWORD
from tests.postgres_guard import inhabitants
from tests.postgres_programs import NEEDED, OLDEST, PACKAGE, as_nobody, find

if TYPE_CHECKING:
    from tests.postgres import Cluster, Home

pytestmark = pytest.mark.postgresql_only("what is tested is the tests' own PostgreSQL")


def _note(cluster: Cluster, text: str) -> None:
    cluster.sql("CREATE TABLE IF NOT EXISTS note (text text)")
    cluster.sql("INSERT INTO note VALUES ($1)", text)


def _notes(cluster: Cluster) -> list[str]:
    return [text for (text,) in cluster.sql("SELECT text FROM note ORDER BY text")]


def test_a_server_keeps_what_makes_a_commit_durable(cluster: Cluster) -> None:
    for setting in ("fsync", "synchronous_commit", "full_page_writes"):
        assert cluster.sql(f"SHOW {setting}") == [("on",)]
    assert cluster.sql("SHOW server_encoding") == [("UTF8",)]
    ((version,),) = cluster.sql("SHOW server_version_num")
    assert int(version) >= OLDEST * 10_000


def test_only_its_password_opens_it(cluster: Cluster) -> None:
    right = cluster.url()
    assert "%" in right, "the password is one that a URL has to quote"

    async def enter(url: str) -> None:
        await (await asyncpg.connect(url)).close()

    asyncio.run(enter(right))
    with pytest.raises(asyncpg.InvalidPasswordError):
        asyncio.run(enter(right.replace(quote(PASSWORD, safe=""), "guess")))


@pytest.mark.parametrize("end", ["kill", "immediate", "fast"])
def test_what_was_committed_is_there_after_any_end(cluster: Cluster, end: str) -> None:
    _note(cluster, "committed")
    if end == "kill":
        cluster.kill()
    else:
        cluster.stop("immediate" if end == "immediate" else "fast")
    with pytest.raises(ConnectionRefusedError):
        cluster.sql("SELECT 1")
    cluster.start()
    assert _notes(cluster) == ["committed"]


def test_a_frozen_server_answers_nobody_until_it_is_thawed(cluster: Cluster) -> None:
    _note(cluster, "before")
    cluster.freeze()
    with pytest.raises(TimeoutError):
        cluster.sql("SELECT 1", timeout_s=0.3)
    cluster.thaw()
    assert _notes(cluster) == ["before"]
    cluster.freeze()
    cluster.kill()
    cluster.start()
    assert _notes(cluster) == ["before"]


def test_a_standby_has_every_commit_and_takes_over(cluster: Cluster) -> None:
    _note(cluster, "before")
    standby = cluster.standby()
    _note(cluster, "behind")
    cluster.kill()
    assert _notes(standby) == ["before", "behind"]
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        _note(standby, "too early")
    standby.promote()
    _note(standby, "own")
    assert _notes(standby) == ["before", "behind", "own"]


def test_a_commit_waits_for_the_standby(cluster: Cluster) -> None:
    standby = cluster.standby()
    standby.freeze()
    with pytest.raises(TimeoutError):
        cluster.sql("CREATE TABLE waiting ()", timeout_s=0.3)
    standby.thaw()
    cluster.sql("CREATE TABLE at_once ()")


def test_databases_are_empty_and_each_others_strangers(cluster: Cluster) -> None:
    first, second = cluster.create_database(), cluster.create_database()
    assert first != second
    names = [url.rpartition("/")[2] for url in (first, second)]
    cluster.sql("CREATE TABLE here ()", database=names[0])
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert [cluster.sql(tables, database=name) for name in names] == [[(1,)], [(0,)]]
    cluster.drop_database(first)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        cluster.sql(tables, database=names[0])


@pytest.mark.parametrize(("name", "value"), [("work_mem", "1MB"), ("max_connections", "20")], ids=["reload", "restart"])
def test_a_setting_is_in_force_at_once(cluster: Cluster, name: str, value: str) -> None:
    cluster.configure(**{name: value})
    assert cluster.sql(f"SHOW {name}") == [(value,)]


def test_every_session_on_a_database_is_ended(cluster: Cluster) -> None:
    url = cluster.create_database()
    name = url.rpartition("/")[2]

    async def scenario() -> None:
        connection = await asyncpg.connect(url)
        assert await asyncio.to_thread(cluster.terminate_backends, name) == 1
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.AdminShutdownError, asyncpg.InterfaceError)):
            await connection.fetch("SELECT 1")
        connection.terminate()

    asyncio.run(scenario())
    assert cluster.terminate_backends(name) == 0


# How the tests find PostgreSQL, and what they leave behind.


def _programs(folder: Path, version: str) -> Path:
    """A folder that looks like PostgreSQL's of that version."""
    folder.mkdir(parents=True)
    for name in NEEDED:
        (folder / name).write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n", "utf-8")
        (folder / name).chmod(0o755)
    return folder


def test_the_path_goes_before_the_system_and_the_system_before_the_package(postgresql: Home, tmp_path: Path) -> None:
    folder = postgresql.place()
    system, nowhere = (folder, "*/bin"), str(folder / "nowhere")
    newest = _programs(folder / "9" / "bin", "18.1 (Debian)")
    _programs(folder / "17" / "bin", "17.6")
    assert find(nowhere, system) == newest
    chosen = _programs(folder / "chosen", "15.14")
    assert find(str(chosen), system) == chosen
    (folder / "links").mkdir()
    (folder / "links" / "postgres").symlink_to(chosen / "postgres")
    assert find(str(folder / "links"), system) == chosen
    assert find(str(_programs(folder / "old", "14.20")), system) == newest
    private = _programs(tmp_path / "private", "16.1")  # pytest's folder is its owner's alone
    assert find(str(private), system) == (newest if as_nobody() else private)
    (chosen / "pg_basebackup").unlink()
    assert find(str(chosen), system) == newest
    package = find(nowhere, (folder, "none"))
    assert package is None or PACKAGE in str(package)


def test_nothing_is_left_behind_however_the_tests_end(postgresql: Home) -> None:
    """A run of the tests that is killed with a server, a standby and a frozen server under way."""
    lines = [
        "import sys, pathlib",
        "from tests.postgres import Home",
        "home = Home(pathlib.Path(sys.argv[1]))",
        "one, frozen = home.cluster(), home.cluster()",
        "one.standby()",
        "frozen.freeze()",
        "print(home.folder, flush=True)",
        "sys.stdin.read()",
    ]
    command = [sys.executable, "-c", "\n".join(lines), str(postgresql.programs)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        folder = Path(run.stdout.readline().strip())
        left = inhabitants(folder)
        run.kill()
    assert len(left) > 3
    wait_for(lambda: not folder.exists())
    assert inhabitants(folder) == []
