"""Where a driver works: servers of the program as it is installed, or of one with a bug, each on a store of its own."""

from __future__ import annotations

import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tests.harness import REPOSITORY, TURNLOG, Server
from tests.postgres import Home
from tests.postgres_programs import find
from tests.stores import SqliteStores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.postgres import Cluster


class Site:
    """Starts servers on stores of one kind; they end with it. ``bug`` is one of bugs.py, empty for none.

    ``cluster`` is there for PostgreSQL, and a driver may do to it whatever it likes as long as it runs in the end.
    """

    def __init__(self, store: str, new_store: Callable[[], str], cluster: Cluster | None = None, bug: str = "") -> None:
        self.store = store
        self.cluster = cluster
        self._new_store = new_store
        self.bug = bug
        self._started: list[Server] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._started:
            server.kill()

    def with_bug(self, bug: str) -> Site:
        """The same place for the program with a bug."""
        return Site(self.store, self._new_store, self.cluster, bug)

    def start(self, *arguments: str, **environment: str) -> Server:
        """A server on a store of its own. It starts the same program again where a driver starts it again."""
        if self.bug:
            environment["PYTHONPATH"] = str(REPOSITORY)
        server = Server(self._new_store(), *arguments, environment=environment)
        server.command = (sys.executable, "-m", "tests.faults.bugs", self.bug) if self.bug else (TURNLOG,)
        self._started.append(server)
        server.start()
        return server


@contextmanager
def new_site(store: str) -> Iterator[Site]:
    """A site outside of the suite. Raises SystemExit where this machine has no PostgreSQL."""
    with ExitStack() as stack:
        if store == "sqlite":
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="turnlog-faults-")))
            stores = SqliteStores(lambda: Path(tempfile.mkdtemp(dir=folder)))
            yield stack.enter_context(Site(store, stores.new))
            return
        programs = find()
        if programs is None:
            raise SystemExit("PostgreSQL is not installed; `make test` installs one")
        cluster = stack.enter_context(Home(programs)).cluster()
        yield stack.enter_context(Site(store, cluster.create_database, cluster))
