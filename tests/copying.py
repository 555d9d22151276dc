"""What the tests of ``turnlog copy`` share: stores of both kinds, things to copy, and what a store answers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.harness import V1, Key, Server, conversation, create_conversation, message, run_cli

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator

    import httpx

KINDS_OF_ROWS = (
    "messages", "conversation changes", "conversations", "authentications", "idempotency keys", "API keys",
    "webhooks",
)  # fmt: skip
TEXTS = (
    'Grüße, "ok"? \\ \t\r\n',
    "\N{WAVING HAND SIGN}\N{ZERO WIDTH JOINER}\U0001f9d1\U0001f3fd e\u0301 \u00e9 \uffff \U0010ffff",
    "\x01\x02\x1f\x7f\x80\x9f\u200e\u202e\u2028\ufeff",
    " ",
    "x" * 70_000,
    "null",
)


def copy(source: str, target: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = run_cli("copy", "--from", source, "--to", target, *arguments)
    assert "Traceback" not in done.stderr
    return done


def copied(source: str, target: str, *arguments: str) -> dict[str, Any]:
    """What a copy says that came to its good end."""
    done = copy(source, target, "--json", *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    summary: dict[str, Any] = json.loads(done.stdout)
    assert summary["complete"] is True
    assert tuple(check["kind"] for check in summary["checks"]) == KINDS_OF_ROWS
    for check in summary["checks"]:
        assert check["source"] == check["target"]
        assert check["difference"] is None
    return summary


def counts(summary: dict[str, Any]) -> dict[str, int]:
    """By kind, how many there are in the target."""
    return {check["kind"]: check["target"]["count"] for check in summary["checks"]}


def refusal(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """The one line that the command ends with."""
    assert done.returncode == status, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("turnlog: ")
    return line


class Contents:
    """Something of everything, recorded through the API of a server, and what its API answered then."""

    def __init__(self, server: Server) -> None:
        self.keys = {account: server.create_key("first", "--account", account) for account in ("default", "b")}
        self.revoked = server.create_key("revoked")
        self.rotated = [server.create_key("rotated", "--refuse-repeats", "--rate", "1000/s")]
        self._turn_keys(server.url)
        self.conversations: dict[str, list[str]] = {}
        self.cursors: dict[tuple[str, str], str] = {}
        self.keyed: dict[str, str] = {}
        for account, key in self.keys.items():
            with server.client(key) as client:
                self.conversations[account] = [self._conversation(client, account, name) for name in ("c1", "c2", "Ü")]
                empty = create_conversation(client, "empty")
                self.conversations[account].append(empty)
                self.keyed[account] = self._keyed(client, self.conversations[account][0])
        self.answers = dict(self.read(server))

    def _turn_keys(self, url: str) -> None:
        assert run_cli("keys", "revoke", self.revoked.id, "--store", url).returncode == 0
        done = run_cli("keys", "rotate", self.rotated[0].id, "--store", url, "--json")
        self.rotated.append(Key(self.rotated[0].id, json.loads(done.stdout)["secret"]))

    def _conversation(self, client: httpx.Client, account: str, name: str) -> str:
        one = create_conversation(client, name, metadata={"b": "1", "a": "é\n"}, timestamp="0001-01-01T00:00:00Z")
        path = f"{V1}/conversations/{one}"
        for number, text in enumerate(TEXTS):
            sender = {"role": ("customer", "agent", "system")[number % 3], "externalId": f"{account}\u202e{number}"}
            answer = client.post(f"{path}/messages", json=message(text, sender=sender))
            assert answer.status_code == 200, answer.text
        batch = [message(f"{n}", timestamp=f"2021-11-23T12:13:1{4 + n % 2}.555123Z") for n in range(7)]
        assert client.post(f"{path}/messages/batch", json={"messages": batch}).status_code == 200
        for change in ({"agent": {"externalId": "bob", "name": "Bob"}}, {"customer": {"externalId": "joan"}}):
            assert client.post(f"{V1}/conversations", json=conversation(name, **change)).status_code == 200
        for fact in ({"streamId": "S\U0001f600"}, {}, {}):
            body = {"customerExternalId": "jane", "auth": {"token": "t"}} | fact
            assert client.post(f"{path}/authenticate", json=body).status_code == 204
        page = client.get(f"{path}/messages", params={"limit": 5}).json()
        self.cursors[account, one] = page["nextCursor"]
        return one

    @staticmethod
    def _keyed(client: httpx.Client, one: str) -> str:
        path = f"{V1}/conversations/{one}/messages"
        answer = client.post(path, json=message("keyed"), headers={"idempotency-key": "k"})
        batch = {"messages": [message("keyed 1"), message("keyed 2")]}
        assert client.post(f"{path}/batch", json=batch, headers={"idempotency-key": "l"}).status_code == 200
        return str(answer.json()["id"])

    def read(self, server: Server) -> Iterator[tuple[tuple[str, str], bytes]]:
        """Every answer that reads: by account and path, the bytes of the body."""
        for account, key in self.keys.items():
            with server.client(key) as client:
                for path in self._paths(account, client):
                    answer = client.get(path)
                    assert answer.status_code == 200, (path, answer.text)
                    yield (account, path), answer.content

    def _paths(self, account: str, client: httpx.Client) -> Iterator[str]:
        for name in ("c1", "c2", "%C3%9C", "empty"):
            yield f"{V1}/conversations?externalId={name}"
            yield f"{V1}/conversation/messages?externalId={name}"
        for one in self.conversations[account]:
            path = f"{V1}/conversations/{one}"
            yield path
            yield f"{path}/messages"
            for item in client.get(f"{path}/messages").json()["items"]:
                yield f"{path}/messages/{item['messageId']}"
            if (account, one) in self.cursors:
                yield f"{path}/messages?limit=5&after={self.cursors[account, one]}"

    def check(self, server: Server) -> None:
        """That a server on a copy answers as the first one did, to reads, keys, cursors and retries."""
        assert dict(self.read(server)) == self.answers
        for key in self.rotated:
            with server.client(key) as client:
                assert client.get(f"{V1}/conversations/{self.conversations['default'][0]}").status_code == 200
        with server.client() as client:
            assert client.get("/v1/health", headers=self.revoked.headers).status_code == 401
        for account, key in self.keys.items():
            with server.client(key) as client:
                one = self.conversations[account][0]
                path = f"{V1}/conversations/{one}/messages"
                again = client.post(path, json=message("keyed"), headers={"idempotency-key": "k"})
                assert (again.status_code, again.json()) == (200, {"id": self.keyed[account]})
                other = client.post(path, json=message("another"), headers={"idempotency-key": "k"})
                assert (other.status_code, other.json()["error"]["code"]) == (422, "422-02")
                assert create_conversation(client, "c1") == one
