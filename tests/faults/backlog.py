"""W03: a receiver that hangs, with a long backlog: what those who record, and another receiver, notice of it."""

from __future__ import annotations

import json
import time
from statistics import median
from typing import TYPE_CHECKING

from tests.faults.crowds import Others
from tests.faults.ledger import Entry
from tests.faults.overload import percentile
from tests.harness import V1, create_conversation, make_key, message, wait_for
from tests.receiver import Receiver, hang, status
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    import httpx

    from tests.faults.open_loop import Seen
    from tests.faults.site import Site

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of the specification's example
WEBHOOKS = "/turnlog/v1/webhooks"
CONVERSATIONS = 30
BATCH = 100
PER_S = 50
"""In one conversation, whose events are delivered one after the other."""
PATIENCE_S = 60
LEAST_PER_S = 200
"""Events a second that one who has come back is given, whatever else the machine does."""


def dead_receiver(
    site: Site, *, backlog: int = 100_000, windows: int = 3, seconds: float = 5, most: float = 2.0
) -> Entry:
    """Windows with the dead one and its whole backlog, and windows without; then it comes back and is given all."""
    server = site.start(TURNLOG_ALLOW_PRIVATE_WEBHOOKS="true")
    key = make_key(server.url, "hooks", permissions=PERMISSIONS)
    others = Others(server, key, per_s=PER_S)
    delays: dict[bool, list[float]] = {False: [], True: []}
    with Receiver(SECRET) as good, Receiver(SECRET) as dead, server.client(key) as client:
        before = _fill(client, backlog)
        _subscribe(client, good.url, after="now")
        for window in range(2 * windows):
            beside = bool(window % 2)
            dead.behaviour = hang
            webhook_id = _subscribe(client, dead.url, after="beginning") if beside else ""
            if beside:
                dead.wait(len(dead.received) + 1)
            seen = others.look(seconds, beside=beside)
            delays[beside].append(percentile(_delays(seen, good), 0.99))
            if beside and window < 2 * windows - 1:
                client.delete(f"{WEBHOOKS}/{webhook_id}").raise_for_status()
        hung = len(dead.received)
        dead.behaviour = status(200)
        began_at = time.monotonic()
        missing = _missing(dead, before)
        back_s = time.monotonic() - began_at
    problems = [f"{len(missing)} of the backlog never came to the receiver that had been dead"] if missing else []
    alone, with_it = median(delays[False]), median(delays[True])
    ratio = round(with_it / max(alone, 1.0), 2)
    if ratio > most:
        problems.append(f"the other receiver waits {ratio} times as long, at most {most}")
    figures = others.figures() | {
        "backlog": len(before),
        "requests that hung": hung,
        "delay p99 alone ms": alone,
        "delay p99 beside ms": with_it,
        "delay ratio": ratio,
        "all of it delivered after s": round(back_s, 1),
    }
    return Entry(
        "W03 a dead receiver with a backlog", site.store, figures, (*others.problems(most), *problems),
        "" if hung else "nothing was sent to the dead one",
    )  # fmt: skip


def _fill(client: httpx.Client, count: int) -> set[str]:
    """Ids of so many messages, spread over conversations."""
    ids: set[str] = set()
    paths = [
        f"{V1}/conversations/{create_conversation(client, f'backlog-{n}')}/messages/batch" for n in range(CONVERSATIONS)
    ]
    for number in range(count // BATCH):
        body = {"messages": [message(f"{number}-{n}") for n in range(BATCH)]}
        answer = client.post(paths[number % CONVERSATIONS], json=body)
        answer.raise_for_status()
        ids.update(answer.json()["ids"])
    return ids


def _subscribe(client: httpx.Client, url: str, *, after: str) -> str:
    answer = client.post(WEBHOOKS, json={"url": url, "secret": SECRET, "after": after})
    answer.raise_for_status()
    return str(answer.json()["id"])


def _message_ids(receiver: Receiver) -> dict[str, float]:
    """By message, when it first came."""
    came: dict[str, float] = {}
    for one in receiver.received:
        if "message" in (event := one.event):
            came.setdefault(event["message"]["messageId"], one.at)
    return came


def _delays(seen: Seen, receiver: Receiver) -> list[float]:
    """From when a message was due to be sent until its event had come, in seconds."""
    due = {json.loads(one.ids)["id"]: seen.began_at + one.due_at_s for one in seen.asked if one.status == 200}
    wait_for(lambda: due.keys() <= _message_ids(receiver).keys(), PATIENCE_S)
    came = _message_ids(receiver)
    return [came[one] - due_at for one, due_at in due.items()]


def _missing(receiver: Receiver, wanted: set[str]) -> set[str]:
    """What has not come to a receiver that is alive again: it is probed, and everything that waits goes out."""
    try:
        receiver.wait(len(receiver.received) + len(wanted), PATIENCE_S + len(wanted) / LEAST_PER_S)
        wait_for(lambda: wanted <= _message_ids(receiver).keys(), PATIENCE_S)
    except AssertionError:
        return wanted - _message_ids(receiver).keys()
    return set()
