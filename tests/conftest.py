"""One running server for the tests that only talk to it; each test makes conversations of its own."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest

from tests.harness import Key, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the settings that a person gets without saying anything."""
    with Server(tmp_path_factory.mktemp("store") / "turnlog.db") as running:
        yield running


@pytest.fixture(scope="session")
def key(server: Server) -> Key:
    """A key of the account ``default`` with the default permissions."""
    return server.create_key("tests")


@pytest.fixture(scope="session")
def client(server: Server, key: Key) -> Iterator[httpx.Client]:
    """A client with that key."""
    with server.client(key) as client:
        yield client


_numbers = itertools.count(1)


@pytest.fixture
def external_id() -> str:
    """An external id that no other test uses."""
    return f"conversation-{next(_numbers)}"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers on a store of the test's own; they end with it."""
    started: list[Server] = []

    def start_one(
        *arguments: str, store: Path = tmp_path / "turnlog.db", environment: dict[str, str] | None = None
    ) -> Server:
        one = Server(store, *arguments, environment=environment)
        started.append(one)
        one.start()
        return one

    yield start_one
    for one in started:
        one.kill()
