"""What came of one attempt to deliver an event, and who makes it: the specification of sending, without a library."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from turnlog.model import Webhook


class Sent(msgspec.Struct, frozen=True):
    """The outcome of an attempt. ``status`` is the receiver's; ``None`` where it gave none, and ``error`` says why.

    ``retry_after_s``: what the receiver asked for. ``excerpt``: the beginning of its answer's body, for people.
    """

    status: int | None
    error: str
    seconds: float
    retry_after_s: float | None = None
    excerpt: str = ""

    @property
    def delivered(self) -> bool:
        """Whether the receiver took it: any 2xx."""
        return self.status is not None and 200 <= self.status < 300


class Sender(Protocol):
    """Makes one attempt at a time for each call."""

    async def send(self, webhook: Webhook, event_id: str, body: bytes) -> Sent:
        """POST ``body`` to the webhook's address, signed. Raises nothing: whatever goes wrong is an outcome.

        Bounded in time and size, whatever the receiver does.
        """
