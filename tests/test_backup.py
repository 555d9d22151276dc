"""B01: ``turnlog backup`` beside a running server, ``turnlog restore``, and what both refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.damage import fill, place_of, turn_over
from tests.harness import V1, Server, create_conversation, make_key, message, run_cli
from tests.stores import contents, path_of, rows

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.damage import Filled
    from tests.postgres import Cluster

sqlite_only = pytest.mark.sqlite_only("a database is backed up in its own way")


def back_up(url: str, target: Path, *more: str) -> dict[str, object]:
    done = run_cli("backup", str(target), "--store", url, "--json", *more)
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


def refusal(*arguments: str) -> str:
    done = run_cli(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("turnlog: ")
    return line


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A store that is only read."""
    return fill(url_of(tmp_path_factory.mktemp("filled") / "turnlog.db"), 3)


@sqlite_only
def test_a_backup_beside_a_recording_server_has_all_that_was_acknowledged_before_it(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """B01: several in a row while messages come; each is restored, checked and served."""
    server = start()
    key = server.create_key("busy")
    acknowledged: list[str] = []
    stop = threading.Event()
    with server.client(key) as client:
        conversation = create_conversation(client, "busy")
        path = f"{V1}/conversations/{conversation}/messages"

        def record() -> None:
            while not stop.is_set():
                text = f"{len(acknowledged)} " + "x" * 2000
                if client.post(path, json=message(text)).status_code == 200:
                    acknowledged.append(text)

        recording = threading.Thread(target=record)
        recording.start()
        before = []
        try:
            for number in range(3):
                before.append(len(acknowledged))
                back_up(server.url, tmp_path / f"{number}.db")
        finally:
            stop.set()
            recording.join()
    assert len(set(before)) == 3  # it went on recording
    for number, least in enumerate(before):
        backup, store = tmp_path / f"{number}.db", url_of(tmp_path / str(number) / "turnlog.db")
        assert backup.stat().st_mode & 0o777 == 0o600
        path_of(store).parent.mkdir()
        assert run_cli("restore", str(backup), "--store", store).returncode == 0
        with start(store=store).client(key) as client:
            texts = [item["text"] for item in client.get(path).json()["items"]]
        assert texts == acknowledged[: len(texts)]
        assert len(texts) >= least
    assert not list(tmp_path.glob("*partial*"))
    assert server.stop() == 0


@sqlite_only
def test_a_backup_takes_what_a_killed_server_has_left_in_its_wal_and_leaves_it_there(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    """B01: nobody has put it into the database yet."""
    server = start()
    with server.client(server.create_key("killed")) as client:
        create_conversation(client, "killed")
    server.kill()
    before = contents(server.url)
    back_up(server.url, tmp_path / "backup.db")
    after = contents(server.url)
    assert after["turnlog.db"] == before["turnlog.db"]
    assert after["turnlog.db-wal"] == before["turnlog.db-wal"] != b""
    assert rows(url_of(tmp_path / "backup.db"), "SELECT external_id FROM conversation") == [("killed",)]


@sqlite_only
def test_a_backup_says_what_it_is(filled: Filled, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    told = back_up(filled.url, target)
    assert told["bytes"] == target.stat().st_size == filled.path.stat().st_size
    assert (told["store"], told["file"]) == (filled.url, str(target))
    assert "checked" in run_cli("backup", str(tmp_path / "other.db"), "--store", filled.url).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backup.db", "other.db"]


@sqlite_only
def test_a_backup_overwrites_only_what_it_is_told_to(filled: Filled, tmp_path: Path) -> None:
    target = tmp_path / "backup.db"
    target.write_bytes(b"somebody's")
    assert "--force" in refusal("backup", str(target), "--store", filled.url)
    assert target.read_bytes() == b"somebody's"
    back_up(filled.url, target, "--force")
    assert run_cli("check", "--store", url_of(target)).returncode == 0
    (tmp_path / "folder").mkdir()
    for wrong in (filled.path, tmp_path / "folder"):
        assert str(wrong) in refusal("backup", str(wrong), "--store", filled.url, "--force")
    assert "nowhere" in refusal("backup", str(tmp_path / "nowhere" / "b.db"), "--store", filled.url)
    assert "there is no store" in refusal("backup", str(tmp_path / "b.db"), "--store", url_of(tmp_path / "none.db"))


@sqlite_only
def test_of_a_damaged_store_no_backup_is_made(filled: Filled, tmp_path: Path) -> None:
    damaged, target = tmp_path / "turnlog.db", tmp_path / "backup.db"
    damaged.write_bytes(filled.path.read_bytes())
    turn_over(damaged, place_of(damaged, filled.texts[150]))
    target.write_bytes(b"the last good one")
    refusal("backup", str(target), "--store", url_of(damaged), "--force")
    assert target.read_bytes() == b"the last good one"
    assert list(tmp_path.glob("*partial*")) == []


@sqlite_only
def test_a_restore_refuses_what_is_no_whole_backup(filled: Filled, tmp_path: Path) -> None:
    """Nothing is touched, and the line says what is wrong."""
    store = url_of(tmp_path / "turnlog.db")
    make_key(store, "old")
    before = contents(store)
    damaged, short, note = (tmp_path / "elsewhere" / name for name in ("damaged.db", "short.db", "note.db"))
    damaged.parent.mkdir()
    damaged.write_bytes(filled.path.read_bytes())
    turn_over(damaged, place_of(damaged, filled.texts[150]))
    short.write_bytes(filled.path.read_bytes()[: 2048 * 20])
    note.write_bytes(b"a short note")
    for wrong in (damaged, short, note, tmp_path / "none.db", path_of(store)):
        assert str(wrong) in refusal("restore", str(wrong), "--store", store, "--force")
    assert "--force" in refusal("restore", str(filled.path), "--store", store)
    assert contents(store) == before


@sqlite_only
def test_a_restore_refuses_a_store_that_is_served(filled: Filled, start: Callable[..., Server], tmp_path: Path) -> None:
    """As the target, and as the backup."""
    server = start()
    assert "in use" in refusal("restore", str(filled.path), "--store", server.url, "--force")
    assert "in use" in refusal("restore", str(path_of(server.url)), "--store", url_of(tmp_path / "turnlog.db"))


@sqlite_only
def test_a_restore_keeps_the_old_store_with_what_was_in_its_wal(
    filled: Filled, start: Callable[..., Server], tmp_path: Path
) -> None:
    """Its server was killed; it can still be served under its new name."""
    server = start()
    key = server.create_key("old")
    with server.client(key) as client:
        create_conversation(client, "old")
    server.kill()
    done = run_cli("restore", str(filled.path), "--store", server.url, "--force", "--json")
    told = json.loads(done.stdout)
    assert told["counts"]["message"] == len(filled.texts)
    assert rows(url_of(told["kept"]), "SELECT external_id FROM conversation") == [("old",)]
    with start(store=server.url).client(filled.key) as client:
        texts = [
            item["text"] for item in client.get(f"{V1}/conversations/{filled.conversation}/messages").json()["items"]
        ]
    assert texts == filled.texts
    assert not list(path_of(server.url).parent.glob("*restoring*"))


@sqlite_only
def test_a_damaged_store_is_restored_and_kept(filled: Filled, tmp_path: Path) -> None:
    damaged = tmp_path / "turnlog.db"
    damaged.write_bytes(b"x" * 4096)
    done = run_cli("restore", str(filled.path), "--store", url_of(damaged), "--force", "--json")
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout)["kept"]).read_bytes() == b"x" * 4096
    assert run_cli("check", "--store", url_of(damaged)).returncode == 0


_KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from turnlog.store.connect import restore

def kill_at(number):
    def hook(event, arguments):
        nonlocal number
        if event != "os.kill" and event.startswith(("open", "os.", "fcntl.")):
            number -= 1
            if number < 0:
                os.kill(os.getpid(), signal.SIGKILL)
    return hook

backup = Path(sys.argv[1])
for number, url in enumerate(sys.argv[2:]):
    child = os.fork()
    if not child:
        sys.addaudithook(kill_at(number))
        asyncio.run(restore(url, backup, stamp="before", force=True))
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, flush=True)
    if status == 0:
        break
"""


@sqlite_only
def test_killed_at_any_step_of_a_restore_there_is_the_old_store_whole_or_the_new(
    filled: Filled, start: Callable[..., Server], tmp_path: Path
) -> None:
    """Before each of its calls that touch files; the old store has its newest entries in its WAL."""
    server = start()
    with server.client(server.create_key("old")) as client:
        create_conversation(client, "old")
    server.kill()
    old = contents(server.url)
    urls = []
    for number in range(80):
        folder = tmp_path / f"killed-{number}"
        folder.mkdir()
        for name in ("turnlog.db", "turnlog.db-wal"):
            content = old[name]
            assert isinstance(content, bytes)
            (folder / name).write_bytes(content)
        urls.append(url_of(folder / "turnlog.db"))
    command = [sys.executable, "-c", _KILLED, str(filled.path), *urls]
    done = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True)
    statuses = list(map(int, done.stdout.split()))
    assert statuses == [-signal.SIGKILL] * (len(statuses) - 1) + [0]
    found = [rows(url, "SELECT external_id FROM conversation") for url in urls[: len(statuses)]]
    new = rows(filled.url, "SELECT external_id FROM conversation")
    change = found.index(new)
    assert found == [[("old",)]] * change + [new] * (len(found) - change)
    assert change > 10
    for url in urls[: len(statuses)]:
        assert rows(url, "PRAGMA integrity_check") == [("ok",)]
    assert run_cli("restore", str(filled.path), "--store", urls[change - 1], "--force").returncode == 0


def test_a_database_is_backed_up_in_its_own_way(cluster: Cluster, tmp_path: Path) -> None:
    url = cluster.create_database()
    for command in ("backup", "restore"):
        line = refusal(command, str(tmp_path / "b.db"), "--store", url)
        assert "PostgreSQL's own way" in line
        assert url.partition("@")[0].rpartition(":")[2] not in line
