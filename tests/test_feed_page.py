"""The programs on docs/feed.md do what the page says, as they stand there."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.harness import REPOSITORY, V1, Server, clean_environment, create_conversation, message, wait_for
from tests.test_changes import ALL, walk
from turnlog.signing import new_secret, signed_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = (REPOSITORY / "docs" / "feed.md").read_text("utf-8")
READ, FOLLOW, RECEIVE = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@contextlib.contextmanager
def _running(program: str, **environment: str) -> Iterator[list[str]]:
    """The program, run as a file would be; the lines that it prints."""
    lines: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-u", "-c", program],
        env=clean_environment(**environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=lambda stream: lines.extend(line.rstrip("\n") for line in stream),
                                  args=(process.stdout,), daemon=True)  # fmt: skip
        reader.start()
        try:
            yield lines
        finally:
            process.kill()
            reader.join(10)


def test_the_readers_read_all_of_it_also_through_a_restart(start: Callable[..., Server]) -> None:
    server = start()
    key = server.create_key("feed", *ALL)
    environment = {"TURNLOG_URL": server.base, "TURNLOG_API_ID": key.id, "TURNLOG_API_SECRET": key.secret}
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'one')}/messages"
        client.post(path, json=message("before")).raise_for_status()
    with _running(FOLLOW, **environment) as followed:
        wait_for(lambda: len(followed) == 2)
        server.kill()
        server.start()
        with server.client(key) as client:
            client.post(path, json=message("after")).raise_for_status()
            whole = walk(client)
        expected = [f"{item['id']} {item['type']} {item.get('message', {}).get('text')}" for item in whole]
        wait_for(lambda: followed == expected)
    with _running(READ, **environment) as read:
        wait_for(lambda: read == expected)


def test_the_receiver_takes_what_is_signed_and_nothing_else() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    secret = new_secret(secrets.randbits)
    body = b'{"id":"e1","type":"message.created","externalId":"chat-1"}'
    program = RECEIVE.replace("9000", str(port))
    assert program != RECEIVE
    with _running(program, WEBHOOK_SECRET=secret) as printed:
        good = signed_headers([secret], "e1", int(time.time()), body)
        bad = signed_headers([new_secret(secrets.randbits)], "e1", int(time.time()), body)
        wait_for(lambda: _listens(port))
        for _ in range(2):
            assert _post(port, body, good) == 204
        with pytest.raises(urllib.error.HTTPError, match="401") as refused:
            _post(port, body, bad)
        refused.value.close()
        assert printed == ["message.created chat-1"]


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def _post(port: int, body: bytes, headers: dict[str, str]) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=body, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return int(answer.status)
