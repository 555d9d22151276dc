"""What a database, its roles and its URL may be: sessions are forced to be what a 200 needs, the rest is refused.

Nothing that is said of it has a password in it.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.harness import V1, Server, create_conversation, error_of, message, run_cli, wait_for
from tests.history import log_problems
from tests.postgres import PASSWORD
from tests.roles import ROLE_PASSWORD, make_role, script, user_of
from tests.stores import rows
from turnlog.store.connect import open_store
from turnlog.store.postgres import PostgresStore

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from tests.postgres import Cluster

pytestmark = pytest.mark.postgresql_only("settings and roles are PostgreSQL's")


def _database(url: str) -> str:
    return url.rpartition("/")[2]


def _check_silent(text: str, *passwords: str) -> None:
    """No password is in it, neither as it is nor as a URL has it; nor a part of one."""
    for password in (PASSWORD, ROLE_PASSWORD, *passwords):
        for form in (password, quote(password, safe=""), quote(password)):
            assert form not in text
            assert form[:6] not in text
            assert form[-6:] not in text


# P06: sessions that are what a 200 needs, whatever the database says.

STRANGE = {
    "synchronous_commit": ("off", "on"),
    "default_transaction_isolation": ("serializable", "read committed"),
    "statement_timeout": ("1", "0"),
    "lock_timeout": ("1", "2s"),
    "idle_in_transaction_session_timeout": ("1", "2s"),
    "idle_session_timeout": ("1", "0"),
    "search_path": ("nowhere", "pg_catalog"),
    "enable_indexscan": ("off", "off"),  # left alone: the control that the settings are in force at all
}


@pytest.mark.parametrize("whose", ["database", "role", "url"])
def test_sessions_are_as_a_200_needs_them(
    new_store: Callable[[], str], start: Callable[..., Server], whose: str
) -> None:
    """P06."""
    owner = new_store()
    assert run_cli("migrate", "--store", owner).returncode == 0
    url = make_role(owner)
    if whose == "url":
        options = " ".join(f"-c {name}={value}".replace(" committed", "") for name, (value, _) in STRANGE.items())
        url += f"?synchronous_commit=off&options={quote(options)}"
    else:
        target = f"DATABASE {_database(owner)}" if whose == "database" else f"ROLE {user_of(url)}"
        script(owner, "".join(f"ALTER {target} SET {name} = '{value}';" for name, (value, _) in STRANGE.items()))

    async def found() -> list[dict[str, str]]:
        store = await open_store(url, idempotency_ttl_us=1)
        assert isinstance(store, PostgresStore)
        sessions = []
        for connections in (store._recording, store._reading):
            async with connections.use(5) as connection:
                sessions.append({name: await connection.fetchval(f"SHOW {name}") for name in STRANGE})
        await store.close()
        return sessions

    recording, reading = asyncio.run(found())
    forced = {name: value for name, (_, value) in STRANGE.items()}
    assert recording == forced
    assert reading == forced | {"lock_timeout": reading["lock_timeout"]}
    assert reading["lock_timeout"] != "1ms"
    server = start(store=url)
    with server.client(server.create_key("tests")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        headers = {"idempotency-key": "k"}
        ids = {client.post(path, json=message(), headers=headers).json()["id"] for _ in range(3)}
        assert [item["messageId"] for item in client.get(path).json()["items"]] == list(ids)


def test_a_write_waits_for_the_standby_although_the_database_says_that_it_need_not(
    cluster: Cluster, start: Callable[..., Server]
) -> None:
    """P06: it is not acknowledged while the standby cannot confirm it."""
    url = cluster.create_database()
    name = _database(url)
    standby = cluster.standby()
    cluster.sql(f"ALTER DATABASE {name} SET synchronous_commit = 'off'")
    server = start(store=url, environment={"TURNLOG_WRITE_DEADLINE_S": "1.5"})
    with server.client(server.create_key("tests")) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        standby.freeze()
        cluster.sql("CREATE TABLE control ()", database=name, timeout_s=5)  # whose session does not wait
        headers = {"idempotency-key": "k"}
        error_of(client.post(path, json=message("once"), headers=headers), "503-02")
        assert client.get(path).json()["items"] == [], "what may still be lost is not shown"
        standby.thaw()
        wait_for(lambda: client.post(path, json=message("once"), headers=headers).status_code == 200)
        assert [item["text"] for item in client.get(path).json()["items"]] == ["once"]
    assert log_problems(url) == []


def test_a_commit_whose_wait_for_the_standby_is_cancelled_is_not_acknowledged(
    cluster: Cluster, start: Callable[..., Server]
) -> None:
    """PostgreSQL then says that it is committed, with a warning that the standby may not have it."""
    url = cluster.create_database()
    standby = cluster.standby()
    server = start(store=url, environment={"TURNLOG_WRITE_DEADLINE_S": "3"})
    waiting = "SELECT pid FROM pg_stat_activity WHERE application_name = 'turnlog' AND wait_event = 'SyncRep'"
    with server.client(server.create_key("tests")) as client, ThreadPoolExecutor(1) as pool:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        for headers in ({}, {"idempotency-key": "k"}):
            standby.freeze()
            answer = pool.submit(client.post, path, json=message("once"), headers=headers)
            wait_for(lambda: cluster.sql(waiting))
            assert cluster.sql(f"SELECT pg_cancel_backend(pid) FROM ({waiting}) AS w") == [(True,)]  # noqa: S608
            error_of(answer.result(), "503-02")
            standby.thaw()
            wait_for(lambda: not cluster.sql(waiting))
        assert client.post(path, json=message("once"), headers={"idempotency-key": "k"}).status_code == 200
        assert [item["text"] for item in client.get(path).json()["items"]] == ["once"] * 2
    assert log_problems(url) == []


def test_a_server_without_fsync_is_not_written_to(cluster: Cluster, start: Callable[..., Server]) -> None:
    """P06: at the start and when it is switched off; on again, it is used again."""
    url = cluster.create_database()
    with Server(url) as first:
        key = first.create_key("tests")
    cluster.configure(fsync="off")
    server = start(store=url)
    with server.client(key) as client:
        error_of(client.get("/readyz"), "503-01")
        error_of(client.post(f"{V1}/conversations", json={"externalId": "c"} | _customer()), "503-01")
        cluster.configure(fsync="on")
        wait_for(lambda: client.get("/readyz").status_code == 200)
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        assert client.post(path, json=message("safe")).status_code == 200
        cluster.configure(fsync="off")
        wait_for(lambda: client.get("/readyz").status_code == 503)
        error_of(client.post(path, json=message("unsafe")), "503-01")
        assert [item["text"] for item in client.get(path).json()["items"]] == ["safe"]
        cluster.configure(fsync="on")
        wait_for(lambda: client.post(path, json=message("safe again")).status_code == 200)
        assert client.get("/readyz").status_code == 200
    assert any(line["event"] == "store_unsafe" for line in server.log)


def _customer() -> dict[str, object]:
    return {"customer": {"externalId": "jane"}, "timestamp": "2021-11-23T12:13:14.555Z"}


# Roles.


def test_a_role_that_may_only_read_and_write_the_tables_is_enough(
    new_store: Callable[[], str], start: Callable[..., Server]
) -> None:
    """Every operation, keys too; its password, which a URL has to quote, is in nothing that is said."""
    owner = new_store()
    assert run_cli("migrate", "--store", owner).returncode == 0
    clerk = make_role(owner)
    server = start(store=clerk)
    key = server.create_key("tests")
    with server.client(key) as client:
        conversation_id = create_conversation(client, "c")
        one = f"{V1}/conversations/{conversation_id}"
        assert create_conversation(client, "c", agent={"externalId": "bob"}) == conversation_id
        sent = client.post(f"{one}/messages", json=message(), headers={"idempotency-key": "k"}).json()["id"]
        assert client.post(f"{one}/messages/batch", json={"messages": [message()] * 3}).status_code == 200
        fact = {"customerExternalId": "jane", "auth": {"token": "t"}}
        assert client.post(f"{one}/authenticate", json=fact).status_code == 204
        for path in (one, f"{one}/messages", f"{one}/messages/{sent}", f"{V1}/conversations?externalId=c"):
            assert client.get(path).status_code == 200, path
        for path in ("/readyz", "/metrics", "/v1/health"):
            assert client.get(path).status_code == 200, path
    said = [server.log_lines]
    for command in (
        ("keys", "list"),
        ("keys", "rotate", key.id),
        ("keys", "revoke", key.id),
        ("config",),
        ("migrate",),
    ):
        done = run_cli(*command, TURNLOG_STORE=clerk)
        assert done.returncode == 0, done.stderr
        said.append([done.stdout, done.stderr])
    _check_silent("\n".join(line for lines in said for line in lines))
    assert server.stop() == 0


def test_a_database_that_is_replaced_under_a_running_server(cluster: Cluster, start: Callable[..., Server]) -> None:
    """Nothing that was learned of the old one is taken for true of the new one: neither keys nor whose is what."""
    url = cluster.create_database()
    server = start(store=url)
    names = ("first", "second")
    old = {name: server.create_key(name, "--account", name) for name in names}
    for name in names:
        with server.client(old[name]) as client:
            assert client.post(f"{V1}/conversations", json={"externalId": "c", "id": "C"} | _customer()).is_success
    cluster.drop_database(url)
    cluster.sql(f"CREATE DATABASE {_database(url)}")
    with server.client() as anybody:
        wait_for(lambda: anybody.get("/readyz").status_code == 200)
    new = {name: server.create_key(name, "--account", name) for name in reversed(names)}
    with server.client(new["first"]) as first, server.client(new["second"]) as second:
        path = f"{V1}/conversations/C/messages"
        assert second.post(f"{V1}/conversations", json={"externalId": "c", "id": "C"} | _customer()).is_success
        assert second.post(path, json=message("of the second")).status_code == 200
        error_of(first.get(path), "404-01")
        error_of(first.post(path, json=message("of the first")), "404-01")
        assert first.get("/v1/health", headers=old["first"].headers).status_code == 401


# What cannot be, at the start.


def _serve(url: str) -> subprocess.CompletedProcess[str]:
    return run_cli("serve", "--port", "0", "--store", url)


def _refusal(url: str) -> str:
    """The one line with which a start is refused."""
    done = _serve(url)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert line.startswith("turnlog: "), done.stderr
    _check_silent(done.stdout + done.stderr)
    return line


def _with_encoding(cluster: Cluster, encoding: str) -> str:
    name = f"encoded_{encoding.lower()}"
    cluster.sql(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    return cluster.url(name)


def test_what_cannot_be_used_is_refused_at_the_start(cluster: Cluster) -> None:
    """U02; each in one line that says what is wrong."""
    empty, store = cluster.create_database(), cluster.create_database()
    assert run_cli("migrate", "--store", store).returncode == 0
    line = _refusal(store.replace(quote(PASSWORD, safe=""), "guess"))
    assert "password authentication failed" in line
    assert "guess" not in line
    assert '"nowhere" does not exist' in _refusal(cluster.url("nowhere"))
    for encoding in ("LATIN1", "SQL_ASCII"):
        assert f"encoding {encoding}, and UTF8 is needed" in _refusal(_with_encoding(cluster, encoding))
    assert "permission denied for database" in _refusal(make_role(empty, serve=False))
    nobody = make_role(store, serve=False)
    assert "permission denied for schema turnlog" in _refusal(nobody)
    script(store, f"GRANT USAGE ON SCHEMA turnlog TO {user_of(nobody)}")
    assert "permission denied for table" in _refusal(nobody)
    script(store, f"ALTER ROLE {user_of(nobody)} NOLOGIN")
    assert "is not permitted to log in" in _refusal(nobody)
    script(empty, "CREATE SCHEMA turnlog; CREATE TABLE turnlog.notes (text text)")
    assert "a schema named turnlog that is not a store" in _refusal(empty)
    assert rows(empty, "SELECT tablename FROM pg_tables WHERE schemaname = 'turnlog'") == [("notes",)]
    rows(store, "UPDATE schema_version SET version = 99, oldest_program = 99")
    assert "has schema 99, and this program knows schemas up to" in _refusal(store)


@pytest.mark.parametrize(
    ("secret", "url"),
    [
        ("se/cret", "postgresql://u:se/cret@127.0.0.1/db"),
        ("se?cret", "postgresql://u:se?cret@127.0.0.1/db"),
        ("se?x=cret", "postgresql://u:se?x=cret@127.0.0.1/db"),
        ("se#cret", "postgresql://u:se#cret@127.0.0.1/db"),
        ("sec@r/et", "postgresql://u:sec@r/et@127.0.0.1/db"),
        ("secret", "postgresql://u:secret@127.0.0.1:port/db"),
        ("secret", "postgresql://u:secret@127.0.0.1/db?sslmode=nonsense"),
        ("secret", "postgresql://127.0.0.1/db?user=u&password=secret&sslmode=nonsense"),
        ("secret", "postgresql://u:secret@127.0.0.1/db?connect_timeout=nan"),
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(secret: str, url: str) -> None:
    """As it is written by who does not know that a password has to be quoted."""
    line = _refusal(url)
    for part in (secret, *secret.split("/"), *secret.split("?"), *secret.split("#")):
        assert f":{part}" not in line
        assert "cret" not in line


def test_an_older_program_works_with_a_newer_schema_that_says_so(start: Callable[..., Server]) -> None:
    """Nodes are replaced one by one: the last old one goes on, and can be started again; until it may not."""
    server = start()
    key = server.create_key("tests")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        rows(server.url, "UPDATE schema_version SET version = 99, oldest_program = 1")
        ended = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'turnlog'"
        rows(server.url, f"{ended} AND datname = current_database()")
        wait_for(lambda: client.post(path, json=message("goes on")).status_code == 200)
        assert client.get("/readyz").status_code == 200
    assert server.stop() == 0
    server.start()
    with server.client(key) as client:
        assert client.post(path, json=message("started again")).status_code == 200
        assert [item["text"] for item in client.get(path).json()["items"]] == ["goes on", "started again"]
    assert rows(server.url, "SELECT version, oldest_program FROM schema_version") == [(99, 1)]
    rows(server.url, "UPDATE schema_version SET oldest_program = 99")
    rows(server.url, f"{ended} AND datname = current_database()")
    assert server.wait() == 1
    assert "has schema 99" in "\n".join(server.log_lines)
    _check_silent("\n".join(server.log_lines))
