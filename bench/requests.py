"""What is asked for: the bytes of each scenario's requests, over many conversations, with texts as people write."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import httpx

V1 = "/conversation/v1"
CONVERSATIONS = 200
LISTED = 20
BATCH = 10
TEXTS = (
    "Hi",
    "Hello, I would like to upgrade my internet plan to GOLD.",
    "Sure! May I have the phone number or the account number, so that I can look it up?",
    "It's 555-0142. The name on the account should be Álvarez \N{SLIGHTLY SMILING FACE}",
    "I understand, and I am sorry about that. You'll be charged the difference for the days left, no more.",
)


def message(n: int) -> dict[str, Any]:
    """The n-th message of a conversation that never ends."""
    sender = {"role": ("customer", "agent")[n % 2], "externalId": ("jane-5550142", "agent-217")[n % 2]}
    return {
        "text": TEXTS[n % len(TEXTS)],
        "sender": sender,
        "timestamp": f"2026-01-31T12:{n // 60 % 60:02}:{n % 60:02}Z",
    }


def _file(requests: Iterable[tuple[str, str, object]], headers: dict[str, str]) -> bytes:
    """Methods, paths and bodies as load.lua reads them."""
    parts = []
    for method, path, body in requests:
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode()
        fields = headers | ({"content-type": "application/json", "content-length": str(len(data))} if data else {})
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        request = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{head}\r\n".encode() + data
        parts.append(b"%d\n%s" % (len(request), request))
    return b"".join(parts)


def prepare(client: httpx.Client, headers: dict[str, str]) -> dict[str, bytes]:
    """Create the conversations with a page of messages each; the requests of every scenario."""
    lists, reads = [], []
    for n in range(CONVERSATIONS):
        body = {"externalId": f"call-{n}", "customer": {"externalId": f"jane-{n}"}, "timestamp": "2026-01-31T12:00:00Z"}
        one = f"{V1}/conversations/{client.post(f'{V1}/conversations', json=body).json()['id']}/messages"
        made = client.post(f"{one}/batch", json={"messages": [message(n + m) for m in range(LISTED)]}).json()["ids"]
        lists.append(one)
        reads.append(f"{one}/{made[n % LISTED]}")

    def posts(suffix: str, body: Callable[[int], object]) -> bytes:
        numbers = range(5 * CONVERSATIONS)
        return _file((("POST", lists[n % CONVERSATIONS] + suffix, body(n)) for n in numbers), headers)

    return {
        "empty": _file([("GET", "/", None)], {}),
        "message": posts("", message),
        "batch": posts("/batch", lambda n: {"messages": [message(n + m) for m in range(BATCH)]}),
        "read": _file((("GET", path, None) for path in reads), headers),
        "list": _file((("GET", f"{path}?limit={LISTED}", None) for path in lists), headers),
    }
