"""How each contestant comes to run, and to the requests that it is asked."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import apsw
import httpx

from bench import requests, seed, servers

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Sequence
    from pathlib import Path

    from bench.servers import Database, Server

TEXTBOOK = (sys.executable, "-m", "bench.textbook")
HEALTH = "/v1/health"
_PERMISSIONS = (
    "--permission=conversations:write",
    "--permission=messages:write",
    "--permission=read",
    "--permission=feed",
)
_COUNTS = {"textbook": "message", "sqlite": "message", "postgresql": "turnlog.message"}


class Store(NamedTuple):
    """``base_bytes``: what a database takes that has nothing in it."""

    url: str
    base_bytes: int = 0


class Runner(NamedTuple):
    """A server in the run, and the folder with its requests. ``headers`` lets one in."""

    name: str
    server: Server
    folder: Path
    headers: dict[str, str]
    store: Store | None = None

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.server.base, headers=self.headers, timeout=60)


class Grounds:
    """Where a run takes place: a folder, a PostgreSQL server if one is needed, and what is to end with it."""

    def __init__(self, folder: Path, database: Database | None, running: contextlib.ExitStack) -> None:
        self.folder = folder
        self.database = database
        self._running = running

    def new_store(self, name: str) -> Store:
        """A place for a store of the kind that the name says."""
        if "sqlite" in name:
            return Store(f"sqlite:///{self.folder / name}.db")
        assert self.database is not None  # noqa: S101 - who starts these gives one
        url = self.database.new()
        (size,) = self.database.ask(url, "SELECT pg_database_size(current_database())")
        return Store(url, size)

    def start_empty(self) -> Runner:
        """The empty callable."""
        folder = self._files("empty", {"empty": requests.empty()})
        return Runner("empty", self._running.enter_context(servers.running(servers.EMPTY)), folder, {})

    def start_textbook(self, name: str) -> Runner:
        """The textbook service on a new store."""
        store = self.new_store(name)
        headers = _headers([*TEXTBOOK, "create-key", store.url])
        server = self._running.enter_context(servers.running([*TEXTBOOK, "serve", store.url], HEALTH, headers))
        runner = Runner(name, server, self.folder / name, headers, store)
        with runner.client() as client:
            conversations = requests.create(client, requests.CONVERSATIONS, "call", requests.LISTED)
        self._files(name, requests.prepare(headers, conversations, []))
        return runner

    def start_turnlog(self, name: str, *options: str) -> Runner:
        """Turnlog on a new store."""
        store = self.new_store(name)
        runner = self._serve(name, store, _turnlog_key(store), *options)
        with runner.client() as client:
            conversations = requests.create(client, requests.CONVERSATIONS, "call", requests.LISTED)
            long = requests.create(client, requests.LONG_CONVERSATIONS, "long", requests.LONG)
        self._files(name, requests.prepare(runner.headers, conversations, long))
        return runner

    def start_stored(self, name: str, messages: int) -> Runner:
        """Turnlog on a store with so many messages; its requests are about conversations from all over it."""
        store = self.new_store(name)
        headers = _turnlog_key(store)
        there = seed.seed(self.folder / f"{name}.db", messages)
        runner = self._serve(name, store, headers)
        with runner.client() as client:
            numbers = random.Random(1).sample(range(1, there.conversations + 1), requests.CONVERSATIONS)  # noqa: S311
            conversations = requests.known(client, map(seed.conversation_id, numbers))
            pages = requests.cursors(client, there.long_id)
        random.Random(1).shuffle(pages)  # noqa: S311
        files = requests.prepare(headers, conversations, [])
        files["page100"] = requests.request_file((("GET", path, None) for path in pages), headers)
        self._files(name, files)
        return runner

    def start_again(self, runner: Runner) -> Runner:
        """Turnlog on the store of one that has ended."""
        assert runner.store is not None  # noqa: S101 - Turnlog has one
        return self._serve(runner.name, runner.store, runner.headers)

    def _serve(self, name: str, store: Store, headers: dict[str, str], *options: str) -> Runner:
        command = [servers.TURNLOG, "serve", "--port", "0", "--store", store.url, *options]
        server = self._running.enter_context(servers.running(command, HEALTH, headers))
        return Runner(name, server, self.folder / name, headers, store)

    def _files(self, name: str, files: dict[str, bytes]) -> Path:
        folder = self.folder / name
        folder.mkdir()
        for file, content in files.items():
            (folder / file).write_bytes(content)
        return folder

    def stored(self, runner: Runner) -> tuple[int, float] | None:
        """How many messages a store has, and the bytes of the whole store by message. The server has ended."""
        if runner.store is None:
            return None
        count = f"SELECT count(*) FROM {_COUNTS[runner.name.partition('-')[0]]}"  # noqa: S608
        if runner.store.url.startswith("sqlite"):
            path = self.folder / f"{runner.name}.db"
            connection = apsw.Connection(str(path))
            (messages,) = connection.execute(count).fetchone() or (0,)
            connection.close()  # the last one out puts what the log holds into the file
            size = path.stat().st_size
        else:
            assert self.database is not None  # noqa: S101 - it has made the store
            (messages,) = self.database.ask(runner.store.url, count)
            (size,) = self.database.ask(runner.store.url, "SELECT pg_database_size(current_database())")
        return messages, (size - runner.store.base_bytes) / messages


def _headers(command: Sequence[str]) -> dict[str, str]:
    made = subprocess.run(command, env=servers.ENVIRONMENT, capture_output=True, text=True, check=False)
    if made.returncode:
        raise SystemExit(made.stderr)
    key = json.loads(made.stdout)
    return {"asapp-api-id": key["id"], "asapp-api-secret": key["secret"]}


def _turnlog_key(store: Store) -> dict[str, str]:
    """A key in a store that is made for it."""
    return _headers([servers.TURNLOG, "keys", "create", "bench", "--json", "--store", store.url, *_PERMISSIONS])
