"""What the tests of ``turnlog tail`` share: one that runs, and something to be seen by it."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from typing import TYPE_CHECKING, Any, Self

from tests.harness import TURNLOG, V1, Key, Server, clean_environment, message

if TYPE_CHECKING:
    import httpx


class Tail:
    """A ``turnlog tail`` that runs; what it has written so far, line by line."""

    def __init__(self, *arguments: str, stdout: int = subprocess.PIPE, **environment: str) -> None:
        self.out: list[str] = []
        self.err: list[str] = []
        self.process = subprocess.Popen(
            [TURNLOG, "tail", *arguments],
            env=clean_environment(**environment),
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._readers = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((self.process.stdout, self.out), (self.process.stderr, self.err))
        ]
        for reader in self._readers:
            reader.start()

    @staticmethod
    def _read(stream: Any, lines: list[str]) -> None:
        with contextlib.suppress(ValueError):
            lines.extend(line.rstrip("\n") for line in stream or ())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self._end()

    def _end(self) -> int:
        status = self.process.wait(20)
        for reader in self._readers:
            reader.join(10)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        return status

    def wait(self) -> int:
        """Wait for it to end by itself; its status."""
        status = self.process.wait(20)
        for reader in self._readers:
            reader.join(10)
        return status

    def interrupt(self) -> int:
        """Ctrl-C; its status."""
        self.process.send_signal(signal.SIGINT)
        return self.wait()

    @property
    def items(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in list(self.out)]

    @property
    def cursor(self) -> str:
        """What it says to go on with."""
        return self.err[-1].rpartition("--after ")[2]


def send(client: httpx.Client, conversation_id: str, *texts: str, **changes: Any) -> None:
    for text in texts:
        body = message(text, **changes)
        client.post(f"{V1}/conversations/{conversation_id}/messages", json=body).raise_for_status()


def over(server: Server, key: Key) -> tuple[tuple[str, ...], dict[str, Any]]:
    return ("--url", server.base), {"TURNLOG_API_ID": key.id, "TURNLOG_API_SECRET": key.secret}
