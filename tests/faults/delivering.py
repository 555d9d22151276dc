"""W01: the server is killed while a receiver holds some deliveries up; none of them may be missing afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.faults.ledger import Entry
from tests.harness import V1, create_conversation, make_key, message, wait_for
from tests.receiver import Receiver, hang, status
from tests.stores import rows
from tests.test_changes import walk
from turnlog.model import PERMISSIONS

if TYPE_CHECKING:
    import httpx

    from tests.faults.site import Site
    from tests.harness import Server

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # noqa: S105 - of the specification's example
MESSAGES = 12
PATIENCE_S = 15


def _record(client: httpx.Client, name: str, texts: list[str]) -> None:
    for text in texts:
        client.post(f"{V1}/conversations/{name}/messages", json=message(text)).raise_for_status()


def _cursor(server: Server) -> int:
    """How far the store says that its one webhook has been delivered."""
    ((position,),) = rows(server.url, "SELECT position FROM webhook")
    return int(position)


def deliver_through_kills(site: Site, kills: int = 1) -> Entry:
    """Two conversations; one of them is held up, the other goes on, and the server is killed, so many times."""
    server = site.start(TURNLOG_ALLOW_PRIVATE_WEBHOOKS="true")
    key = make_key(server.url, "hooks", permissions=PERMISSIONS)
    with Receiver(SECRET) as receiver:
        with server.client(key) as client:
            body = {"url": receiver.url, "secret": SECRET, "after": "beginning"}
            client.post("/turnlog/v1/webhooks", json=body).raise_for_status()
            names = [create_conversation(client, name) for name in ("held up", "well")]
            receiver.wait(2)
        for kill in range(kills):
            seen = len(receiver.received)
            receiver.next.append(hang)  # takes the next event and answers nothing
            with server.client(key) as client:
                _record(client, names[0], [f"{kill}: {n}" for n in range(MESSAGES)])
                receiver.wait(seen + 1)
                _record(client, names[1], [f"{kill}: {n}" for n in range(MESSAGES)])
            receiver.wait(seen + 1 + MESSAGES)
            before = _cursor(server)
            _until_saved(server, before)
            server.kill()
            receiver.behaviour = status(200)
            server.start()
        with server.client(key) as client:
            items = walk(client, 1000)
        wanted = {item["id"]: item for item in items}
        missing = _missing(receiver, wanted)
        problems = [f"lost: {len(missing)} events were never delivered"] if missing else []
        first = list(dict.fromkeys(one.id for one in receiver.received))
        for name in names:
            order = [one for one in wanted if wanted[one]["conversationId"] == name and one not in missing]
            if [one for one in first if one in wanted and wanted[one]["conversationId"] == name] != order:
                problems.append("reordered: events of a conversation came in another order")
        again = len(receiver.received) - len(first)
    figures: dict[str, int | float | str] = {
        "kills": kills,
        "events": len(items),
        "delivered again": again,
        "wrong": len(problems),
    }
    invalid = "" if again else "no delivery was cut off: none came again"
    return Entry("W01 webhooks through kill -9", site.store, figures, tuple(problems), invalid)


def _until_saved(server: Server, before: int) -> None:
    """Progress is stored within a second; the cursor need not have moved by that."""
    try:
        wait_for(lambda: _cursor(server) != before, timeout_s=2)
    except AssertionError:
        return


def _missing(receiver: Receiver, wanted: dict[str, Any]) -> set[str]:
    try:
        wait_for(lambda: {one.id for one in receiver.received} >= set(wanted), PATIENCE_S)
    except AssertionError:
        return set(wanted) - {one.id for one in receiver.received}
    return set()
