"""One attempt at a webhook, for tests: made by a real sender in a loop of its own."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import uvloop

from turnlog.model import SigningSecret, Webhook
from turnlog.sending import HttpSender
from turnlog.signing import new_secret

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Coroutine, Sequence

    from turnlog.sent import Sent

LoopFactory = Callable[[], asyncio.AbstractEventLoop]
on_both_loops = pytest.mark.parametrize(
    "loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)

SECRET = new_secret(secrets.randbits)
OTHER = new_secret(secrets.randbits)
BODY = '{"type":"message.created","text":"Grüße 🙂"}'.encode()
SHORT_S = 0.6
"""A deadline for receivers that never come to an end."""
LONG_S = 30.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"


def now_us() -> int:
    return time.time_ns() // 1000


def webhook(url: str, *signing: str) -> Webhook:
    kept = tuple(SigningSecret(secret, 0) for secret in signing or (SECRET,))
    return Webhook("wh_1", "acme", url, kept, 0, 0)


def resolving(*answers: Sequence[str]) -> Callable[[str], Awaitable[Sequence[str]]]:
    """Each look-up gets the next of ``answers``; the last one is for all that follow."""
    left = list(answers)

    async def resolve(_: str) -> Sequence[str]:
        return left.pop(0) if len(left) > 1 else left[0]

    return resolve


def sending(
    work: Callable[[HttpSender], Coroutine[None, None, None]],
    loop_factory: LoopFactory = uvloop.new_event_loop,
    *,
    allow_private: bool = True,
    deadline_s: float = LONG_S,
    tls: ssl.SSLContext | None = None,
    resolve: Callable[[str], Awaitable[Sequence[str]]] | None = None,
    refuse: Callable[[str], str | None] | None = None,
) -> None:
    async def run() -> None:
        sender = HttpSender(now_us, allow_private=allow_private, deadline_s=deadline_s, tls=tls, resolve=resolve,
                            refuse=refuse)  # fmt: skip
        try:
            await work(sender)
        finally:
            await sender.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())


def outcome(
    to: Webhook,
    loop_factory: LoopFactory = uvloop.new_event_loop,
    *,
    body: bytes = BODY,
    allow_private: bool = True,
    deadline_s: float = LONG_S,
    tls: ssl.SSLContext | None = None,
    resolve: Callable[[str], Awaitable[Sequence[str]]] | None = None,
    refuse: Callable[[str], str | None] | None = None,
) -> Sent:
    """What came of one attempt."""
    found: list[Sent] = []

    async def once(sender: HttpSender) -> None:
        found.append(await sender.send(to, "ev_1", body))

    sending(once, loop_factory, allow_private=allow_private, deadline_s=deadline_s, tls=tls, resolve=resolve,
            refuse=refuse)  # fmt: skip
    return found[0]


def measured(work: Callable[[], Sent]) -> tuple[Sent, float]:
    started = time.monotonic()
    sent = work()
    return sent, time.monotonic() - started
