"""Carries out a coroutine without a task: its first step at once, each other when what it waits for is done.

A task begins in the next turn of the event loop, and costs as much as the whole of parsing a recorded message. Python
3.12 has this as ``eager_start``; 3.11, which is supported, does not. A coroutine that is carried out this way may
await futures, tasks and ``asyncio.sleep(0)``; what asks for the current task (``asyncio.timeout``) has to make one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Coroutine


class Steps:
    """One coroutine under way; it is in ``running`` until it has ended. What it raises goes to the loop's handler."""

    __slots__ = ("_awaited", "_cancelled", "_coroutine", "_loop", "_running")

    def __init__(
        self, coroutine: Coroutine[Any, None, None], loop: asyncio.AbstractEventLoop, running: set[Steps]
    ) -> None:
        self._coroutine = coroutine
        self._loop = loop
        self._running = running
        self._awaited: asyncio.Future[Any] | None = None
        self._cancelled = False
        running.add(self)
        self._step()

    def cancel(self) -> None:
        """Raise CancelledError where the coroutine waits."""
        if self._awaited is None or not self._awaited.cancel():
            self._cancelled = True

    def _step(self, _done: asyncio.Future[Any] | None = None) -> None:
        self._awaited = None
        try:
            if self._cancelled:
                self._cancelled = False
                awaited = self._coroutine.throw(asyncio.CancelledError())
            else:
                awaited = self._coroutine.send(None)
        except (StopIteration, asyncio.CancelledError):
            self._running.discard(self)
        except BaseException as error:
            self._running.discard(self)
            if not isinstance(error, Exception):
                raise
            self._loop.call_exception_handler({"message": "a request was not carried out", "exception": error})
        else:
            self._awaited = awaited
            if awaited is None:
                self._loop.call_soon(self._step)
            else:
                awaited.add_done_callback(self._step)
