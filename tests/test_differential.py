"""P11 of the fault list: the same requests get the same answers from every store.

A few thousand requests, good and bad, are made from a seed and sent to a server on each kind of store, one after
another. What a server chooses by itself (ids that it makes, times of its own, request ids) is compared by where it
comes up again; everything else, cursors among it, to the letter.
"""

from __future__ import annotations

import json
import random
import re
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.harness import ULID, V1, Server
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.harness import Key
    from tests.postgres import Home

SEED = 20211123
REQUESTS = 4000
ACCOUNTS = 2
CONVERSATIONS = 12
TEXTS = (
    "Hello!",
    "Grüße \N{WAVING HAND SIGN}",
    "e\u0301 \u202e \x01 \t\n",
    "'; DROP TABLE message; -- $1 %s \\ \"",
    "x" * 5000,
    "",
    "a\0b",
)
TIMES = (
    "2021-11-23T12:13:14.555Z",
    "2021-11-23T12:13:14.555Z",
    "2021-11-23T12:13:14.555001Z",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999Z",
    "2021-11-23T12:13:14+05:30",
    "yesterday",
    "0001-01-01T00:00:00+01:00",
)
FEED, WEBHOOKS = "/turnlog/v1/changes", "/turnlog/v1/webhooks"
_TIME = re.compile(r'"(createdTimestamp|updatedTimestamp|time)":"[^"]*"')
_CURSOR = re.compile(r'(?<="id":")[\w-]{22}(?=")|(?<="nextCursor":")[\w-]{22}(?=")')
_DELIVERED = frozenset({"cursor", "pendingConversations", "lastError", "nextAttemptTimestamp", "secret", "secrets"})
"""Of a webhook: how far it has come by now, and what only its owner may know."""


class _Side:
    """A server, and what it calls things."""

    def __init__(self, server: Server, keys: list[Key]) -> None:
        self.clients = [httpx.Client(base_url=server.base, headers=key.headers, timeout=30) for key in keys]
        self.ids: list[str] = []

    def send(self, request: dict[str, Any]) -> tuple[int, str, dict[str, str]]:
        path = re.sub(r"<(\d+)>", lambda match: self.ids[int(match[1])], request["path"])
        answer = self.clients[request["account"]].request(
            request["method"], path, content=request["content"], headers=request["headers"]
        )
        return answer.status_code, self._named(answer), dict(answer.headers)

    def _named(self, answer: httpx.Response) -> str:
        """The body, with each thing that the server named by itself under its number."""
        text = answer.text
        if answer.url.path.startswith(WEBHOOKS) and answer.status_code < 300 and text:
            text = json.dumps(_without(_DELIVERED, answer.json()), separators=(",", ":"))
        text = _TIME.sub(r'"\1":"T"', text)
        if answer.status_code >= 400:
            text = text.replace(answer.headers["x-request-id"], "R")
        cursors = _CURSOR.findall(text) if answer.url.path == FEED else []
        for found in (*ULID.findall(text), *cursors):
            if found not in self.ids:
                self.ids.append(found)
            text = text.replace(found, f"<{self.ids.index(found)}>")
        return text


def _without(names: frozenset[str], value: Any) -> Any:
    if isinstance(value, list):
        return [_without(names, one) for one in value]
    if isinstance(value, dict):
        return {name: _without(names, one) for name, one in value.items() if name not in names}
    return value


class _Requests:
    """Requests from a seed, on few conversations and keys, so that they meet."""

    def __init__(self) -> None:
        self._chance = random.Random(SEED)  # noqa: S311 - a repeatable run, not a secret
        self.webhooks: list[str] = []
        """By the names that they were given."""
        self._kinds = (
            (self._put, 10),
            (self._post, 35),
            (self._batch, 12),
            (self._read, 8),
            (self._list, 20),
            (self._find, 6),
            (self._authenticate, 5),
            (self._odd, 4),
            (self._feed, 5),
            (self._webhook, 10),
        )

    def next(self, named: list[str]) -> dict[str, Any]:
        """The next one; servers have named these things by now."""
        kinds, weights = zip(*self._kinds, strict=True)
        request: dict[str, Any] = {"method": "GET", "headers": {}, "body": None}
        request |= self._chance.choices(kinds, weights)[0](named)
        body = request.pop("body")
        request["content"] = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        if body is not None:
            request["headers"] = {"content-type": "application/json"} | request["headers"]
        return {"account": self._chance.randrange(ACCOUNTS)} | request

    def _number(self) -> int:
        return self._chance.randrange(CONVERSATIONS)

    def _conversation(self) -> str:
        """An id: mostly of one that there is."""
        return self._chance.choice((f"C{self._number()}",) * 9 + ("NOWHERE", "c1", "C%00"))

    def _message(self) -> dict[str, Any]:
        role = self._chance.choice(("agent", "customer", "system", "agent", "customer", "bot"))
        sender = {"role": role, "externalId": self._chance.choice(("jane", "bob", 123, "x" * 255, "x" * 256))}
        text = self._chance.choices(TEXTS, (9, 9, 9, 9, 2, 1, 1))[0]
        return {"text": text, "sender": sender, "timestamp": self._chance.choice(TIMES)}

    def _keyed(self) -> dict[str, str]:
        key = self._chance.choice((None, None, *(f"k{n}" for n in range(200)), "", "x" * 256))
        return {} if key is None else {"idempotency-key": key}

    def _put(self, _: list[str]) -> dict[str, Any]:
        number = self._number()
        body: dict[str, Any] = {
            "externalId": f"external-{number}",
            "customer": {"externalId": self._chance.choice(("jane", "joe"))},
            "timestamp": self._chance.choice(TIMES[:6]),
            "id": self._chance.choice((f"C{number}",) * 8 + (f"C{self._number()}", "not an id")),
        }
        if self._chance.random() < 0.5:
            body["customer"]["name"] = self._chance.choice(("Jane", "Jóe", ""))
        if self._chance.random() < 0.5:
            body["agent"] = {"externalId": self._chance.choice(("bob", 7))}
        if self._chance.random() < 0.5:
            body["metadata"] = {self._chance.choice("zabc"): TEXTS[n] for n in range(self._chance.randrange(4))}
        return {"method": "POST", "path": f"{V1}/conversations", "body": body}

    def _post(self, _: list[str]) -> dict[str, Any]:
        path = f"{V1}/conversations/{self._conversation()}/messages"
        return {"method": "POST", "path": path, "body": self._message(), "headers": self._keyed()}

    def _batch(self, _: list[str]) -> dict[str, Any]:
        messages = [self._message() for _ in range(self._chance.choice((0, 1, 2, 3, 20)))]
        if self._chance.random() < 0.5:  # most of them bad is all of them refused
            messages = [one | {"timestamp": TIMES[0], "text": one["text"] or "?"} for one in messages]
        path = f"{V1}/conversations/{self._conversation()}/messages/batch"
        return {"method": "POST", "path": path, "body": {"messages": messages}, "headers": self._keyed()}

    def _read(self, named: list[str]) -> dict[str, Any]:
        # No cursors: by chance, one side's may look like an id and the other's not.
        ids = [number for number, one in enumerate(named) if ULID.fullmatch(one)]
        message_id = f"<{self._chance.choice(ids)}>" if ids else "NOTHING"
        return {"path": f"{V1}/conversations/{self._conversation()}/messages/{message_id}"}

    def _list(self, _: list[str]) -> dict[str, Any]:
        query = self._chance.choice(("", "?limit=1", "?limit=3", "?limit=1000", "?limit=0", "?limit=5&after=nonsense"))
        if self._chance.random() < 0.2:
            return {"path": f"{V1}/conversation/messages?externalId=external-{self._number()}{query.replace('?', '&')}"}
        return {"path": f"{V1}/conversations/{self._conversation()}/messages{query}", "follow": True}

    def _find(self, _: list[str]) -> dict[str, Any]:
        if self._chance.random() < 0.5:
            return {"path": f"{V1}/conversations/{self._conversation()}"}
        return {"path": f"{V1}/conversations?externalId={self._chance.choice(('external-1', 'nobody', '', '%00'))}"}

    def _authenticate(self, _: list[str]) -> dict[str, Any]:
        body: dict[str, Any] = {
            "customerExternalId": "jane",
            "auth": self._chance.choice(({"token": "t"}, {"headers": {}}, {})),
        }
        return {"method": "POST", "path": f"{V1}/conversations/{self._conversation()}/authenticate", "body": body}

    def _feed(self, named: list[str]) -> dict[str, Any]:
        place = self._chance.choice(("now", "beginning", "nonsense", f"<{self._chance.randrange(len(named) or 1)}>"))
        only = self._chance.choice(
            (
                "",
                "&types=message.created",
                "&types=nothing",
                f"&conversationId=C{self._number()}",
                "&externalId=external-1",
            )
        )
        limit = self._chance.choice((1, 100, 100, 1000, 0, 1001))
        if self._chance.random() < 0.5:
            return {"path": f"{FEED}?limit={limit}{only}&after={place}" if named else FEED}
        return {"path": f"{FEED}?limit=500{only}", "follow": True}

    def _webhook(self, _: list[str]) -> dict[str, Any]:
        one = f"{WEBHOOKS}/{self._chance.choice(self.webhooks or ['NOTHING'])}"
        body: dict[str, Any] = {
            "url": self._chance.choice(
                ("https://hooks.invalid/a", "http://hooks.invalid/", "https://127.0.0.1/", "no")
            ),
            "description": self._chance.choice(TEXTS),
            "types": self._chance.choice((None, ["message.created"], ["nothing"], [])),
        }
        part = {name: body[name] for name in self._chance.sample(sorted(body), 1)}
        return self._chance.choice(
            (
                {
                    "method": "POST",
                    "path": WEBHOOKS,
                    "body": body | {"after": self._chance.choice(("now", "nonsense"))},
                },
                {"method": "POST", "path": WEBHOOKS, "body": {"url": "https://hooks.invalid/b"}},
                {"method": "PATCH", "path": one, "body": part},
                {"method": "PATCH", "path": one, "body": {"enabled": self._chance.choice((True, False, "yes"))}},
                {"method": "DELETE", "path": one},
                {"method": "POST", "path": f"{one}/replay", "body": {"failed": True}},
                {"path": one},
                {"path": f"{one}/failed"},
                {"path": WEBHOOKS},
            )
        )

    def _odd(self, _: list[str]) -> dict[str, Any]:
        path = f"{V1}/conversations/{self._conversation()}/messages"
        return self._chance.choice(
            (
                {"method": "DELETE", "path": path},
                {"method": "POST", "path": path, "body": b'{"text": "a", "text": "b"}'},
                {"method": "POST", "path": path, "body": b'"\\ud800"'},
                {"method": "POST", "path": path, "body": b"{}", "headers": {"content-type": "text/plain"}},
                {"method": "HEAD", "path": path},
                {"path": "/v1/health"},
                {"path": "/nowhere"},
            )
        )


@pytest.fixture
def sides(postgresql: Home, tmp_path: Path) -> Iterator[tuple[_Side, _Side]]:
    """A server on each kind of store, with keys of the same accounts; one of them refuses repeats."""
    with (
        postgresql.cluster() as cluster,
        Server(f"sqlite:///{tmp_path / 'turnlog.db'}") as one,
        Server(cluster.create_database()) as other,
    ):
        made = []
        for server in (one, other):
            may = [part for permission in PERMISSIONS for part in ("--permission", permission)]
            keys = [
                server.create_key("a", "--account", "a", *may),
                server.create_key("b", "--account", "b", "--refuse-repeats", *may),
            ]
            for key in keys:
                with server.client(key):
                    pass  # waits until the key is known
            made.append(_Side(server, keys))
        yield made[0], made[1]
        for side in made:
            for client in side.clients:
                client.close()


_CHOSEN = {"date", "x-request-id", "content-length"}
"""Headers that a server fills with what is its own; the length goes with the ids in the body."""


def test_every_store_gives_the_same_answers(sides: tuple[_Side, _Side]) -> None:
    requests = _Requests()
    statuses: dict[int, int] = {}
    codes: set[str] = set()
    sent, cursor = 0, None
    while sent < REQUESTS:
        request = requests.next(sides[0].ids)
        follow = request.pop("follow", False)
        while True:
            (status, body, headers), other = (side.send(request) for side in sides)
            sent += 1
            where = f"request {sent}: {request}"
            assert (status, body) == other[:2], where
            assert {n: v for n, v in headers.items() if n not in _CHOSEN} == {
                n: v for n, v in other[2].items() if n not in _CHOSEN
            }, where
            if (request["method"], request["path"], status) == ("POST", WEBHOOKS, 200):
                requests.webhooks.append(json.loads(body)["id"])
            statuses[status] = statuses.get(status, 0) + 1
            if status >= 400 and body:
                codes.add(json.loads(body)["error"]["code"])
            cursor = json.loads(body).get("nextCursor") if follow and status == 200 else None
            if cursor is None or request["path"].endswith(f"={cursor}"):  # the end of the feed
                break
            request = request | {"path": re.sub("(&after=.*)?$", f"&after={cursor}", request["path"], count=1)}
    print(f"\n{sent} requests, {len(sides[0].ids)} things named, {statuses}, {sorted(codes)}")  # noqa: T201
    wanted = {"400-01", "400-02", "400-03", "404-01", "405-01", "409-01", "415-01", "422-01", "422-02"}
    assert codes >= wanted, f"invalid run: these were not provoked: {wanted - codes}"
    assert len(requests.webhooks) > 20, "invalid run: hardly any webhooks"
    assert sum(len(name) == len("AAAAAAAAAAAAAAAAAAAAAA") for name in sides[0].ids) > 100, "invalid run: no feed"
    assert statuses[200] > REQUESTS / 4, f"invalid run: hardly anything succeeded: {statuses}"
