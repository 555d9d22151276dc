"""Other programs may look into the file while a server runs on it, as a backup does: nothing acknowledged is lost."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.harness import V1, Server, create_conversation, message
from tests.stores import path_of

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.sqlite_only("only SQLite's store is a file that others may open")

# With Python's own SQLite, which may be an old one: when it closes the last connection that it knows of, it removes
# the WAL. The server's locks on the file are what tells it that there is another.
VISIT = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); print(c.execute(sys.argv[2]).fetchall()); c.close()"


@pytest.mark.parametrize("arguments", [(), ("--first-key",)], ids=["plain", "first-key"])
@pytest.mark.parametrize("again", [False, True], ids=["new-store", "restarted"])
def test_a_visitor_leaves_the_wal_where_it_is(
    start: Callable[..., Server], *, arguments: tuple[str, ...], again: bool
) -> None:
    """Recorded after the visit, killed, started again: the message is there."""
    server = start(*arguments)
    if again:
        server.stop()
        server.start()
    key = server.create_key("visited")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'visited')}/messages"
        visit = [sys.executable, "-c", VISIT, str(path_of(server.url)), "SELECT count(*) FROM message"]
        assert subprocess.run(visit, check=True, capture_output=True, text=True).stdout == "[(0,)]\n"
        client.post(path, json=message("after the visit")).raise_for_status()
    assert "(deleted)" not in " ".join(_open_files(server.worker_pid))
    server.kill()
    server.start()
    with server.client(key) as client:
        assert [item["text"] for item in client.get(path).json()["items"]] == ["after the visit"]


@pytest.mark.skipif(not Path("/proc/locks").exists(), reason="needs Linux")
def test_a_server_holds_its_lock_on_the_database(start: Callable[..., Server]) -> None:
    """A shared lock on the file itself, which SQLite keeps for as long as a connection in WAL mode is open."""
    server = start("--first-key")
    inode = path_of(server.url).stat().st_ino
    locks = Path("/proc/locks").read_text("utf-8")
    assert re.search(rf"POSIX\s+ADVISORY\s+READ\s+{server.worker_pid}\s+\S+:{inode}\s", locks), locks


def _open_files(pid: int) -> list[str]:
    return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
