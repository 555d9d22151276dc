"""What ``turnlog tail`` shows to people: who said what, and nothing that commands their terminal."""

from __future__ import annotations

import contextlib
import os
import pty
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Server, create_conversation, run_cli
from tests.tailing import Tail, send
from tests.test_changes import ALL, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx


@pytest.fixture
def server(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client(server.create_key("feed", *ALL)) as found:
        yield found


HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b31m\rover\bx\x7f\t|\u202eabc\u2028next\x00".replace("\x00", "")


def test_what_was_recorded_commands_no_terminal(server: Server, client: httpx.Client) -> None:
    """Neither in a pipe, from where it may go to a terminal, nor on one."""
    conversation_id = create_conversation(client, f"id {HOSTILE}", customer={"externalId": HOSTILE, "name": HOSTILE})
    send(client, conversation_id, HOSTILE, sender={"role": "agent", "externalId": HOSTILE})
    send(client, conversation_id, "first\nsecond\r\nthird", "x" * 5000)
    done = run_cli("tail", "--store", server.url, "--no-follow")
    shown = done.stdout
    assert all(char.isprintable() or char == "\n" for char in shown), ascii(shown)
    assert "\\x1b]0;owned\\x07\\x1b[2J\\x9b31m\\rover\\x08x\\x7f |\\u202eabc\\u2028next" in shown
    assert "\n    first\n    second\n    third\n" in shown
    assert "… (5,000 characters)" in shown
    coloured = _on_a_terminal("--store", server.url, "--no-follow")
    assert "\x1b[" in coloured
    for bad in ("\x1b]", "\x1b[2J", "\x07", "\x9b", "\b", "\u202e"):
        assert bad not in coloured
    assert "\x1b[" not in _on_a_terminal("--store", server.url, "--no-follow", NO_COLOR="1")


def _on_a_terminal(*arguments: str, **environment: Any) -> str:
    """What ``turnlog tail`` writes where its output is a terminal."""
    ours, its = pty.openpty()
    found = b""
    with Tail(*arguments, stdout=its, **({"TERM": "xterm-256color"} | environment)) as tail:
        os.close(its)
        with contextlib.suppress(OSError):  # the other end is gone
            while part := os.read(ours, 65536):
                found += part
        assert tail.wait() == 0, tail.err
    os.close(ours)
    return found.decode()


def test_people_are_told_who_said_what_where_and_when(server: Server, client: httpx.Client) -> None:
    conversation_id = create_conversation(client, "chat-1", customer={"externalId": "jane", "name": "Jane"})
    send(client, conversation_id, "Hello! \U0001f468\u200d\U0001f469\u200d\U0001f467")
    create_conversation(client, "chat-1", agent={"externalId": "sam"}, metadata={"mood": "good"})
    items = walk(client)
    done = run_cli("tail", "--store", server.url, "--no-follow")
    assert done.stdout.splitlines() == [
        f"{items[0]['time']}  chat-1  conversation created: customer jane (Jane)",
        f"{items[1]['time']}  chat-1  customer jane: Hello! \U0001f468\u200d\U0001f469\u200d\U0001f467",
        f"{items[2]['time']}  chat-1  conversation updated: customer jane (Jane), agent sam, mood=good",
    ]
