"""``turnlog webhooks``: the same as over HTTP, beside a running server."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from tests.harness import Server, run_cli, wait_for
from tests.receiver import Receiver, status
from tests.test_webhooks import ALLOW, HOOKS, OWN_SECRET, owner_key, record

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    import httpx

    from tests.stores import Stores


@pytest.fixture(scope="module")
def server(stores: Stores) -> Iterator[Server]:
    """A server that may send to this machine."""
    with Server(stores.new(), environment=ALLOW) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client(owner_key(server)) as client:
        yield client


def cli(server: Server, *arguments: str, returncode: int = 0, text: str | None = None) -> Any:
    """What ``turnlog webhooks`` prints as JSON."""
    given = ("webhooks", *arguments, "--store", server.url, "--json")
    done = run_cli(*given, text=text, TURNLOG_ALLOW_PRIVATE_WEBHOOKS="true")
    assert done.returncode == returncode, done.stderr
    return json.loads(done.stdout)


def test_a_webhook_from_its_making_to_its_end(server: Server, client: httpx.Client) -> None:
    """Each command shows what HTTP shows, and the running server knows at once."""
    event = record(client, 1)[-1]["id"]
    made = cli(
        server, "create", "https://receiver.example/", "--type", "message.created", "--description", "ü",
        "--after", event, "--secret", "-", text=f"{OWN_SECRET}\n",
    )  # fmt: skip
    assert made.pop("secret") == OWN_SECRET
    assert (made["cursor"], made["types"], made["description"]) == (event, ["message.created"], "ü")
    path = f"{HOOKS}/{made['id']}"
    assert client.get(path).json() == cli(server, "show", made["id"]) == made
    assert cli(server, "list") == client.get(HOOKS).json()["items"] == [made]
    assert cli(server, "list", "--account", "nobody") == []
    changed = cli(server, "change", made["id"], "--all-types", "--url", "https://elsewhere.example/", "--disable")
    assert (changed["types"], changed["url"], changed["enabled"]) == (None, "https://elsewhere.example/", False)
    assert changed == client.get(path).json()
    assert cli(server, "change", made["id"], "--enable", "--type", "conversation.created")["enabled"]
    rotated = cli(server, "rotate", made["id"], "--grace", "1h")
    assert rotated["secret"] not in (OWN_SECRET, None)
    assert rotated["secrets"] == client.get(path).json()["secrets"]
    assert len(rotated["secrets"]) == 2
    assert cli(server, "failed", made["id"]) == []
    assert cli(server, "replay", made["id"], "--failed") == {"replayed": 0}
    assert cli(server, "replay", made["id"], "--event", event) == {"replayed": 0}
    cli(server, "change", made["id"], "--disable")
    assert cli(server, "replay", made["id"], "--since", "2999-01-01T00:00:00Z")["cursor"] == event
    start = cli(server, "replay", made["id"], "--after", "beginning")["cursor"]
    assert client.get(path).json()["cursor"] == start != event
    assert cli(server, "delete", made["id"]) == {"id": made["id"], "deleted": True}
    assert client.get(path).status_code == 404


def test_without_json_it_is_lines_for_people(server: Server) -> None:
    """The secret is on standard output once, where it can be taken from; ``list`` is a line each."""
    done = run_cli("webhooks", "create", "https://receiver.example/lines", "--store", server.url)
    assert done.returncode == 0, done.stderr
    shown = dict(line.split(":", 1) for line in done.stdout.splitlines())
    webhook = shown["id"].strip()
    assert shown["secret"].strip().startswith("whsec_")
    assert "keep it safe" in done.stderr
    for command in (("list",), ("show", webhook), ("failed", webhook), ("replay", webhook, "--failed"),
                    ("replay", webhook, "--after", "beginning"), ("change", webhook, "--disable"),
                    ("delete", webhook)):  # fmt: skip
        done = run_cli("webhooks", *command, "--store", server.url)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert "whsec_" not in done.stdout
        if command[0] in ("list", "show"):
            assert "https://receiver.example/lines" in done.stdout


def test_a_test_event_goes_out_from_the_command(server: Server, client: httpx.Client) -> None:
    """The status is 0 where the receiver took it and 1 where it did not; what came back is shown either way."""
    with Receiver() as receiver:
        made = cli(server, "create", receiver.url)
        receiver.secrets = [made["secret"]]
        assert cli(server, "test", made["id"])["status"] == 200
        receiver.behaviour = status(500, b"no")
        assert cli(server, "test", made["id"], returncode=1)["body"] == "no"
        assert [one.event["type"] for one in receiver.received] == ["webhook.test"] * 2
        wait_for(lambda: client.delete(f"{HOOKS}/{made['id']}").status_code == 204)
    private = run_cli("webhooks", "create", receiver.url, "--store", server.url)
    assert (private.returncode, private.stdout, private.stderr.count("\n")) == (1, "", 1)


def test_what_waits_is_shown_with_its_error_and_its_next_attempt(server: Server, client: httpx.Client) -> None:
    """Over HTTP and in lines, until the receiver takes it."""
    with Receiver() as receiver:
        receiver.behaviour = status(500)
        made = cli(server, "create", receiver.url)
        receiver.secrets = [made["secret"]]
        path = f"{HOOKS}/{made['id']}"
        record(client, 1)
        wait_for(lambda: client.get(path).json()["pendingConversations"] == 1)
        waiting = client.get(path).json()
        assert "500" in waiting["lastError"]
        shown = run_cli("webhooks", "show", made["id"], "--store", server.url).stdout
        assert "waiting:     1 conversation until 2" in shown
        assert shown.count("500") == 1
        receiver.behaviour = status(200)
        wait_for(lambda: client.get(path).json()["pendingConversations"] == 0)
        assert waiting.keys() - client.get(path).json().keys() == {"lastError", "nextAttemptTimestamp"}
        client.delete(path)


BAD_INPUT = [
    ("create",), ("create", "nowhere"), ("create", "https://localhost/"), ("list", "x"), ("x",),
    ("create", "https://a.example", "--type", "x"),
    ("create", "https://a.example", "--after", "x"), ("create", "https://a.example", "--secret", "x"),
    ("create", "https://a.example", "--description", "x" * 256), ("create", "https://a.example", "--account", "nobody"),
    ("show", "NOBODY"), ("change", "NOBODY"), ("change", "NOBODY", "--disable"), ("delete", "NOBODY"),
    ("change", "NOBODY", "--all-types", "--type", "message.created"), ("rotate", "NOBODY"), ("test", "NOBODY"),
    ("rotate", "NOBODY", "--grace", "31d"), ("rotate", "NOBODY", "--grace", "long"), ("failed", "NOBODY"),
    ("replay", "NOBODY"), ("replay", "NOBODY", "--failed"), ("replay", "NOBODY", "--failed", "--after", "beginning"),
    ("replay", "NOBODY", "--since", "soon"),
]  # fmt: skip


def test_bad_input_is_one_line_and_a_status(server: Server) -> None:
    """Nothing on standard output, one line on standard error."""

    def run(arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        return run_cli("webhooks", arguments[0], "--store", server.url, *arguments[1:])

    with ThreadPoolExecutor(4) as pool:
        for arguments, done in zip(BAD_INPUT, pool.map(run, BAD_INPUT), strict=True):
            assert done.returncode in (1, 2), arguments
            assert done.stdout == "", arguments
            assert done.stderr.startswith("turnlog: "), arguments
            assert done.stderr.count("\n") == 1, arguments
            assert "[Path" not in done.stderr, arguments


@pytest.mark.parametrize("command", [("list",), ("create", "https://a.example"), ("show", "W")], ids=" ".join)
def test_a_store_that_is_not_there_is_one_line(command: tuple[str, ...]) -> None:
    """No command makes a store."""
    done = run_cli("webhooks", *command, "--store", "sqlite:////nowhere/turnlog.db")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "/nowhere/turnlog.db" in done.stderr
