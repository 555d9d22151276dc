"""C10: a bug in the code that answers one request is that request's alone, and the log has it under its id."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.harness import V1, Server, create_conversation, error_of, message, wait_for
from tests.wire import GOOD, HOST, answers, credentials, read, request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Reading the message "ATONCE" or "LATER" meets a bug, as does recording a text "in the batch".
_BUGGY = """
import asyncio
from turnlog.cli.main import main
from turnlog.service import Service
from turnlog.store.postgres.store import PostgresStore
from turnlog.store.sqlite.store import SqliteStore

read_message = Service.read_message

async def meet_a_bug(service, key, conversation_id, message_id):
    if message_id == "LATER":
        await asyncio.ensure_future(asyncio.sleep(0.05))
    if message_id in ("ATONCE", "LATER"):
        raise ZeroDivisionError("a bug of the test's")
    return await read_message(service, key, conversation_id, message_id)

def buggy(append):
    async def meet_a_bug(store, writes):
        if any(m.text == "in the batch" for write in writes for m in getattr(write, "messages", ())):
            raise ZeroDivisionError("a bug of the test's")
        return await append(store, writes)
    return meet_a_bug

Service.read_message = meet_a_bug
for store in (PostgresStore, SqliteStore):
    store.append = buggy(store.append)
main()
"""


@pytest.fixture
def server(new_store: Callable[[], str]) -> Iterator[Server]:
    """One with bugs."""
    one = Server(new_store())
    one.command = (sys.executable, "-c", _BUGGY)
    with one:
        yield one


def traces(server: Server) -> dict[str, str]:
    """What the log has under each request's id."""
    return {event["request_id"]: event["exception"] for event in server.log if event["event"] == "internal_error"}


@pytest.mark.parametrize("where", ["ATONCE", "LATER"])
def test_a_bug_in_a_handler_is_500_and_nobody_elses(server: Server, where: str) -> None:
    """Not even of the requests before and behind it on the same connection."""
    key = server.create_key("tests")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        other_id = client.post(path, json=message("another")).json()["id"]
        answer = client.get(f"{path}/{where}")
        error_of(answer, "500-01")
        assert "ZeroDivision" not in answer.text
        with server.connection() as connection:
            ask = [request(f"GET {path}/{one} HTTP/1.1".encode(), HOST, *credentials(key)) for one in (other_id, where)]
            connection.sendall(ask[0] + ask[1] + ask[0] + GOOD.replace(HOST, HOST + b"\r\nConnection: close"))
            assert [status for status, _, _ in answers(read(connection))] == [200, 500, 200, 200]
        wait_for(lambda: len(traces(server)) == 2)
        assert client.get(f"{path}/{other_id}").status_code == 200
    trace = traces(server)[answer.headers["x-request-id"]]
    assert "ZeroDivisionError: a bug of the test's" in trace
    assert "in meet_a_bug" in trace
    assert not [event for event in server.log if event["event"] == "worker_ended"]
    assert server.stop() == 0


def test_a_bug_in_recording_is_500_and_recording_goes_on(server: Server) -> None:
    key = server.create_key("tests")
    with server.client(key) as client:
        path = f"{V1}/conversations/{create_conversation(client, 'c')}/messages"
        answer = client.post(path, json=message("in the batch"))
        error_of(answer, "500-01")
        wait_for(lambda: answer.headers["x-request-id"] in traces(server))
        assert client.post(path, json=message("after")).status_code == 200
        assert [item["text"] for item in client.get(path).json()["items"]] == ["after"]
    assert "ZeroDivisionError: a bug of the test's" in traces(server)[answer.headers["x-request-id"]]
    assert server.stop() == 0
