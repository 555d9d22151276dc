"""What several workers are made of, each part without a store: supervision, and shares of connections and of rates."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import socket
import subprocess
import sys
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.harness import clean_environment
from turnlog.errors import RateLimitedError
from turnlog.http.intake import Intake, Shares
from turnlog.keyring import Bucket

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# "refused" is what the last worker is, at once or "later", once all have served, or then for good, "finally"; a
# "short-lived" one serves and ends, a "stubborn" one stays, a "fertile" one leaves orphans, and looks whether their
# adoptive parent keeps them.
_SUPERVISED = """
import ctypes, os, signal, sys, time
from datetime import UTC, datetime
from pathlib import Path
from turnlog import logs
from turnlog.errors import FinalError, SettingError
from turnlog.supervisor import Supervisor

manner, all_ready, patience_s, last = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])

def work(worker):
    worker.die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if manner == "stubborn" else lambda *_: os._exit(0))
    if worker.number == last and manner in ("later", "finally") and not all_ready.exists():
        worker.ready()
        while not all_ready.exists():
            time.sleep(0.01)
        return 3
    if worker.number == last and manner in ("refused", "later", "finally"):
        raise (FinalError if manner == "finally" else SettingError)("not with me")
    if worker.number == last and manner == "short-lived":
        worker.ready()
        return 3
    if manner == "fertile":
        worker.ready()
        for _ in range(3):
            if (child := os.fork()) == 0:
                if os.fork() == 0:
                    os._exit(0)
                os._exit(0)
            os.waitpid(child, 0)
        children = Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children")
        for _ in range(1000):
            if children.read_text().split() == [str(os.getpid())]:
                print("no child but the worker", flush=True)
                break
            time.sleep(0.01)
        else:
            print("more children than the worker", flush=True)
    worker.ready()
    while True:
        time.sleep(60)

def ready():
    all_ready.touch()
    print("ready", flush=True)

if manner == "fertile":
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
logs.configure("info", lambda: datetime.now(UTC).isoformat())
try:
    sys.exit(Supervisor(last, work, on_ready=ready, on_stop=lambda: print("stop", flush=True), patience_s=patience_s,
                        monotonic_s=time.monotonic).run())
except SettingError as error:
    print(error)
    sys.exit(4)
"""


@contextlib.contextmanager
def supervised(manner: str, folder: Path, patience_s: float = 30, workers: int = 2) -> Iterator[subprocess.Popen[str]]:
    arguments = (manner, str(folder / "all-ready"), str(patience_s), str(workers))
    command = [sys.executable, "-c", _SUPERVISED, *arguments]
    with subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_worker_that_is_refused_at_the_start_ends_everything(tmp_path: Path) -> None:
    with supervised("refused", tmp_path) as parent:
        output, log = parent.communicate(timeout=30)
        assert output.splitlines() == ["stop", "not with me"], log
        assert parent.returncode == 4


@pytest.mark.parametrize(("manner", "workers"), [("later", 1), ("later", 2), ("finally", 2)])
def test_one_that_is_refused_once_all_have_served_is_tried_again(tmp_path: Path, manner: str, workers: int) -> None:
    """As when the disk is full; and for good, where another one still serves."""
    with supervised(manner, tmp_path, workers=workers) as parent:
        assert parent.stderr is not None
        ended = (json.loads(line) for line in parent.stderr if '"worker_ended"' in line)
        seen = [(e.get("status"), e.get("error"), e["next_in_s"]) for e in itertools.islice(ended, 3)]
        parent.terminate()
        output, _ = parent.communicate(timeout=30)
        assert seen == [(3, None, 0.0), (None, "not with me", 0.5), (None, "not with me", 1.0)]
        assert output.splitlines() == ["ready", "stop"]
        assert parent.returncode == 0


def test_one_that_is_refused_for_good_ends_what_nobody_else_serves(tmp_path: Path) -> None:
    """As when the file is damaged, or a newer Turnlog has migrated the store."""
    with supervised("finally", tmp_path, workers=1) as parent:
        output, log = parent.communicate(timeout=30)
        assert output.splitlines() == ["ready", "stop", "not with me"], log
        assert parent.returncode == 4


def test_one_that_ends_again_and_again_by_itself_waits_longer_each_time(tmp_path: Path) -> None:
    with supervised("short-lived", tmp_path) as parent:
        assert parent.stderr is not None
        events = (event for event in map(json.loads, parent.stderr) if event["worker"] == 2)
        lives = list(itertools.islice(events, 7))  # ready and ended by turns
    deaths, births = lives[1::2], lives[2::2]
    assert [event["next_in_s"] for event in deaths] == [0.0, 0.5, 1.0]
    for death, birth in zip(deaths, births, strict=True):
        rest = datetime.fromisoformat(birth["time"]) - datetime.fromisoformat(death["time"])
        assert rest.total_seconds() >= death["next_in_s"]


def test_orphans_that_are_given_to_the_first_process_of_a_container_are_buried(tmp_path: Path) -> None:
    """As the shells that somebody opened in there leave them."""
    with supervised("fertile", tmp_path, workers=1) as parent:
        assert parent.stdout is not None
        assert {parent.stdout.readline() for _ in range(2)} == {"ready\n", "no child but the worker\n"}
        parent.terminate()
        assert parent.wait(30) == 0


@pytest.mark.parametrize(("patience_s", "stops"), [(0.1, [signal.SIGTERM]), (60, [signal.SIGINT, signal.SIGINT])])
def test_workers_that_do_not_stop_are_killed(tmp_path: Path, patience_s: float, stops: list[signal.Signals]) -> None:
    """After their time; at once where somebody presses Ctrl-C a second time."""
    with supervised("stubborn", tmp_path, patience_s) as parent:
        assert parent.stdout is not None
        for line, number in zip(("ready", "stop"), stops, strict=False):
            assert parent.stdout.readline() == f"{line}\n"
            parent.send_signal(number)
        _, log = parent.communicate(timeout=30)
        assert parent.returncode == 1
    killed = [json.loads(line)["workers"] for line in log.splitlines() if '"workers_killed"' in line]
    assert killed == [[1, 2]]


@pytest.mark.parametrize("hangs", [False, True])
def test_connections_are_shared_out_as_they_come(*, hangs: bool) -> None:
    """Each stays where it was taken. One worker with none that takes none leaves all to the others."""

    async def scenario() -> list[int]:
        shares = Shares(3 if hangs else 2)
        all_taken = asyncio.Event()
        taken: tuple[list[object], ...] = ([], [])

        def take(own: list[object]) -> asyncio.Protocol:
            own.append(None)
            if sum(map(len, taken)) == 20:
                all_taken.set()
            return asyncio.Protocol()

        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(0)
            intakes = [
                Intake(listener.dup(), partial(take, own), own.__len__, shares, number)
                for number, own in enumerate(taken, 1)
            ]
            opened = [await asyncio.open_connection(*listener.getsockname()) for _ in range(20)]
            await asyncio.wait_for(all_taken.wait(), 30)
            for intake in intakes:
                await intake.close()
        for _, writer in opened:
            writer.close()
            await writer.wait_closed()
        return [len(own) for own in taken]

    assert sorted(asyncio.run(scenario())) in ([8, 12], [9, 11], [10, 10])


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 64])
@pytest.mark.parametrize("rate", [1, 2, 3, 10, 50, 1000])
def test_the_shares_of_a_rate_add_up(rate: int, workers: int) -> None:
    """Asked all the time, the workers together admit the rate, and at the start a burst of as much, or one each."""
    seconds, step_s = 64, 1 / 16
    admitted = 0
    for bucket in (Bucket(rate, 0.0, workers) for _ in range(workers)):
        for step in range(int(seconds / step_s)):
            with contextlib.suppress(RateLimitedError):
                while True:
                    bucket.take(step * step_s)
                    admitted += 1
    assert rate * seconds * 0.95 <= admitted <= rate * seconds + max(rate, workers)


@pytest.mark.parametrize(
    ("rate", "workers", "policy", "retry_after_s"),
    [(3, 1, "q=3;w=1", 1), (50, 4, "q=12;w=1", 1), (4, 4, "q=1;w=1", 1), (1, 4, "q=1;w=4", 4), (3, 49, "q=1;w=17", 17)],
)
def test_a_small_share_says_when_there_is_room(rate: int, workers: int, policy: str, retry_after_s: int) -> None:
    """A request in so many seconds; after them one is let in."""
    bucket = Bucket(rate, 0.0, workers)
    now_s = 0.0
    for _ in range(100):
        with contextlib.suppress(RateLimitedError):
            for _ in range(rate):
                bucket.take(now_s)
        with pytest.raises(RateLimitedError) as refusal:
            bucket.take(now_s)
        assert refusal.value.retry_after_s == retry_after_s
        assert bucket.fields()[0] == ("ratelimit-policy", f'"default";{policy}')
        assert ";r=0;" in bucket.fields()[1][1]
        now_s += retry_after_s
    bucket.take(now_s)
