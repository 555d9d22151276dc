"""The README promises only what works: each of its commands is run as it stands there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.harness import REPOSITORY, TURNLOG, Key, Server, clean_environment, need

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

README = (REPOSITORY / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
CURLS = [block for block in BLOCKS if block.startswith("curl")]


def run(command: str, cwd: Path, **environment: str) -> str:
    """Run a command as a person would paste it."""
    done = subprocess.run(
        ["bash", "-ec", command],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A server that ends with the block, also where the test fails in it."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def test_the_two_commands_come_first_and_are_targets_of_the_makefile() -> None:
    """Line one after the title: make serve, make test."""
    start = README.split("```console\n")[1]
    assert [line.split()[2] for line in start.splitlines()[:2]] == ["serve", "test"]
    makefile = (REPOSITORY / "Makefile").read_text("utf-8")
    assert re.search(r"^serve:", makefile, re.MULTILINE)
    assert re.search(r"^test:", makefile, re.MULTILINE)


def test_every_curl_works_as_pasted(server: Server, key: Key, tmp_path: Path) -> None:
    """Conversation, message, batch, page and search, in the order of the page."""
    need("curl")
    with server.client(key):
        answers = [
            json.loads(
                run(
                    block,
                    tmp_path,
                    TURNLOG_URL=server.base,
                    TURNLOG_API_ID=key.id,
                    TURNLOG_API_SECRET=key.secret,
                )
            )
            for block in CURLS
        ]
    created, recorded, several, page, found = answers
    assert created == {"id": "README1"}
    assert [item["messageId"] for item in page["items"]] == [recorded["id"], several["ids"][1]]
    assert page["nextCursor"]
    assert [item["id"] for item in found["items"]] == ["README1"]


def test_every_line_of_the_command_line_section_works(
    tmp_path: Path, store_kind: str, new_store: Callable[[], str]
) -> None:
    """From a checkout with .venv, on a store of its own: the default one, or the one that the environment names."""
    environment = {} if store_kind == "sqlite" else {"TURNLOG_STORE": new_store()}
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "turnlog").symlink_to(TURNLOG)
    run(".venv/bin/turnlog keys create my-integration", tmp_path, **environment)
    lines = [line for block in BLOCKS if block.startswith(".venv") for line in block.splitlines()]
    outputs = {line.split("#")[0].strip(): run(line, tmp_path, **environment) for line in lines}
    assert "my-integration" in outputs[".venv/bin/turnlog keys list"]
    assert any(re.search(r"port +8080 +\(default\)", output) for output in outputs.values())
    assert "revoked" in run(".venv/bin/turnlog keys list", tmp_path, **environment)


@pytest.mark.parametrize("page", sorted(REPOSITORY.glob("*.md")) + sorted(REPOSITORY.glob("docs/**/*.md")), ids=str)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    """Links between the pages, relative to the page that has them."""
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert os.path.lexists(page.parent / target), f"{page.name} names {target}"


def test_the_first_session_that_serve_prints_works_as_pasted(tmp_path: Path, new_store: Callable[[], str]) -> None:
    """`make serve` prints curl commands; a second start keeps the key and the data."""
    need("curl")
    command = [TURNLOG, "serve", "--first-key", "--port", "0", "--store", new_store()]
    with started(command) as first:
        assert first.stdout is not None
        printed = []
        for line in first.stdout:
            printed.append(line)
            if "Ctrl-C" in line:
                break
        session = "".join(printed).split("list.\n")[1].split("API:")[0]
        answers = run(session, tmp_path).splitlines()
    assert json.loads(answers[0]) == {"id": "DEMO1"}
    assert json.loads(answers[2])["items"][0]["messageId"] == json.loads(answers[1])["id"]
    assert first.returncode == 0

    with started(command) as second:
        assert second.stdout is not None
        base = second.stdout.readline().split("listening on ")[1].split(",")[0]
        listed = re.sub(r"http://[^/]+", base, "curl" + session.split("curl")[3])
        assert json.loads(run(listed, tmp_path))["items"][0]["text"] == "Hello!"
