"""What the tests of ``turnlog import`` share: a store with a key, files to import, and what came of it."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tests.harness import V1, Server, make_key, run_cli
from tests.stores import rows

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import httpx

COLUMNS = ("conversation_externalId", "sender_externalId", "sender_role", "text", "timestamp")
AT = "2026-01-31T12:00:00Z"


def row(text: str = "Hello", conversation: object = "c1", **changes: Any) -> dict[str, Any]:
    """A row of a transcript."""
    plain = dict(zip(COLUMNS, (conversation, "jane", "customer", text, AT), strict=True))
    return plain | {f"sender_{name}" if name != "timestamp" else name: value for name, value in changes.items()}


def json_lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(one) + "\n" for one in rows)


class Importing:
    """A store with an account, transcripts to import into it, and a server to read it back."""

    def __init__(self, folder: Path, store: str, start: Callable[..., Server]) -> None:
        self.folder = folder
        self.store = store
        self._start = start
        self.key = make_key(self.store, "importer")

    def file(self, content: str | bytes, name: str = "transcript") -> str:
        """A transcript file; its name."""
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return str(path)

    def run(self, *arguments: str, **environment: Any) -> subprocess.CompletedProcess[str]:
        """``turnlog import`` into the store."""
        return no_traceback(run_cli("import", *arguments, "--store", self.store, **environment))

    def run_over(self, server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``turnlog import`` into the running server."""
        return no_traceback(run_cli("import", *arguments, "--url", server.base, **self.credentials))

    @property
    def credentials(self) -> dict[str, Any]:
        return {"TURNLOG_API_ID": self.key.id, "TURNLOG_API_SECRET": self.key.secret}

    def summary(self, *arguments: str, status: int = 0) -> dict[str, int]:
        """What an import into the store says of itself."""
        return summary_of(self.run(*arguments, "--json"), status)

    def summary_over(self, server: Server, *arguments: str, status: int = 0) -> dict[str, int]:
        """What an import into the server says of itself."""
        return summary_of(self.run_over(server, *arguments, "--json"), status)

    def start(self, *arguments: str, **environment: str) -> Server:
        """A server on the store."""
        return self._start(*arguments, store=self.store, environment=environment)

    def recorded(self) -> int:
        """How many messages the store has, also while something records there."""
        ((count,),) = rows(self.store, "SELECT count(*) FROM message")
        return int(count)

    @contextmanager
    def reading(self) -> Iterator[httpx.Client]:
        """The API over the store, for as long as the context lasts."""
        server = self.start()
        with server.client(self.key) as client:
            yield client
        server.stop()

    def texts(self, conversation: str = "c1") -> list[str]:
        """The texts of the conversation's messages."""
        with self.reading() as client:
            return [m["text"] for m in listing(client, conversation)]


def no_traceback(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert "Warning" not in done.stderr
    return done


def summary_of(done: subprocess.CompletedProcess[str], status: int) -> dict[str, int]:
    assert done.returncode == status, done.stderr
    summary: dict[str, int] = json.loads(done.stdout)
    assert summary["rows"] == summary["recorded"] + summary["present"] + summary["bad"]
    return summary


def listing(client: httpx.Client, external_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"{V1}/conversation/messages", params={"externalId": external_id})
    assert answer.status_code == 200, answer.text
    items: list[dict[str, Any]] = answer.json()["items"]
    return items
