"""D09, D11: what is read is what was written, or nobody is told that it is: a bit turned over is noticed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import subprocess
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.damage import PER_BATCH, fill, place_of, turn_over
from tests.harness import V1, Server, create_conversation, error_of, message, need, run_cli, wait_for
from tests.stores import path_of
from turnlog.errors import SettingError
from turnlog.store.connect import check_store, open_store
from turnlog.store.sqlite.pages import pages_in_wal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.damage import Filled

pytestmark = pytest.mark.sqlite_only("a database has checksums of its own")

OFTEN = {"TURNLOG_INTEGRITY_INTERVAL_S": "0.2"}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """A store that is only copied."""
    return fill(f"sqlite:///{tmp_path_factory.mktemp('filled') / 'turnlog.db'}")


@pytest.fixture
def filled(original: Filled, tmp_path: Path) -> Filled:
    """A store of the test's own."""
    path = tmp_path / "turnlog.db"
    shutil.copy(original.path, path)
    return original._replace(url=f"sqlite:///{path}")


def damage(filled: Filled, number: int) -> int:
    """Turn a bit over inside the text of a message; the number of its page."""
    return turn_over(filled.path, place_of(filled.path, filled.texts[number]))


def refused_start(filled: Filled) -> str:
    done = run_cli("serve", "--port", "0", "--store", filled.url)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


def rounds(client: httpx.Client) -> int:
    return int(float(client.get("/metrics").text.partition("\nturnlog_integrity_rounds ")[2].partition("\n")[0]))


def stopped_for_damage(server: Server, problem: str) -> None:
    """The server says what it found, records nothing more, and ends."""
    wait_for(lambda: any(line["event"] == "store_failed" for line in server.log))
    (failed,) = [line for line in server.log if line["event"] == "store_failed"]
    assert failed["level"] == "error"
    assert problem in failed["error"]
    assert server.wait() == 1
    assert any(
        line.startswith("turnlog: ") and problem in line and "turnlog restore" in line for line in server.log_lines
    )


def test_a_start_refuses_a_turned_bit_in_a_text(filled: Filled) -> None:
    """D11, and the line says what there is to do."""
    page = damage(filled, 500)
    line = refused_start(filled)
    assert f"the store {filled.path} is damaged: what is in page {page} " in line
    assert "`turnlog check`" in line
    assert "`turnlog restore`" in line


def test_the_scheduled_check_finds_a_turned_bit_in_a_text_and_recording_stops(
    filled: Filled, start: Callable[..., Server]
) -> None:
    """D11: nobody has read the page; what is in memory would still be good."""
    server = start(store=filled.url, environment=OFTEN)
    with server.client(filled.key) as client:
        wait_for(lambda: rounds(client) >= 1)
        page = damage(filled, 500)
        stopped_for_damage(server, f"page {page} ")
    assert f"page {page} " in refused_start(filled)


def test_the_scheduled_check_finds_nothing_beside_recording_and_checkpoints(start: Callable[..., Server]) -> None:
    """A page in the middle of being written is not damage: several times the file goes through the WAL."""
    server = start(environment=OFTEN | {"TURNLOG_INTEGRITY_INTERVAL_S": "0.01"})
    with server.client(server.create_key("busy")) as client:
        conversation = create_conversation(client, "busy")
        bodies = {"messages": [message("y" * 4000) for _ in range(PER_BATCH)]}
        for _ in range(40):
            answer = client.post(f"{V1}/conversations/{conversation}/messages/batch", json=bodies)
            assert answer.status_code == 200
        assert rounds(client) >= 1
    assert server.stop() == 0


@pytest.mark.parametrize(("shown", "number"), [("whole", 500), ("page", 50), ("message", 500)])
def test_what_is_damaged_is_never_answered(
    filled: Filled, start: Callable[..., Server], shown: str, number: int
) -> None:
    """D09, D11: a listing that is being sent breaks off without its proper end; all else is a 503, no short list."""
    server = start(store=filled.url)
    with server.client(filled.key) as client:
        wait_for(lambda: rounds(client) == 1)
        damage(filled, number)
        path = f"{V1}/conversations/{filled.conversation}/messages"
        if shown == "whole":
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                client.get(path)
        elif shown == "page":
            error_of(client.get(path, params={"limit": 99}), "503-01")
        else:
            error_of(client.get(f"{path}/{filled.ids[number]}"), "503-01")
        stopped_for_damage(server, "not what was written")
    assert "is damaged" in refused_start(filled)


def test_a_read_error_is_a_503_and_passes_by(filled: Filled, start: Callable[..., Server]) -> None:
    """D09: reading fails with EIO for a while; no list is short, and afterwards everything is there."""
    server = start(store=filled.url)
    with server.client(filled.key) as client:
        wait_for(lambda: rounds(client) == 1)
        path = f"{V1}/conversations/{filled.conversation}/messages"
        options = ("-e", "trace=pread64", "-e", "inject=pread64:error=EIO", "-P", str(filled.path))
        command = [need("strace"), "-f", "-q", "-o", "/dev/null", *options, "-p", str(server.worker_pid)]
        others = iter(filled.ids[500:])  # what has been read once is in memory
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracer:
            try:
                wait_for(lambda: client.get(f"{path}/{next(others)}").status_code == 503)
                error_of(client.get(path, params={"limit": 99}), "503-01")
            finally:
                tracer.terminate()
        assert client.get("/readyz").status_code == 200
        assert [item["text"] for item in client.get(path).json()["items"]] == filled.texts
    assert server.stop() == 0


def test_a_mark_that_proves_wrong_is_taken_away_by_a_check(filled: Filled, start: Callable[..., Server]) -> None:
    """Where the memory was at fault and not the disk: the bit is as it should be again."""
    place = place_of(filled.path, filled.texts[500])
    server = start(store=filled.url, environment=OFTEN)
    with server.client(filled.key) as client:
        wait_for(lambda: rounds(client) >= 1)
        page = turn_over(filled.path, place)
        stopped_for_damage(server, f"page {page} ")
    turn_over(filled.path, place)
    assert f"page {page} " in refused_start(filled)
    assert run_cli("check", "--store", filled.url).returncode == 0
    start(store=filled.url)


def test_the_mark_is_the_damaged_files_and_no_others(filled: Filled, original: Filled) -> None:
    """A good file in its place is served."""
    damage(filled, 500)

    async def read_it() -> None:
        store = await open_store(filled.url, idempotency_ttl_us=1)
        await store.close()

    with pytest.raises(SettingError, match="is damaged"):
        asyncio.run(read_it())
    filled.path.with_name("turnlog.db.damaged").write_text(f'{{"inode":{filled.path.stat().st_ino},"problem":"it"}}')
    filled.path.unlink()
    shutil.copy(original.path, filled.path.with_name("elsewhere"))
    filled.path.with_name("elsewhere").rename(filled.path)
    asyncio.run(read_it())


def test_half_a_page_that_the_wal_has_whole_is_no_damage(tmp_path: Path, start: Callable[..., Server]) -> None:
    """D03, D11: what a power cut in a checkpoint leaves is put right by the next one, and is no reason not to start."""
    url = f"sqlite:///{tmp_path / 'turnlog.db'}"
    torn = tmp_path / "torn" / "turnlog.db"
    torn.parent.mkdir()
    fill(url, 1)
    server = start(store=url)
    with server.client(server.create_key("more")) as client:
        conversation = create_conversation(client, "more")
        for number in range(50):
            path = f"{V1}/conversations/{conversation}/messages"
            assert client.post(path, json=message(f"{number} " + "z" * 500)).status_code == 200
        for ending in ("", "-wal"):
            shutil.copy(f"{path_of(url)}{ending}", f"{torn}{ending}")
    server.kill()
    rewritten = [page for page in pages_in_wal(torn) if page * 2048 <= torn.stat().st_size]
    assert rewritten
    with torn.open("r+b") as file:
        for page in rewritten:
            file.seek((page - 1) * 2048 + 700)
            file.write(b"torn")
    assert asyncio.run(check_store(f"sqlite:///{torn}")).problems == []
    with start(store=f"sqlite:///{torn}").client() as client:
        assert client.get("/readyz").status_code == 200


def test_any_bit_turned_over_is_found(filled: Filled) -> None:
    """D11: in the header, in the trees, in texts, in what is free."""
    chance = random.Random(11)  # noqa: S311 - a repeatable choice, not a secret
    size = filled.path.stat().st_size
    places = [*range(17, 21), *(chance.randrange(size) for _ in range(8))]
    for place in places:
        bit = chance.randrange(8)
        turn_over(filled.path, place, bit)
        with contextlib.suppress(SettingError):  # it does not even pass for a store
            assert asyncio.run(check_store(filled.url)).problems, (place, bit)
        turn_over(filled.path, place, bit)
    assert asyncio.run(check_store(filled.url)).problems == []
