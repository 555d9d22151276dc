"""Everything that can be read, against what was sent: whole, in pages, by the feed, by somebody else's key."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import httpx

from tests.faults.ledger import Entry
from tests.harness import V1, create_conversation, make_key, message
from tests.test_changes import walk
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    from tests.faults.site import Site
    from tests.harness import Server

CONVERSATIONS = 3
REQUESTS = 40
PAGES = (1, 3, 50)
NOWHERE = "01BX5ZZKBKACTAV9WEVGEMMVS1"


class _Sent:
    """Messages as they were acknowledged, in their order: id, timestamp, text."""

    def __init__(self, client: httpx.Client, seed: int) -> None:
        chance = random.Random(seed)  # noqa: S311 - a repeatable run, not a secret
        self.conversations: dict[str, list[tuple[str, str, str]]] = {}
        self.log: list[str] = []
        names = [create_conversation(client, f"read-{n}") for n in range(CONVERSATIONS)]
        for number in range(REQUESTS):
            name = chance.choice(names)
            times = [f"2021-11-23T12:13:{chance.randrange(10, 15)}.555Z" for _ in range(chance.choice((1, 2, 7)))]
            bodies = [message(f"{number}/{n}", timestamp=time) for n, time in enumerate(times)]
            path = f"{V1}/conversations/{name}/messages"
            answer = client.post(f"{path}/batch", json={"messages": bodies}).raise_for_status()
            ids = answer.json()["ids"]
            items = self.conversations.setdefault(name, [])
            items += [(one, body["timestamp"], body["text"]) for one, body in zip(ids, bodies, strict=True)]
            self.log += ids

    def listing(self, name: str) -> list[tuple[str, str, str]]:
        """In the order of a listing: by timestamp, then by arrival."""
        return sorted(self.conversations[name], key=lambda item: item[1])


def _pages(client: httpx.Client, path: str, limit: int) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        page = client.get(path, params=query).raise_for_status().json()
        found += [(item["messageId"], item["clientTimestamp"], item["text"]) for item in page["items"]]
        if "nextCursor" not in page:
            return found
        query["after"] = page["nextCursor"]


def _misread(client: httpx.Client, sent: _Sent) -> list[str]:
    problems = []
    for name in sent.conversations:
        path, wanted = f"{V1}/conversations/{name}/messages", sent.listing(name)
        whole = client.get(path).raise_for_status().json()["items"]
        if [(item["messageId"], item["clientTimestamp"], item["text"]) for item in whole] != wanted:
            problems.append(f"misread: the list of {name} is not what was sent")
        problems += [
            f"misread: pages of {limit} of {name} skip or repeat something"
            for limit in PAGES
            if _pages(client, path, limit) != wanted
        ]
    if sent.log != sorted(sent.log):
        problems.append("ids fall: they do not rise in the order of arrival")
    for limit in (2, 1000):
        events = [item["message"]["messageId"] for item in walk(client, limit) if "message" in item]
        if events != sent.log:
            problems.append(f"misread: pages of {limit} of the feed are not what was sent, in the order of arrival")
    return problems


def _shown_to_strangers(stranger: httpx.Client, sent: _Sent) -> list[str]:
    """I01: what is somebody else's cannot be told from what does not exist."""
    problems = []
    for name, items in sent.conversations.items():
        for path in ("", "/messages", *(f"/messages/{one}" for one, _, _ in items[:3])):
            theirs = stranger.get(f"{V1}/conversations/{name}{path}")
            nobodys = stranger.get(f"{V1}/conversations/{NOWHERE}{path}")
            if theirs.status_code != 404 or _without_id(theirs) != _without_id(nobodys):
                problems.append(f"shown to a stranger: {path or 'the conversation'} ({theirs.status_code})")
    if walk(stranger):
        problems.append("shown to a stranger: the feed has something")
    return problems


def _without_id(answer: httpx.Response) -> str:
    return answer.text.replace(answer.headers["x-request-id"], "")


def _client(server: Server, account: str) -> httpx.Client:
    key = make_key(server.url, account, account=account, permissions=PERMISSIONS)
    with server.client(key):
        pass  # waits until the key is known
    return httpx.Client(base_url=server.base, headers=key.headers, timeout=30)


def read_everything(site: Site, seed: int = 1) -> Entry:
    """Record some hundred messages, and read them in every way there is."""
    server = site.start()
    with _client(server, "default") as client, _client(server, "stranger") as stranger:
        sent = _Sent(client, seed)
        problems = _misread(client, sent) + _shown_to_strangers(stranger, sent)
    figures: dict[str, int | float | str] = {"messages": len(sent.log), "wrong": len(problems)}
    return Entry("I01 every way to read, by its owner and a stranger", site.store, figures, tuple(problems))
