"""``turnlog copy`` that is killed, interrupted or cut off: half a copy is not served, and the next run goes on."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from typing import TYPE_CHECKING

import apsw
import asyncpg
import pytest

from tests.copying import copied, copy, refusal
from tests.harness import TURNLOG, clean_environment, run_cli, wait_for
from tests.history import log_problems
from tests.importing import json_lines, row
from tests.stores import rows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.postgres import Cluster

MESSAGES = 40_000
CONVERSATIONS = 4_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that takes a while to copy."""
    url = f"sqlite:///{tmp_path_factory.mktemp('big') / 'turnlog.db'}"
    assert run_cli("keys", "create", "tests", "--store", url).returncode == 0
    transcript = json_lines(*(row(f"{n}", f"c{n % CONVERSATIONS}") for n in range(MESSAGES)))
    assert run_cli("import", "-", "--store", url, text=transcript).returncode == 0
    return url


def started(source: str, target: str) -> subprocess.Popen[str]:
    command = [TURNLOG, "copy", "--from", source, "--to", target]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_environment())


def arrived(url: str) -> int:
    """How many messages are in the store, if it is there yet."""
    try:
        ((count,),) = rows(url, "SELECT count(*) FROM message")
    except (apsw.Error, asyncpg.PostgresError, OSError):
        return 0
    return int(count)


def stop_at(messages: int, running: subprocess.Popen[str], target: str, number: int) -> None:
    """Send the signal once so many messages have arrived; a copy that was faster has ended."""
    wait_for(lambda: running.poll() is not None or arrived(target) >= messages, timeout_s=60)
    running.send_signal(number)


def whole(source: str, target: str) -> int:
    """Copy to the end; how many entries were there before."""
    summary = copied(source, target)
    assert summary["copied"] + summary["present"] == MESSAGES + CONVERSATIONS
    assert log_problems(target) == []
    return int(summary["present"])


def test_killed_again_and_again_it_goes_on_where_it_was(source: str, new_store: Callable[[], str]) -> None:
    target = new_store()
    for messages in (1, 5_000, 15_000, 30_000, MESSAGES):
        with started(source, target) as running:
            stop_at(messages, running, target, signal.SIGKILL)
        assert log_problems(target) == []
    assert whole(source, target) >= 30_000


def test_killed_on_the_way_back(source: str, cluster: Cluster, tmp_path: Path) -> None:
    between, target = cluster.create_database(), f"sqlite:///{tmp_path / 'turnlog.db'}"
    whole(source, between)
    for messages in (1, 20_000):
        with started(between, target) as running:
            stop_at(messages, running, target, signal.SIGKILL)
    assert whole(between, target) > 0


def test_half_a_copy_is_not_served_before_it_is_whole(source: str, new_store: Callable[[], str]) -> None:
    target = new_store()
    with started(source, target) as running:
        stop_at(1, running, target, signal.SIGKILL)
    assert rows(target, "SELECT source FROM copying") == [(source,)]
    for command in (("serve", "--port", "0"), ("keys", "list"), ("keys", "create", "x"), ("import", os.devnull)):
        line = refusal(run_cli(*command, "--store", target))
        assert f"was not finished: run `turnlog copy --from {source} --to …` again" in line, command
    assert "was not finished" in refusal(copy(target, f"{source}.copy"))
    assert run_cli("migrate", "--store", target).returncode == 0
    assert whole(source, target) > 0
    assert run_cli("keys", "list", "--store", target).stdout == run_cli("keys", "list", "--store", source).stdout


def test_interrupted_it_says_that_it_goes_on(source: str, new_store: Callable[[], str]) -> None:
    target = new_store()
    with started(source, target) as running:
        stop_at(1, running, target, signal.SIGINT)
        out, err = running.communicate()
    assert (running.returncode, err.strip()) == (130, "turnlog: interrupted")
    assert "Stopped before the end. What is copied stays copied: run it again for the rest." in out
    assert whole(source, target) > 0


def test_what_an_unfinished_run_copied_is_verified_whatever_is_asked_for(
    source: str, new_store: Callable[[], str]
) -> None:
    target = new_store()
    with started(source, target) as running:
        stop_at(10_000, running, target, signal.SIGKILL)
    rows(target, "UPDATE message SET text = 'another' WHERE id = (SELECT min(id) FROM message)")
    done = copy(source, target, "--verify", "new", "--json")
    assert "differs in text" in refusal(done)
    assert json.loads(done.stdout)["verified"] == "all"


def test_a_database_that_goes_down_is_told_and_the_next_run_goes_on(source: str, cluster: Cluster) -> None:
    target = cluster.create_database()
    with started(source, target) as running:
        wait_for(lambda: arrived(target) > 0, timeout_s=60)
        cluster.kill()
        out, err = running.communicate()
    assert (running.returncode, out) == (1, "")
    (line,) = [line for line in err.splitlines() if line.startswith("turnlog: ")]
    assert line.startswith("turnlog: the copy stopped: ")
    assert line.endswith("What is copied stays copied: run it again for the rest.")
    cluster.start()
    assert whole(source, target) > 0


def test_on_a_terminal_a_bar_shows_how_far_it_is(source: str, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [TURNLOG, "copy", "--from", source, "--to", f"sqlite:///{tmp_path / 'turnlog.db'}"]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.DEVNULL, env=clean_environment()) as running:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 65_536):
                shown += part
        except OSError:
            pass  # how the end of a terminal is told
    os.close(ours)
    assert running.returncode == 0
    for phase in (b"copying", b"verifying", b"/44000"):
        assert phase in shown
