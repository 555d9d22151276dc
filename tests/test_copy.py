"""``turnlog copy``, as people use it: whatever moves between stores answers there as it did before."""

from __future__ import annotations

import functools
import itertools
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest

from tests.copying import Contents, copied, counts
from tests.harness import V1, Server, create_conversation, message, run_cli, wait_for
from tests.history import log_problems
from tests.stores import KINDS, PostgresqlStores, SqliteStores, path_of, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.harness import Key
    from tests.postgres import Home
    from tests.stores import Stores


@pytest.fixture(scope="module")
def stores_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Stores]]:
    """Stores of each kind; a PostgreSQL server is started when the first is asked for."""
    made: dict[str, Stores] = {"sqlite": SqliteStores(lambda: tmp_path_factory.mktemp("store"))}
    clusters = []

    def give(kind: str) -> Stores:
        if kind not in made:
            home: Home = request.getfixturevalue("postgresql")
            clusters.append(home.cluster())
            made[kind] = PostgresqlStores(clusters[0])
        return made[kind]

    yield give
    for cluster in clusters:
        cluster.close()


PAIRS = list(itertools.product(KINDS, KINDS))
UNLIKE = [pair for pair in PAIRS if len(set(pair)) == 2]


@pytest.fixture
def kinds(request: pytest.FixtureRequest) -> tuple[str, str]:
    """The kinds of two stores."""
    asked = request.config.getoption("--store")
    if asked != "both" and asked not in request.param:
        pytest.skip(f"--store {asked}")
    one, other = request.param
    return one, other


of_every_pair = pytest.mark.parametrize("kinds", PAIRS, ids="-to-".join, indirect=True)
of_unlike_pairs = pytest.mark.parametrize("kinds", UNLIKE, ids="-to-".join, indirect=True)


@pytest.fixture
def target(kinds: tuple[str, str], stores_of: Callable[[str], Stores]) -> str:
    """A store of the second kind with nothing in it."""
    return stores_of(kinds[1]).new()


@pytest.fixture(scope="module")
def originals(stores_of: Callable[[str], Stores]) -> Callable[[str], tuple[str, Contents]]:
    """Of each kind, a store with something of everything, which stays as it is."""

    @functools.cache
    def give(kind: str) -> tuple[str, Contents]:
        url = stores_of(kind).new()
        with Server(url) as server:
            contents = Contents(server)
            assert server.stop() == 0
        return url, contents

    return give


@pytest.fixture
def original(kinds: tuple[str, str], originals: Callable[[str], tuple[str, Contents]]) -> tuple[str, Contents]:
    """The one of the first kind."""
    return originals(kinds[0])


@pytest.fixture
def original_file(originals: Callable[[str], tuple[str, Contents]]) -> str:
    """The one in a file."""
    return originals("sqlite")[0]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The URLs of two SQLite stores that are not there yet."""
    return f"sqlite:///{tmp_path / 'source.db'}", f"sqlite:///{tmp_path / 'target.db'}"


def checked(contents: Contents, url: str) -> None:
    """A server on ``url`` answers as the first one did, and goes on."""
    with Server(url) as server:
        contents.check(server)
        assert server.stop() == 0
    assert log_problems(url) == []


def record(url: str, key: Key, conversation: str, text: str) -> str:
    """One more message, through a server on the store; its id."""
    with Server(url) as server:
        with server.client(key) as client:
            answer = client.post(f"{V1}/conversations/{conversation}/messages", json=message(text))
            assert answer.status_code == 200, answer.text
        assert server.stop() == 0
    return str(answer.json()["id"])


# Everything moves.


@of_every_pair
def test_a_copy_answers_as_its_source_did_and_goes_on(original: tuple[str, Contents], target: str) -> None:
    source, contents = original
    summary = copied(source, target)
    assert (summary["accounts"], summary["present"], summary["behind"], summary["verified"]) == (2, 0, 0, "all")
    assert counts(summary) == {
        "messages": 2 * (3 * 13 + 3),
        "conversation changes": 2 * (3 * 3 + 1),
        "conversations": 2 * 4,
        "authentications": 2 * 3 * 3,
        "idempotency keys": 2 * 2,
        "API keys": 4,
        "webhooks": 0,
    }
    assert summary["copied"] == counts(summary)["messages"] + counts(summary)["conversation changes"]
    checked(contents, target)


@of_unlike_pairs
def test_there_and_back_again_with_what_was_recorded_there(
    original: tuple[str, Contents], target: str, files: tuple[str, str], stores_of: Callable[[str], Stores], kinds: Any
) -> None:
    """Into the first store itself, which takes only what is new, and into an empty one; both are then the same."""
    url, contents = original
    first, fresh = stores_of(kinds[0]).new(), files[0]
    there = copied(url, first)
    assert copied(first, target)["checks"] == there["checks"]
    conversation = contents.conversations["b"][1]
    one = record(target, contents.keys["b"], conversation, "recorded there")
    assert run_cli("keys", "create", "new", "--account", "c", "--store", target).returncode == 0
    back = copied(target, first)
    assert (back["copied"], back["present"]) == (1, there["copied"])
    assert counts(back)["API keys"] == 5
    again = copied(target, fresh)
    assert (again["copied"], again["present"]) == (there["copied"] + 1, 0)
    assert again["checks"] == back["checks"]
    with Server(first) as server, server.client(contents.keys["b"]) as client:
        found = client.get(f"{V1}/conversations/{conversation}/messages/{one}")
        assert found.json()["text"] == "recorded there"


@of_unlike_pairs
def test_what_takes_many_pages_is_copied_too(
    kinds: tuple[str, str], stores_of: Callable[[str], Stores], target: str
) -> None:
    """More characters of texts, of metadata and of changes than are read at a time."""
    source = stores_of(kinds[0]).new()
    metadata = {f"{n:0255}": "é" * 4096 for n in range(100)}
    with Server(source) as server:
        with server.client(server.create_key("tests")) as client:
            for number in range(12):
                one = create_conversation(client, f"c{number}", metadata=metadata)
                body = message(f"{number}\U0001f600" * 80_000)
                assert client.post(f"{V1}/conversations/{one}/messages", json=body).status_code == 200
        assert server.stop() == 0
    assert counts(copied(source, target))["messages"] == 12
    assert copied(source, target)["copied"] == 0
    assert rows(target, "SELECT sum(length(text)) FROM message") == rows(
        source, "SELECT sum(length(text)) FROM message"
    )


def test_a_file_that_is_copied_is_left_as_it_is(files: tuple[str, str]) -> None:
    """Byte for byte; also what a killed server has left in its log, which is in the copy all the same."""
    source, target = files
    path = path_of(source)
    with Server(source) as server:
        contents = Contents(server)
        server.kill()
    left = {one.name: one.read_bytes() for one in path.parent.iterdir() if not one.name.endswith("-shm")}
    assert left["source.db-wal"]
    copied(source, target)
    assert {name: (path.parent / name).read_bytes() for name in left} == left
    checked(contents, target)


def test_a_backup_is_copied_and_left_as_it_is(original_file: str, files: tuple[str, str]) -> None:
    """VACUUM INTO makes a file that is not in WAL mode."""
    rows(original_file, f"VACUUM INTO '{path_of(files[0])}'")
    before = path_of(files[0]).read_bytes()
    copied(*files)
    assert path_of(files[0]).read_bytes() == before


def test_a_store_with_nothing_but_a_key_is_copied_too(files: tuple[str, str]) -> None:
    source, target = files
    assert run_cli("keys", "create", "only", "--store", source).returncode == 0
    assert counts(copied(source, target))["API keys"] == 1
    assert "only" in run_cli("keys", "list", "--store", target).stdout


# While the source goes on, and again.


class Busy:
    """Somebody who goes on recording through a server, in a thread, until told to stop."""

    def __init__(self, server: Server) -> None:
        self.paths: list[str] = []
        self.count = 0
        self._server = server
        self._key = server.create_key("busy")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with self._server.client(self._key) as client:
            while not self._stop.is_set():
                number = self.count
                one = create_conversation(client, f"n{number}", agent={"externalId": "bob"})
                path = f"{V1}/conversations/{one}"
                keyed = {"idempotency-key": f"n{number}"}
                answer = client.post(f"{path}/messages", json=message(str(number)), headers=keyed)
                create_conversation(client, f"n{max(0, number - 3)}", agent={"externalId": str(number)})
                fact = {"customerExternalId": "jane", "auth": {"token": "t"}}
                assert client.post(f"{path}/authenticate", json=fact).status_code == 204
                self.paths += [path, f"{path}/messages/{answer.json()['id']}"]
                self.count += 1

    def read(self, server: Server) -> list[bytes]:
        """What a server answers to reads of all that was recorded."""
        with server.client(self._key) as client:
            answers = [client.get(path) for path in self.paths]
        assert {answer.status_code for answer in answers} == {200}
        return [answer.content for answer in answers]


@of_every_pair
def test_a_source_that_goes_on_recording_is_caught_up_with(
    kinds: tuple[str, str], stores_of: Callable[[str], Stores], target: str
) -> None:
    source = stores_of(kinds[0]).new()
    with Server(source) as server:
        busy = Busy(server)
        with busy:
            for _ in range(3):
                before = busy.count
                wait_for(lambda: busy.count > before)  # noqa: B023 - called at once
                copied(source, target)
        answers = busy.read(server)
        assert server.stop() == 0
    last = copied(source, target, "--verify", "new")
    assert (last["behind"], last["verified"]) == (0, "new")
    assert {kind: counts(last)[kind] for kind in ("conversations", "authentications", "idempotency keys")} == {
        "conversations": busy.count,
        "authentications": busy.count,
        "idempotency keys": busy.count,
    }
    assert copied(source, target)["copied"] == 0
    with Server(target) as server:
        assert busy.read(server) == answers
        assert server.stop() == 0
    assert log_problems(target) == []
