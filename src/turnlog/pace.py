"""Recording comes first: those who read the log along together take a share of the event loop's time and no more.

While nothing is recorded there is no limit. What a reader has not read it finds in the log later.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SHARE = 0.1
"""Of the event loop's time, for all readers together while messages are recorded."""
_BUSY_S = 0.1
"""How long after a batch its server counts as recording."""
_SEND_S = 20e-6
_SEND_S_PER_BYTE = 0.5e-9
_LONGEST_S = 0.1
"""How long readers wait for their next turn at the most, whatever the last one took."""
_BURST_S = 0.005
"""How far readers may run ahead of their share, so that many short turns need no timer each."""


class Pace:
    """Turns for readers, first come, first served."""

    def __init__(self, monotonic_s: Callable[[], float], share: float = SHARE) -> None:
        self._now_s = monotonic_s
        self._cost = 1 / share - 1
        self._loop = asyncio.get_running_loop()
        self._busy_until = 0.0
        self._free_at = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._releasing = False

    def recorded(self) -> None:
        """A batch was recorded just now."""
        self._busy_until = self._now_s() + _BUSY_S

    async def turn(self) -> None:
        """Return when it is the caller's turn; others always have theirs in between."""
        now = self._now_s()
        if now >= self._busy_until and not self._waiting:
            await asyncio.sleep(0)
            return
        turn = self._loop.create_future()
        self._waiting.append(turn)
        if not self._releasing:
            self._releasing = True
            self._loop.call_soon(self._release)
        try:
            await turn
        except BaseException:
            turn.cancel()
            raise

    def spent(self, seconds: float) -> None:
        """A turn took so long. While nothing is recorded nobody is kept waiting by it, then or later."""
        now = self._now_s()
        if now < self._busy_until:
            self._free_at = min(max(self._free_at, now) + seconds * self._cost, now + _LONGEST_S)

    def sent(self, count: int) -> None:
        """A reader was sent ``count`` bytes: about what the system takes for that."""
        self.spent(_SEND_S + count * _SEND_S_PER_BYTE)

    def _release(self) -> None:
        """Let the next one go on, then look again: at once while there is time left, else when there is."""
        while self._waiting and self._waiting[0].done():
            self._waiting.popleft()
        if not self._waiting:
            self._releasing = False
            return
        now = self._now_s()
        wait_s = min(self._free_at - _BURST_S, self._busy_until) - now
        if wait_s > 0:
            self._loop.call_later(wait_s, self._release)
            return
        self._waiting.popleft().set_result(None)
        self._loop.call_soon(self._release)
