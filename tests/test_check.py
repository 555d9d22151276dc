"""``turnlog check``: what it counts, what it finds wrong, and that it stands in nobody's way."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

import apsw
import pytest

from tests.damage import fill, place_of, turn_over
from tests.harness import V1, Server, create_conversation, message, run_cli
from tests.stores import rows
from turnlog.store.sqlite.connection import APPLICATION_ID, has_checksums

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def check(url: str) -> tuple[int, dict[str, int], list[str]]:
    """Status, counts and problems."""
    done = run_cli("check", "--store", url, "--json")
    assert done.stderr == ""
    told = json.loads(done.stdout)
    return done.returncode, told["counts"], told["problems"]


def record(server: Server, messages: int = 3) -> None:
    """A conversation, changed once, with so many messages."""
    with server.client(server.create_key("recorder")) as client:
        conversation = create_conversation(client, "one")
        create_conversation(client, "one", agent={"externalId": "bob"})
        for _ in range(messages):
            answer = client.post(f"{V1}/conversations/{conversation}/messages", json=message())
            assert answer.status_code == 200


def test_a_store_is_counted_and_in_order_beside_its_server(start: Callable[..., Server]) -> None:
    server = start()
    record(server)
    status, counts, problems = check(server.url)
    assert (status, problems) == (0, [])
    expected = {"account": 1, "conversation": 1, "conversation_change": 2, "message": 3, "api_key": 1, "webhook": 0}
    assert counts == expected
    plain = run_cli("check", "--store", server.url)
    assert plain.returncode == 0
    assert "is in order: 1 accounts, 1 conversations, 2 conversation changes, 3 messages," in plain.stdout
    with server.client() as client:
        assert client.get("/readyz").status_code == 200


# What is broken behind the server's back, for each kind of store, and a part of what is found.
BROKEN: dict[str, tuple[str, str, str | dict[str, str]]] = {
    "a gap": (
        "DELETE FROM message WHERE entry & 1099511627775 = 4",
        "DELETE FROM message WHERE position = 4",
        "account default: the log has 4 entries up to position 5",
    ),
    "a lost end": (
        "DELETE FROM conversation_change",
        "DELETE FROM message WHERE position = 5",
        {"sqlite": "the log has 3 entries up to position 5", "postgresql": "position 4, and its counter says 5"},
    ),
    "a position taken twice": (
        "UPDATE conversation_change SET entry = entry + 1 WHERE created = 0",
        "UPDATE conversation_change SET position = 3 WHERE NOT created",
        "account default: 1 positions of the log are taken twice",
    ),
    "no such conversation": (
        "UPDATE message SET conversation = 77 WHERE entry & 1099511627775 = 4",
        "UPDATE message SET conversation = 77 WHERE position = 4",
        "1 rows of message have no row of conversation",
    ),
    "a key without an account": (
        "UPDATE api_key SET account = 77",
        "UPDATE api_key SET account = 77",
        "1 rows of api_key have no row of account",
    ),
    "a conversation out of nothing": (
        "INSERT INTO conversation VALUES (2, 0, 'X', 'x', 'c', NULL, NULL, NULL, NULL, 0, 0)",
        "INSERT INTO conversation SELECT account, 2, 'X', 'x', 'c', NULL, NULL, NULL, NULL, 0, 0 FROM conversation",
        "1 conversations do not have one creation in the log",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_contradicts_itself_is_named(start: Callable[..., Server], store_kind: str, broken: str) -> None:
    server = start()
    record(server)
    assert server.stop() == 0
    sqlite, postgresql, found = BROKEN[broken]
    rows(server.url, sqlite if store_kind == "sqlite" else postgresql)
    status, _, problems = check(server.url)
    assert status == 1
    expected = found if isinstance(found, str) else found[store_kind]
    assert any(expected in problem for problem in problems), problems


@pytest.mark.sqlite_only("entries of an account are a range of keys there")
def test_what_is_in_anothers_conversation_or_of_no_account_is_named(start: Callable[..., Server]) -> None:
    server = start()
    record(server)
    server.create_key("other", "--account", "other")
    assert server.stop() == 0
    rows(server.url, "UPDATE message SET entry = (1 << 40) + 1 WHERE entry = 5")
    assert "1 messages are in a conversation of another account" in check(server.url)[2]
    rows(server.url, "UPDATE message SET entry = (9 << 40) + 1 WHERE entry = (1 << 40) + 1")
    assert "1 entries of the log are of no account" in check(server.url)[2]


@pytest.mark.sqlite_only("the pages of a file")
def test_each_damaged_page_is_named(tmp_path: Path) -> None:
    """D11."""
    filled = fill(f"sqlite:///{tmp_path / 'turnlog.db'}", 6)
    found = {turn_over(filled.path, place_of(filled.path, filled.texts[number])) for number in (250, 400, 550)}
    assert len(found) == 3
    status, _, problems = check(filled.url)
    assert status == 1
    plain = run_cli("check", "--store", filled.url)
    assert (plain.returncode, plain.stdout.splitlines()) == (1, problems)
    for page in found:
        assert any(f"{page}" in problem.replace(",", " ").split() for problem in problems), problems


_OTHER_INDEX = """
    PRAGMA writable_schema = ON;
    UPDATE sqlite_schema SET sql = replace(sql, 'client_at', 'created_at') WHERE name = 'message_listing';
    PRAGMA writable_schema = RESET;
"""


@pytest.mark.sqlite_only("an index is PostgreSQL's own affair")
def test_an_index_that_contradicts_its_table_is_found(start: Callable[..., Server]) -> None:
    """SQLite's own integrity check is part of it: no page is damaged here."""
    server = start()
    record(server)
    assert server.stop() == 0
    rows(server.url, _OTHER_INDEX)
    _, _, problems = check(server.url)
    assert any("message_listing" in problem for problem in problems), problems


def test_where_there_is_no_store_that_is_said(new_store: Callable[[], str], store_kind: str, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'none.db'}" if store_kind == "sqlite" else new_store()
    done = run_cli("check", "--store", url)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no store" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.sqlite_only("the file of an older program")
def test_a_store_without_checksums_goes_on_without_them_and_its_copy_has_them(
    tmp_path: Path, start: Callable[..., Server]
) -> None:
    """An older program made it; what contradicts itself is found in it, a bit in a text is not."""
    old, new = tmp_path / "old.db", tmp_path / "new.db"
    with contextlib.closing(apsw.Connection(str(old))) as connection:
        connection.pragma("application_id", APPLICATION_ID)
    assert not has_checksums(old.read_bytes())
    server = start(store=f"sqlite:///{old}")
    record(server)
    assert server.stop() == 0
    assert not has_checksums(old.read_bytes())
    assert check(f"sqlite:///{old}")[0] == 0
    assert run_cli("copy", "--from", f"sqlite:///{old}", "--to", f"sqlite:///{new}").returncode == 0
    assert has_checksums(new.read_bytes())
    assert check(f"sqlite:///{new}") == check(f"sqlite:///{old}")
