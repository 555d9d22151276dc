"""The pages under docs/ are true: what they list is what there is."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.harness import REPOSITORY, TURNLOG, V1, Server, clean_environment, create_conversation, message
from turnlog import errors
from turnlog.config import Config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OPERATIONS_PAGE = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
API_PAGE = (REPOSITORY / "docs" / "api.md").read_text("utf-8")


def test_the_table_of_settings_is_the_settings_with_their_defaults() -> None:
    """Every setting, in its order, with its default; and no other."""
    listed = re.findall(r"^\| `(\w+)` \| (?:`([^`]+)`|none) \|", OPERATIONS_PAGE, re.MULTILINE)
    defaults = msgspec.structs.asdict(Config())
    assert [name for name, _ in listed] == list(defaults)
    for name, shown in listed:
        value = defaults[name]
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode().removesuffix(".0")
        assert shown == text, name


def test_every_status_of_an_error_says_what_a_caller_should_do() -> None:
    """The table of answers in docs/api.md covers every code that the program can answer with."""
    table = API_PAGE.partition("## Retrying")[2].partition("\n\n`Idempotency-Key`")[0]
    codes = {error.code for error in vars(errors).values() if isinstance(error, type) and hasattr(error, "code")}
    for code in codes:
        assert code in table or re.search(rf"\b{code[:3]}\b", table), code


@pytest.mark.sqlite_only("PostgreSQL has backup tools of its own")
def test_the_backup_command_works_beside_a_running_server(start: Callable[..., Server], tmp_path: Path) -> None:
    """As it stands on the page; restored, every message is there."""
    command = re.findall(r"^```bash\n(.*?)^```$", OPERATIONS_PAGE, re.DOTALL | re.MULTILINE)[0]
    (tmp_path / "data").mkdir()
    server = start(store=f"sqlite:///{tmp_path / 'data' / 'turnlog.db'}")
    key = server.create_key("backup")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'kept')}/messages"
        for n in range(20):
            client.post(path, json=message(str(n))).raise_for_status()
        pasted = command.replace(".venv/bin/turnlog", TURNLOG)
        subprocess.run(["bash", "-ec", pasted], cwd=tmp_path, env=clean_environment(), check=True, timeout=60)
        client.post(path, json=message("after the backup")).raise_for_status()
    restored = start(store=f"sqlite:///{tmp_path / 'backup.db'}")
    with restored.client(key) as client:
        assert [item["text"] for item in client.get(path).json()["items"]] == [str(n) for n in range(20)]
