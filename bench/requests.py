"""What is asked for: the bytes of each scenario's requests, over many conversations, with texts as people write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import httpx

V1 = "/conversation/v1"
CONVERSATIONS = 200
LONG_CONVERSATIONS = 10
LONG = 1000
LISTED = 20
PAGE = 100
TEXTS = (
    "Hi",
    "Hello, I would like to upgrade my internet plan to GOLD.",
    "Sure! May I have the phone number or the account number, so that I can look it up?",
    "It's 555-0142. The name on the account should be Álvarez \N{SLIGHTLY SMILING FACE}",
    "I understand, and I am sorry about that. You'll be charged the difference for the days left, no more.",
)
ROLES = ("customer", "agent")
SENDERS = ("jane-5550142", "agent-217")


def message(n: int) -> dict[str, Any]:
    """The n-th message of a conversation that never ends."""
    return {
        "text": TEXTS[n % len(TEXTS)],
        "sender": {"role": ROLES[n % 2], "externalId": SENDERS[n % 2]},
        "timestamp": f"2026-01-31T12:{n // 60 % 60:02}:{n % 60:02}Z",
    }


def batch(n: int, size: int) -> dict[str, Any]:
    """``size`` messages from the n-th on."""
    return {"messages": [message(n + m) for m in range(size)]}


class Conversation(NamedTuple):
    """The path of its messages, and the ids of the first of them."""

    path: str
    ids: Sequence[str]


def request_file(requests: Iterable[tuple[str, str, object]], headers: dict[str, str]) -> bytes:
    """Methods, paths and bodies as load.lua reads them."""
    parts = []
    for method, path, body in requests:
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        fields = headers | ({"content-type": "application/json", "content-length": str(len(data))} if data else {})
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        request = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{head}\r\n".encode() + data
        parts.append(b"%d\n%s" % (len(request), request))
    return b"".join(parts)


def empty() -> bytes:
    """What the empty callable is asked: a bare GET, so that the ceiling is as high as it can be."""
    return request_file([("GET", "/", None)], {})


def create(client: httpx.Client, number: int, name: str, messages: int) -> list[Conversation]:
    """New conversations with messages in them."""
    made = []
    for n in range(number):
        external_id = f"{name}-{n}"
        body = {"externalId": external_id, "customer": {"externalId": "jane"}, "timestamp": "2026-01-31T12:00:00Z"}
        answer = client.post(f"{V1}/conversations", json=body).raise_for_status().json()
        path = f"{V1}/conversations/{answer['id']}/messages"
        ids: list[str] = []
        while len(ids) < messages:
            body = batch(n + len(ids), min(messages - len(ids), 250))
            ids += client.post(f"{path}/batch", json=body).raise_for_status().json()["ids"]
        made.append(Conversation(path, ids))
    return made


def known(client: httpx.Client, ids: Iterable[str]) -> list[Conversation]:
    """Conversations that are there, as the server lists them."""
    made = []
    for conversation in ids:
        path = f"{V1}/conversations/{conversation}/messages"
        items = client.get(f"{path}?limit={LISTED}").raise_for_status().json()["items"]
        made.append(Conversation(path, [item["messageId"] for item in items]))
    return made


def cursors(client: httpx.Client, conversation: str) -> list[str]:
    """The paths of pages at every depth of a long conversation, found by walking through it once."""
    path = f"{V1}/conversations/{conversation}/messages"
    pages, after = [f"{path}?limit={PAGE}"], ""
    while True:
        page = client.get(f"{path}?limit={LONG}{after}").raise_for_status().json()
        if "nextCursor" not in page:
            return pages
        after = f"&after={page['nextCursor']}"
        pages.append(f"{path}?limit={PAGE}{after}")


def prepare(
    headers: dict[str, str], conversations: Sequence[Conversation], long: Sequence[Conversation]
) -> dict[str, bytes]:
    """The requests of every scenario, by name."""
    paths = [one.path for one in conversations]
    reads = [f"{one.path}/{one.ids[n % len(one.ids)]}" for n, one in enumerate(conversations)]

    def post(n: int, body: object, suffix: str = "") -> tuple[str, str, object]:
        return "POST", paths[n % len(paths)] + suffix, body

    def get(n: int, paths: Sequence[str], query: str = "") -> tuple[str, str, object]:
        return "GET", paths[n % len(paths)] + query, None

    def mixed(n: int) -> tuple[str, str, object]:
        """Eight of ten write; of the other two, one reads a message and one lists."""
        if n % 10 < 8:
            return post(n, message(n))
        return get(n // 10, reads) if n % 10 == 8 else get(n // 10, paths, f"?limit={LISTED}")

    def file(number: int, request: Callable[[int], tuple[str, str, object]]) -> bytes:
        return request_file(map(request, range(number)), headers)

    many = 5 * len(paths)
    return {
        "message": file(many, lambda n: post(n, message(n))),
        "batch10": file(many, lambda n: post(n, batch(n, 10), "/batch")),
        "batch300": file(len(paths), lambda n: post(n, batch(n, 300), "/batch")),
        "read": file(len(reads), lambda n: get(n, reads)),
        "list20": file(len(paths), lambda n: get(n, paths, f"?limit={LISTED}")),
        "list1000": file(len(long), lambda n: get(n, [one.path for one in long], f"?limit={LONG}")),
        "mixed": file(2 * many, mixed),
    }
