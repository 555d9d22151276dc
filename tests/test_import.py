"""``turnlog import``, as people use it: transcripts go in by the command and come out of the API word for word."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import REPOSITORY, TURNLOG, Server, clean_environment, run_cli, wait_for
from tests.importing import Importing, json_lines, listing, no_traceback, row, summary_of
from turnlog import instants

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import httpx

TRANSCRIPTS = REPOSITORY.parent / "shared" / "data" / "transcripts.jsonl.gz"


@pytest.fixture
def importing(tmp_path: Path, new_store: Callable[[], str], start: Callable[..., Server]) -> Importing:
    return Importing(tmp_path, new_store(), start)


# The real transcripts.


@pytest.fixture(scope="session")
def transcripts() -> dict[str, list[tuple[str, str, int, str]]]:
    """Role, sender, instant and text of every message of the real transcripts, by conversation, in their order."""
    if not TRANSCRIPTS.exists():
        pytest.skip(f"{TRANSCRIPTS} is not on this machine")
    found = defaultdict(list)
    with gzip.open(TRANSCRIPTS, "rt", encoding="utf-8") as lines:
        for line in lines:
            one = json.loads(line)
            role = "system" if one["sender_role"] == "bot" else one["sender_role"]
            message = (role, one["sender_externalId"], instants.parse(one["timestamp"]), one["text"])
            found[one["conversation_externalId"]].append(message)
    return found


def check_word_for_word(client: httpx.Client, transcripts: dict[str, list[tuple[str, str, int, str]]]) -> None:
    assert len(transcripts) == 643
    assert sum(map(len, transcripts.values())) == 11_240
    for conversation, expected in transcripts.items():
        found = [
            (m["sender"]["role"], m["sender"]["externalId"], instants.parse(m["clientTimestamp"]), m["text"])
            for m in listing(client, conversation)
        ]
        # The order of a listing: by the caller's time, equal times in the order of arrival.
        assert found == sorted(expected, key=lambda message: message[2])


def test_real_transcripts_through_the_store(importing: Importing, transcripts: Any) -> None:
    first = importing.summary(str(TRANSCRIPTS))
    assert (first["rows"], first["recorded"], first["bad"]) == (11_240, 11_240, 0)
    assert importing.summary(str(TRANSCRIPTS))["recorded"] == 0
    server = importing.start()
    again = importing.summary_over(server, str(TRANSCRIPTS))
    assert (again["recorded"], again["present"]) == (0, 11_240)
    with server.client(importing.key) as client:
        check_word_for_word(client, transcripts)


def test_real_transcripts_through_the_server(importing: Importing, transcripts: Any) -> None:
    server = importing.start()
    first = importing.summary_over(server, str(TRANSCRIPTS))
    assert (first["rows"], first["recorded"], first["bad"]) == (11_240, 11_240, 0)
    with server.client(importing.key) as client:
        check_word_for_word(client, transcripts)
    assert server.stop() == 0
    again = importing.summary(str(TRANSCRIPTS))
    assert (again["recorded"], again["present"]) == (0, 11_240)


@pytest.mark.parametrize("through", ["store", "server"])
def test_killed_half_way_and_run_again(importing: Importing, transcripts: Any, through: str) -> None:
    server = importing.start() if through == "server" else None
    with gzip.open(TRANSCRIPTS) as packed:
        rows = packed.read()
    with subprocess.Popen(
        [TURNLOG, "import", "-", *(["--store", importing.store] if server is None else ["--url", server.base])],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=clean_environment(**importing.credentials),
    ) as first:
        # Its input stays open, so it records what no longer fits its buffer and cannot come to the end.
        assert first.stdin is not None
        first.stdin.write(rows[:-1000])
        first.stdin.flush()
        wait_for(lambda: importing.recorded() > 100)
        first.kill()
    again = importing.summary(str(TRANSCRIPTS)) if server is None else importing.summary_over(server, str(TRANSCRIPTS))
    assert again["recorded"] > 0
    assert again["present"] > 0
    assert again["recorded"] + again["present"] == 11_240
    server = server or importing.start()
    with server.client(importing.key) as client:
        check_word_for_word(client, transcripts)


# What is wrong with the target.


def refusal(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line that the command ends with."""
    no_traceback(done)
    assert done.returncode == status
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.sqlite_only("one process records in a file; a database takes what many record")
def test_a_store_that_a_server_has_open(importing: Importing) -> None:
    importing.start()
    assert "--url http://" in refusal(importing.run(importing.file(json_lines(row()))))


def test_an_account_that_does_not_exist(importing: Importing) -> None:
    file = importing.file(json_lines(row()))
    said = refusal(importing.run(file, "--account", "acme"))
    assert "no account 'acme'" in said
    assert "turnlog keys create NAME --account acme" in said


def test_a_store_that_does_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "transcript"
    file.write_text(json_lines(row()), "utf-8")
    missing = tmp_path / "no" / "turnlog.db"
    assert "there is no folder" in refusal(run_cli("import", str(file), "--store", f"sqlite:///{missing}"))
    assert not missing.parent.exists()


def test_account(importing: Importing) -> None:
    run_cli("keys", "create", "other", "--account", "acme", "--store", importing.store)
    assert importing.summary(importing.file(json_lines(row())), "--account", "acme")["recorded"] == 1
    assert importing.summary(importing.file(json_lines(row())))["recorded"] == 1


def test_a_server_that_cannot_be_used(importing: Importing) -> None:
    server = importing.start()
    file = importing.file(json_lines(row()))
    wrong: dict[str, Any] = {"TURNLOG_API_ID": importing.key.id, "TURNLOG_API_SECRET": "wrong"}
    reader = server.create_key("reader", "--permission", "read")
    with server.client(reader):
        pass  # the server knows the key now
    weak: dict[str, Any] = {"TURNLOG_API_ID": reader.id, "TURNLOG_API_SECRET": reader.secret}
    assert "refuses the key" in refusal(run_cli("import", file, "--url", server.base, **wrong))
    assert "must hold a key" in refusal(run_cli("import", file, "--url", server.base))
    done = run_cli("import", file, "--url", server.base, **weak)
    assert "conversations:write" in refusal(done)
    assert "Stopped before the end" in done.stdout
    server.stop()
    assert "cannot reach http://" in refusal(importing.run_over(server, file))


@pytest.mark.parametrize("flags", [("--account", "acme"), ("--store", "sqlite:///x.db")])
def test_url_goes_without_flags_of_the_store(importing: Importing, flags: tuple[str, str]) -> None:
    file = importing.file(json_lines(row()))
    assert "--url goes without" in refusal(run_cli("import", file, "--url", "http://127.0.0.1:1", *flags), status=2)


def test_the_address_from_the_environment(importing: Importing) -> None:
    server = importing.start()
    file = importing.file(json_lines(row()))
    done = run_cli("import", file, cwd=importing.folder, TURNLOG_URL=server.base, **importing.credentials)
    assert done.stdout == "files: 1, rows: 1, recorded: 1, already there: 0, bad: 0\n"


def test_a_key_with_a_rate_is_waited_for(importing: Importing) -> None:
    server = importing.start()
    slow = server.create_key("slow", "--rate", "5/s")
    with server.client(slow):
        pass  # the server knows the key now
    file = importing.file(json_lines(*[row(conversation=f"c{number}") for number in range(4)]))
    done = run_cli(
        "import", file, "--json", "--url", server.base, TURNLOG_API_ID=slow.id, TURNLOG_API_SECRET=slow.secret
    )
    assert summary_of(done, 0)["recorded"] == 4


def test_a_server_that_restarts_meanwhile_is_waited_for(importing: Importing) -> None:
    server = importing.start()
    rows = json_lines(*[row(f"{number}", f"c{number % 40}") for number in range(12_000)])
    with subprocess.Popen(
        [TURNLOG, "import", "-", "--json", "--url", server.base],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(**importing.credentials),
    ) as running:
        assert running.stdin is not None
        running.stdin.write(rows[: len(rows) // 2])
        running.stdin.flush()
        server.kill()
        running.stdin.write(rows[len(rows) // 2 :])
        running.stdin.flush()
        server.start()
        out, err = running.communicate()
    assert json.loads(out)["recorded"] == 12_000, err
    with server.client(importing.key) as client:
        assert [m["text"] for m in listing(client, "c7")] == [str(number) for number in range(7, 12_000, 40)]


def test_interrupted(importing: Importing) -> None:
    with subprocess.Popen(
        [TURNLOG, "import", "-", "--json", "--store", importing.store],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    ) as running:
        assert running.stdin is not None
        running.stdin.write(json_lines(*[row(f"{number}", f"c{number}") for number in range(12_000)]))
        running.stdin.flush()
        wait_for(lambda: importing.recorded() > 10)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate()
    assert (running.returncode, err.strip()) == (130, "turnlog: interrupted")
    summary = json.loads(out)
    assert summary["complete"] is False
    assert 0 < summary["recorded"] < 12_000
    with importing.reading() as client:
        assert [m["text"] for m in listing(client, "c0")] == ["0"]
