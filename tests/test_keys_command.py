"""``turnlog keys`` where it refuses: one line on standard error and a status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.harness import run_cli

if TYPE_CHECKING:
    from tests.harness import Server

BAD_INPUT = [
    ("create",), ("create", ""), ("create", "a\nb"), ("create", "x" * 256), ("create", "k", "--permission", "all"),
    ("create", "k", "--rate", "0/s"), ("create", "k", "--rate", "5"), ("create", "k", "--rate", "-1/s"),
    ("create", "k", "--expires", "0s"), ("create", "k", "--expires", "2001-01-01T00:00:00Z"),
    ("create", "k", "--expires", "soon"), ("create", "k", "--expires", "99999999d"), ("create", "k", "--account", ""),
    ("revoke", "nobody"), ("rotate", "nobody"), ("rotate", "k", "--grace", "long"), ("revoke",), ("list", "k"), ("x",),
]  # fmt: skip


@pytest.mark.parametrize("arguments", BAD_INPUT, ids=" ".join)
def test_bad_input_is_one_line_and_a_status(server: Server, arguments: tuple[str, ...]) -> None:
    """Wrong usage and unknown keys: one line on standard error, nothing on standard output, a non-zero status."""
    done = run_cli("keys", arguments[0], "--store", server.url, *arguments[1:])
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert done.stderr.startswith("turnlog: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("url", "command"),
    [("sqlite:////nowhere/turnlog.db", command) for command in (("list",), ("revoke", "k"), ("rotate", "k"))]
    + [(url, ("list",)) for url in ("sqlite:///", "sqlite:////", "mysql://x", "turnlog.db")],
)
def test_a_store_that_is_not_there_is_one_line(url: str, command: tuple[str, ...]) -> None:
    """A key command other than ``create`` makes no store, and names the one that it was given."""
    done = run_cli("keys", *command, "--store", url)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert url.removeprefix("sqlite:///") in done.stderr


@pytest.mark.postgresql_only("a file has no server that could be away")
@pytest.mark.parametrize("command", [("list",), ("create", "k"), ("revoke", "k"), ("rotate", "k")], ids=" ".join)
def test_a_database_that_is_not_there_is_one_line(command: tuple[str, ...]) -> None:
    """It is named, its password is not."""
    done = run_cli("keys", *command, "--store", "postgresql://someone:canary@127.0.0.1:1/nowhere")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "127.0.0.1:1/nowhere" in done.stderr
    assert "canary" not in done.stderr
