"""A sender that is made when there is something to send.

Its library, aiohttp, takes a third of a server's start, and most servers have no webhook.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING

from turnlog.sent import Sender, Sent

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.model import Webhook
    from turnlog.sending import HttpSender


class LateSender(Sender):
    """An HttpSender from the first ``send`` on; see there."""

    def __init__(self, now_us: Callable[[], int], *, allow_private: bool) -> None:
        self._now_us = now_us
        self._allow_private = allow_private
        self._sender: HttpSender | None = None
        self._closed = False

    async def send(self, webhook: Webhook, event_id: str, body: bytes) -> Sent:
        """See Sender."""
        if self._sender is None:
            sending = await asyncio.to_thread(import_module, "turnlog.sending")  # others are answered meanwhile
            if self._sender is None:  # several may have waited for it
                self._sender = sending.HttpSender(self._now_us, allow_private=self._allow_private)
                if self._closed:
                    await self._sender.close()
        return await self._sender.send(webhook, event_id, body)

    async def close(self) -> None:
        """Close every connection; what is under way fails, and so does what comes later."""
        self._closed = True
        if self._sender is not None:
            await self._sender.close()
