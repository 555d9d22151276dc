"""What ``turnlog copy`` refuses, and what its verification finds that somebody changed behind its back."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from tests.copying import Contents, copied, copy, refusal
from tests.harness import V1, Key, Server, message, run_cli
from tests.older import NEWEST, old_store
from tests.stores import path_of, rows
from turnlog.store.postgres.transfer import COPY_LOCK

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.postgres import Cluster


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Contents]:
    """A store with something of everything, which stays as it is."""
    url = f"sqlite:///{tmp_path_factory.mktemp('original') / 'turnlog.db'}"
    with Server(url) as server:
        contents = Contents(server)
        assert server.stop() == 0
    return url, contents


@pytest.fixture
def source(original: tuple[str, Contents], tmp_path: Path) -> str:
    """The same, to be changed by the test."""
    path = tmp_path / "source.db"
    shutil.copyfile(path_of(original[0]), path)
    return f"sqlite:///{path}"


def record(url: str, key: Key, conversation: str, text: str) -> None:
    """One more message, through a server on the store."""
    with Server(url) as server:
        with server.client(key) as client:
            answer = client.post(f"{V1}/conversations/{conversation}/messages", json=message(text))
            assert answer.status_code == 200, answer.text
        assert server.stop() == 0


# Verification. Statements for both kinds of store; the newest entry stays as it is, else the target is another store.

SECOND = "(SELECT min(id) FROM message WHERE id > (SELECT min(id) FROM message))"
FOUND = {
    "a text": ("UPDATE message SET text = 'x' WHERE id = SECOND", "messages", "differs in text"),
    "a space": ("UPDATE message SET text = text || ' ' WHERE id = SECOND", "messages", "differs in text"),
    "a time": ("UPDATE message SET client_at = client_at + 1 WHERE id = SECOND", "messages", "client_at"),
    "a sender": ("UPDATE message SET sender = '', role = 2 WHERE id = SECOND", "messages", "differs in role, sender"),
    "a message gone": ("DELETE FROM message WHERE id = SECOND", "messages", "is missing in the target"),
    "many gone": ("DELETE FROM message WHERE text < '9'", "messages", "is missing in the target"),
    "a change": ("UPDATE conversation_change SET changed_at = 7", "conversation changes", "differs in changed_at"),
    "a state": ("UPDATE conversation_change SET state = state || ' '", "conversation changes", "differs in state"),
    "a name": ("UPDATE conversation SET agent_name = 'x'", "conversations", "differs in agent_name"),
    "metadata": ("UPDATE conversation SET metadata = NULL", "conversations", "differs in metadata"),
    "a creation": ("UPDATE conversation SET created_at = 7", "conversations", "differs in created_at"),
    "a fact": ("UPDATE authentication SET parts = 'x' WHERE number = 2", "authentications", "differs in parts"),
    "a fact gone and another": (
        "UPDATE authentication SET conversation = (SELECT max(conversation) FROM message), stream_id = 'x'",
        "authentications",
        "differs in",
    ),
}


def change_rows(url: str, statement: str) -> list[tuple[Any, ...]]:
    """Behind everybody's back."""
    return rows(url, statement.replace("SECOND", SECOND))


@pytest.mark.parametrize("change", FOUND)
def test_what_was_changed_in_the_target_is_found(
    original: tuple[str, Contents], new_store: Callable[[], str], change: str
) -> None:
    """Also where an earlier run found it right."""
    source, target = original[0], new_store()
    copied(source, target)
    statement, kind, difference = FOUND[change]
    change_rows(target, statement)
    done = copy(source, target, "--json")
    line = refusal(done)
    assert f"the copy is not the source: {kind}, account " in line
    assert difference in line
    summary = json.loads(done.stdout)
    assert summary["complete"] is False
    checks = {check["kind"]: check for check in summary["checks"]}
    assert checks[kind]["difference"] in line
    assert checks[kind]["source"]["checksum"] != checks[kind]["target"]["checksum"]
    equal = [name for name, check in checks.items() if check["difference"] is None]
    assert all(checks[name]["source"] == checks[name]["target"] for name in equal)
    assert "API keys" in equal


def test_the_first_difference_is_named_and_the_target_is_not_served(
    original: tuple[str, Contents], new_store: Callable[[], str]
) -> None:
    source, target = original[0], new_store()
    copied(source, target)
    ((second,),) = change_rows(target, "SELECT id FROM message WHERE id = SECOND")
    change_rows(target, "UPDATE message SET text = text || '!' WHERE id >= SECOND AND text NOT LIKE 'keyed%'")
    done = copy(source, target)
    line = refusal(done)
    assert line.startswith(
        f"turnlog: the copy is not the source: messages, account 'default': the message {second} at position 3 "
        "differs in text; the target stays closed"
    )
    (ours,) = [line for line in done.stdout.splitlines() if line.startswith("  messages ")]
    assert ours.endswith("  in the source")
    assert "was not finished" in refusal(run_cli("keys", "list", "--store", target))


CHANGED_BACK = {
    "a key's ids": "UPDATE idempotency SET ids = 'x'",
    "a key gone": "DELETE FROM idempotency",
    "a key too many": "UPDATE idempotency SET key = key || 'x'",
    "a revocation": "UPDATE api_key SET revoked_at = NULL",
    "a permission": "UPDATE api_key SET permissions = 'admin'",
    "secrets gone": "DELETE FROM api_secret",
}


@pytest.mark.parametrize("change", CHANGED_BACK)
def test_what_may_change_is_made_the_sources_again(
    original: tuple[str, Contents], new_store: Callable[[], str], change: str
) -> None:
    source, target = original[0], new_store()
    first = copied(source, target)
    change_rows(target, CHANGED_BACK[change])
    assert copied(source, target)["checks"] == first["checks"]


def test_what_earlier_runs_verified_is_left_out_where_asked(
    original: tuple[str, Contents], new_store: Callable[[], str]
) -> None:
    """Of the log only: what can change is compared whole each time."""
    source, target = original[0], new_store()
    copied(source, target)
    change_rows(target, "UPDATE message SET text = 'x' WHERE id = SECOND")
    assert copied(source, target, "--verify", "new")["checks"][0]["source"]["count"] == 0
    rows(target, "UPDATE conversation SET customer_name = 'x'")
    assert "conversations" in refusal(copy(source, target, "--verify", "new"))


# A target that has data of its own.


def test_a_target_that_went_its_own_way_is_refused_and_goes_on(
    original: tuple[str, Contents], source: str, new_store: Callable[[], str]
) -> None:
    contents = original[1]
    target = new_store()
    before = copied(source, target)
    conversation = contents.conversations["b"][0]
    last = sum(1 for _ in rows(source, "SELECT 1 FROM message WHERE entry >> 40 = 1")) + 10
    record(target, contents.keys["b"], conversation, "there")
    line = refusal(copy(source, target))
    assert "has data of its own: " in line
    assert f"account 'b' has {last + 1} entries, and {last} in the source" in line
    record(source, contents.keys["b"], conversation, "here")
    line = refusal(copy(source, target))
    assert f"its entry at position {last + 1} of account 'b' is not the source's" in line
    with Server(target) as server, server.client(contents.keys["b"]) as client:
        found = client.get(f"{V1}/conversations/{conversation}/messages").json()["items"]
        assert "there" in [one["text"] for one in found]
    assert before["complete"]


def test_a_target_with_a_key_of_its_own_is_refused(
    original: tuple[str, Contents], new_store: Callable[[], str]
) -> None:
    target = new_store()
    assert run_cli("keys", "create", "own", "--store", target).returncode == 0
    line = refusal(copy(original[0], target))
    assert "has data of its own: the source has no key turnlog_id_" in line
    assert "(default/own)" in line
    assert "own" in run_cli("keys", "list", "--store", target).stdout


def test_a_target_that_a_server_has_open_is_refused(
    original: tuple[str, Contents], new_store: Callable[[], str]
) -> None:
    target = new_store()
    with Server(target) as server:
        assert "in use by" in refusal(copy(original[0], target))
        assert server.stop() == 0
    copied(original[0], target)


def test_a_second_copy_at_once_is_refused(original: tuple[str, Contents], cluster: Cluster) -> None:
    target = cluster.create_database()

    async def while_one_holds_the_lock() -> str:
        connection = await asyncpg.connect(target)
        try:
            await connection.execute("SELECT pg_advisory_lock($1)", COPY_LOCK)
            return refusal(await asyncio.to_thread(copy, original[0], target))
        finally:
            await connection.close()

    assert "another copy into the store" in asyncio.run(while_one_holds_the_lock())
    copied(original[0], target)


# A source that cannot be copied.


def test_a_source_that_is_not_there_makes_nothing(tmp_path: Path, cluster: Cluster) -> None:
    target = f"sqlite:///{tmp_path / 'target.db'}"
    empty = cluster.create_database()
    (tmp_path / "empty.db").touch()
    for source in (f"sqlite:///{tmp_path / 'source.db'}", f"sqlite:///{tmp_path / 'empty.db'}", empty):
        assert "there is no store" in refusal(copy(source, target))
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]
    assert (tmp_path / "empty.db").read_bytes() == b""
    assert cluster.sql("SELECT 1 FROM pg_namespace WHERE nspname = 'turnlog'", database=empty.rpartition("/")[2]) == []


@pytest.mark.parametrize("end", ["--from", "--to"])
def test_what_is_no_store_is_refused(source: str, tmp_path: Path, end: str) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("a short note")
    ends = {"--from": source, "--to": f"sqlite:///{tmp_path / 'target.db'}"} | {end: f"sqlite:///{other}"}
    assert str(other) in refusal(copy(ends["--from"], ends["--to"]))
    assert other.read_text() == "a short note"
    for url in ("mysql://u:secret@h/d", "turnlog.db", "postgresql://u:secret@h"):
        ends[end] = url
        line = refusal(copy(ends["--from"], ends["--to"]))
        assert "is not a store's URL" in line
        assert "secret" not in line


def test_an_older_source_is_to_be_migrated_first(tmp_path: Path) -> None:
    source, target = old_store(tmp_path, NEWEST - 1), f"sqlite:///{tmp_path / 'target.db'}"
    line = refusal(copy(source, target))
    assert f"run `turnlog migrate --store {source}` first" in line
    assert not path_of(target).exists()
    assert run_cli("migrate", "--store", source).returncode == 0
    copied(source, target)


def test_a_newer_store_is_refused(source: str, tmp_path: Path) -> None:
    newer = f"sqlite:///{tmp_path / 'newer.db'}"
    shutil.copyfile(path_of(source), path_of(newer))
    rows(newer, "PRAGMA user_version = 999")
    assert "has schema 999" in refusal(copy(newer, f"sqlite:///{tmp_path / 'target.db'}"))
    assert "has schema 999" in refusal(copy(source, newer))


def test_a_log_with_a_gap_is_not_copied(source: str, new_store: Callable[[], str]) -> None:
    rows(source, "DELETE FROM message WHERE entry = 7")
    line = refusal(copy(source, new_store()))
    assert "the log of account 'default'" in line
    assert "has a gap behind position 6: it cannot be copied" in line


@pytest.mark.parametrize("name", ["source.db", "symbolic.db", "hard.db", "sub/../source.db"])
def test_a_file_is_not_copied_into_itself(source: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "symbolic.db").symlink_to(path_of(source))
    (tmp_path / "hard.db").hardlink_to(path_of(source))
    before = path_of(source).read_bytes()
    assert "--from and --to are one store" in refusal(copy(source, f"sqlite:///{tmp_path / name}"))
    assert path_of(source).read_bytes() == before


def test_a_database_is_not_copied_into_itself(original: tuple[str, Contents], cluster: Cluster) -> None:
    url = cluster.create_database()
    copied(original[0], url)
    for other in (url, url.replace("postgresql://", "postgres://"), f"{url}?connect_timeout=3"):
        line = refusal(copy(url, other))
        assert "--from and --to are one store" in line
        assert url.partition("@")[0].rpartition(":")[2] not in line  # the password
    assert run_cli("keys", "list", "--store", url).returncode == 0


def test_a_server_that_cannot_be_reached_is_named_without_the_password(source: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"postgresql://turnlog:secret@127.0.0.1:{taken.getsockname()[1]}/turnlog"
    for ends in ((source, nobody), (nobody, f"sqlite:///{tmp_path / 'target.db'}")):
        line = refusal(copy(*ends))
        assert "no connection to postgresql://turnlog:…@127.0.0.1" in line
        assert "secret" not in line
    assert not (tmp_path / "target.db").exists()


def test_both_ends_must_be_given() -> None:
    for arguments in ((), ("--from", "sqlite:///a.db"), ("--to", "sqlite:///a.db")):
        done: Any = run_cli("copy", *arguments)
        assert "Missing option" in refusal(done, 2)
