"""The settings: four sources, each overriding the one before; a refusal names where the bad value came from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.harness import run_cli

if TYPE_CHECKING:
    from pathlib import Path

COMMANDS = [("config",), ("serve", "--port", "0"), ("keys", "list")]


def test_each_source_overrides_the_one_before_and_is_shown(tmp_path: Path) -> None:
    file = tmp_path / "turnlog.toml"
    file.write_text('host = "127.0.0.2"\nport = 1111\nmax_headers = 50\nlenient = false\n')
    environment = {"TURNLOG_CONFIG": str(file), "TURNLOG_PORT": "2222", "TURNLOG_MAX_HEADERS": "60"}
    done = run_cli("config", "--json", "--port", "3333", cwd=tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["port"] == {"value": 3333, "origin": "--port"}
    assert shown["max_headers"] == {"value": 60, "origin": "TURNLOG_MAX_HEADERS"}
    assert shown["host"] == {"value": "127.0.0.2", "origin": str(file)}
    assert shown["lenient"] == {"value": False, "origin": str(file)}
    assert shown["log_level"] == {"value": "info", "origin": "default"}
    text = run_cli("config", "--port", "3333", cwd=tmp_path, **environment)
    lines = {line.split()[0]: line for line in text.stdout.splitlines()}
    assert set(lines) == set(shown)
    for name, setting in shown.items():
        assert setting["origin"] in lines[name]
        assert json.dumps(setting["value"]) in lines[name]


def test_a_file_named_by_flag_goes_before_one_named_by_the_environment(tmp_path: Path) -> None:
    for name, port in (("flag.toml", 1), ("variable.toml", 2)):
        (tmp_path / name).write_text(f"port = {port}\n")
    arguments = ("config", "--json", "--config", str(tmp_path / "flag.toml"))
    done = run_cli(*arguments, TURNLOG_CONFIG=str(tmp_path / "variable.toml"))
    assert json.loads(done.stdout)["port"] == {"value": 1, "origin": str(tmp_path / "flag.toml")}


@pytest.mark.parametrize(("text", "value"), [("false", False), ("FALSE", False), ("0", False), ("True", True)])
def test_a_variable_says_yes_and_no_in_the_usual_ways(text: str, value: bool) -> None:
    done = run_cli("config", "--json", TURNLOG_LENIENT=text)
    assert json.loads(done.stdout)["lenient"]["value"] is value


def test_what_is_not_ours_in_the_environment_is_let_be() -> None:
    """What the client side reads, and what an orchestrator sets for a service of this name."""
    done = run_cli(
        "config",
        "--json",
        TURNLOG_API_ID="x",
        TURNLOG_API_SECRET="y",  # noqa: S106 - nobody's
        TURNLOG_URL="z",
        TURNLOG_SERVICE_HOST="10.0.0.1",
        TURNLOG_SERVICE_PORT="8080",
        TURNLOG_PORT="tcp://10.0.0.1:8080",
        TURNLOG_PORT_8080_TCP="tcp://10.0.0.1:8080",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["port"] == {"value": 8080, "origin": "default"}


BAD = {
    "unknown variable": ((), {"TURNLOG_PROT": "1"}, "", ("prot", "TURNLOG_PROT")),
    "bad number": ((), {"TURNLOG_PORT": "eighty"}, "", ("port", "TURNLOG_PORT")),
    "out of range": ((), {"TURNLOG_PORT": "65536"}, "", ("port", "TURNLOG_PORT")),
    "not finite": ((), {"TURNLOG_WRITE_DEADLINE_S": "nan"}, "", ("write_deadline_s", "TURNLOG_WRITE_DEADLINE_S")),
    "infinite": ((), {"TURNLOG_KEEP_ALIVE_S": "inf"}, "", ("keep_alive_s", "TURNLOG_KEEP_ALIVE_S")),
    "empty": ((), {"TURNLOG_MAX_HEADERS": ""}, "", ("max_headers", "TURNLOG_MAX_HEADERS")),
    "zero": ((), {"TURNLOG_MAX_CONNECTIONS": "0"}, "", ("max_connections", "TURNLOG_MAX_CONNECTIONS")),
    "neither yes nor no": ((), {"TURNLOG_LENIENT": "perhaps"}, "", ("lenient", "TURNLOG_LENIENT")),
    "no such choice": ((), {"TURNLOG_LOG_LEVEL": "loud"}, "", ("log_level", "TURNLOG_LOG_LEVEL")),
    "unknown in the file": ((), {}, "prot = 1\n", ("prot", "{file}")),
    "wrong type in the file": ((), {}, 'port = "1"\n', ("port", "{file}")),
    "not TOML": ((), {}, "port 1\n", ("{file}",)),
    "not UTF-8": ((), {}, "\udcff", ("{file}",)),
    "bad flag": (("--port", "99999"), {}, "", ("--port",)),
    "no number": (("--port", "eighty"), {}, "", ("--port", "eighty")),
    "unknown flag": (("--prot", "1"), {}, "", ("--prot",)),
}


@pytest.mark.parametrize(("flags", "environment", "content", "named"), BAD.values(), ids=BAD)
def test_a_bad_setting_is_one_line_that_names_it_and_its_origin(
    tmp_path: Path, flags: tuple[str, ...], environment: dict[str, str], content: str, named: tuple[str, ...]
) -> None:
    """U02."""
    file = tmp_path / "turnlog.toml"
    file.write_text(content, "utf-8", "surrogateescape")
    done = run_cli("config", "--config", str(file), *flags, cwd=tmp_path, **environment)
    _check_one_line(done.returncode, done.stdout, done.stderr)
    for name in named:
        assert name.replace("{file}", str(file)) in done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_bad_setting_and_touches_nothing(tmp_path: Path, command: tuple[str, ...]) -> None:
    done = run_cli(*command, cwd=tmp_path, TURNLOG_NONSENSE="1")
    _check_one_line(done.returncode, done.stdout, done.stderr)
    assert "TURNLOG_NONSENSE" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.toml", tmp_path):
        done = run_cli("config", "--config", str(path))
        _check_one_line(done.returncode, done.stdout, done.stderr)
        assert str(path) in done.stderr


def _check_one_line(status: int, output: str, complaint: str) -> None:
    assert status in (1, 2)
    assert output == ""
    assert complaint.startswith("turnlog: ")
    assert complaint.count("\n") == 1, complaint
