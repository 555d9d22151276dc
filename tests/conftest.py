"""One running server per kind of store for the tests that only talk to it; each test makes conversations of its own.

What depends on ``store_kind``, through whatever fixture, runs once for each kind; everything else runs once.
"""

from __future__ import annotations

import itertools
import signal
from typing import TYPE_CHECKING

import pytest

from tests.canary import canary
from tests.harness import Key, Server, complain
from tests.postgres import Home
from tests.postgres_programs import OLDEST, find
from tests.stores import KINDS, PostgresqlStores, SqliteStores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.postgres import Cluster
    from tests.stores import Stores


def pytest_configure() -> None:
    """Started in the background, a run ignores Ctrl-C, and so would every program that it starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--store`` narrows a run down to one kind of store."""
    parser.addoption("--store", choices=(*KINDS, "both"), default="both", help="the kind of store to test (both)")
    parser.addoption("--of-stores-only", action="store_true", help="leave out the tests that need no store")
    parser.addoption("--slice", metavar="K/N", default="1/1", help="every N-th file only, from the K-th on (1/1)")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A leak fails the run, whichever test it came of."""
    if canary.leaks:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was leaked."""
    for leak in canary.leaks:
        terminalreporter.write_line(f"LEAKED (L02): {leak}", red=True)


def _asked(config: pytest.Config) -> tuple[str, ...]:
    """The kinds that this run is for."""
    asked = config.getoption("--store")
    return KINDS if asked == "both" else (asked,)


def _marked(node: pytest.Item | pytest.Function) -> tuple[str, ...]:
    """The kinds that a test is for: every kind, unless a mark says that it can be about one only, and why."""
    for kind in KINDS:
        for mark in node.iter_markers(f"{kind}_only"):
            if len(mark.args) != 1 or mark.kwargs:
                raise pytest.UsageError(f"{node.nodeid}: {kind}_only needs a reason and nothing else")
            return (kind,)
    return KINDS


def _is_of_a_store(item: pytest.Item) -> bool:
    return "store_kind" in getattr(item, "fixturenames", ()) or len(_marked(item)) == 1


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test of a store once per kind that it is for."""
    if "store_kind" in metafunc.fixturenames:
        marked = _marked(metafunc.definition)
        kinds = [kind for kind in marked if kind in _asked(metafunc.config)] or marked
        metafunc.parametrize("store_kind", kinds, indirect=True, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is for kinds that were not asked for, or for none where that is asked for; then other slices."""
    asked = set(_asked(config))
    kept = [item for item in items if asked & set(_marked(item))]
    if config.getoption("--of-stores-only"):
        kept = [item for item in kept if _is_of_a_store(item)]
    first, count = (int(number) for number in config.getoption("--slice").split("/"))
    files = set(sorted({item.path for item in kept})[first - 1 :: count])
    kept = [item for item in kept if item.path in files]
    config.hook.pytest_deselected(items=list(set(items) - set(kept)))
    items[:] = kept


@pytest.fixture(scope="session")
def store_kind(request: pytest.FixtureRequest) -> str:
    """The kind of store under test."""
    return str(request.param)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Home]:
    """PostgreSQL as it is on this machine. Where there is none, a visible skip; a failure under ``CI=true``."""
    programs = find()
    if programs is None:
        complain(f"PostgreSQL {OLDEST} or newer is not installed; `make test` installs one")
    with Home(programs) as home:
        yield home


@pytest.fixture
def cluster(postgresql: Home) -> Iterator[Cluster]:
    """A PostgreSQL server of the test's own, to be killed, frozen and followed."""
    with postgresql.cluster() as one:
        yield one


@pytest.fixture(scope="session")
def stores(
    store_kind: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stores]:
    """Where stores of the kind under test come from. One that is shared by tests is not given back."""
    if store_kind == "sqlite":
        yield SqliteStores(lambda: tmp_path_factory.mktemp("store"))
        return
    home: Home = request.getfixturevalue("postgresql")
    with home.cluster() as shared:
        yield PostgresqlStores(shared)


@pytest.fixture
def new_store(stores: Stores) -> Iterator[Callable[[], str]]:
    """Gives URLs of fresh, empty stores of the kind under test; they go with the test."""
    given: list[str] = []

    def give() -> str:
        given.append(stores.new())
        return given[-1]

    yield give
    for url in given:
        stores.drop(url)


@pytest.fixture(scope="session")
def server(stores: Stores) -> Iterator[Server]:
    """A server with the settings that a person gets without saying anything."""
    with Server(stores.new()) as running:
        yield running
        with running.client() as anyone:
            canary.look(anyone.get("/metrics").text, "the metrics")


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
def start(new_store: Callable[[], str]) -> Iterator[Callable[..., Server]]:
    """Starts servers, all on one store of the test's own where no other is named; they end with the test."""
    started: list[Server] = []
    own: list[str] = []

    def start_one(*arguments: str, store: str | None = None, environment: dict[str, str] | None = None) -> Server:
        if store is None:
            own.extend([] if own else [new_store()])
            store = own[0]
        one = Server(store, *arguments, environment=environment)
        started.append(one)
        one.start()
        return one

    yield start_one
    for one in started:
        one.kill()
