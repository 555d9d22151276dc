"""D07: the file of a store goes away under its server. C11: or has two names."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from tests.harness import V1, Server, create_conversation, error_of, make_key, message, run_cli, wait_for
from tests.stores import path_of

if TYPE_CHECKING:
    from pathlib import Path

    import httpx

pytestmark = pytest.mark.sqlite_only("a database has no file of ours")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the store."""
    made = tmp_path / "store"
    made.mkdir()
    return made


def _post(client: httpx.Client, conversation: str) -> httpx.Response:
    return client.post(f"{V1}/conversations/{conversation}/messages", json=message("x"))


def test_a_store_whose_folder_goes_refuses_writes_and_goes_on_once_it_is_back(folder: Path) -> None:
    """D07: nothing is acknowledged that went into files without a name."""
    with Server(f"sqlite:///{folder / 'turnlog.db'}") as server, server.client(make_key(server.url, "one")) as client:
        conversation = create_conversation(client, "one")
        ids = [_post(client, conversation).json()["id"]]
        folder.rename(folder.with_name("elsewhere"))
        error_of(_post(client, conversation), "503-01")
        assert client.get("/readyz").status_code == 503
        folder.with_name("elsewhere").rename(folder)
        ids.append(_post(client, conversation).json()["id"])
        assert client.get("/readyz").status_code == 200
        listed = client.get(f"{V1}/conversations/{conversation}/messages").json()["items"]
        assert [item["messageId"] for item in listed] == ids


def test_a_store_that_has_gone_is_not_made_anew(folder: Path) -> None:
    """D07: a worker that is started again says what is missing, and serves once it is back."""
    with Server(f"sqlite:///{folder / 'turnlog.db'}") as server, server.client(make_key(server.url, "one")) as client:
        conversation = create_conversation(client, "one")
        folder.rename(folder.with_name("elsewhere"))
        folder.mkdir()
        os.kill(server.worker_pid, signal.SIGKILL)
        wait_for(lambda: any("there is no store at" in str(line.get("error")) for line in server.log))
        assert list(folder.iterdir()) == []
        folder.rmdir()
        folder.with_name("elsewhere").rename(folder)
        assert _post(client, conversation).status_code == 200


def test_a_second_name_of_the_file_gets_no_second_server(folder: Path) -> None:
    """C11."""
    with Server(f"sqlite:///{folder / 'turnlog.db'}") as server:
        other = folder / "other.db"
        other.hardlink_to(path_of(server.url))
        done = run_cli("serve", "--port", "0", "--store", f"sqlite:///{other}")
        assert done.returncode == 1
        assert "in use by another server" in done.stderr
