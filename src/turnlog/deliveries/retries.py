"""When to try again: schedules, and what is known of a receiver from how its last attempts went. No I/O."""

from __future__ import annotations

import heapq
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING

from turnlog.instants import US_PER_S

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.sent import Sent

TRIED_FOR_US = 3 * 86_400 * US_PER_S
"""How long an event is tried before it becomes a dead letter."""
PAUSES_S = (5, 30, 120, 600, 1800, 3600, 7200, 14_400, 21_600)
"""Between the attempts of one event, while its receiver takes others; the last one from there on.

Which one it is depends on how long the event has been failing, not on how often: where a receiver was down, the probes
that happened to be made with an event say nothing about that event."""
FIRST_PROBE_S = 5
LAST_PROBE_S = 300
"""Between attempts at a receiver that takes nothing: doubles from the first to the last, so that one that is back is
found out within six minutes."""
JITTER = 0.2
FAILURES_IN_A_ROW = 5
"""So many conversations that fail for the first time, with no success between: the receiver is down, not an event."""
MAX_RETRY_AFTER_S = 86_400
LONG_OUTAGE_US = 3600 * US_PER_S
"""How long a receiver has to be seen down before what was never tried can be given up for its age."""
_MAX_ERROR_CHARS = 300
_STEPS_US = [int(s * (1 - JITTER) * US_PER_S) for s in accumulate(PAUSES_S)]


class Receiver:
    """Whether a receiver takes anything, and from when on it may be asked.

    Only first failures count towards "down": an event that it refused before says nothing new when it is refused
    again, and a handful of poisoned conversations would otherwise stop everything.
    """

    def __init__(self, random: Callable[[], float], now: int = 0, hold_until: int = 0) -> None:
        self.hold_until = min(hold_until, now + MAX_RETRY_AFTER_S * US_PER_S)
        """It asked for nothing to be sent before (Retry-After)."""
        self.down_since = now if self.hold_until > now else None
        self.probe_at = 0
        self.probes = 0
        self._failures = 0
        self._up_since = 0
        self._random = random

    def delivered(self, now: int) -> bool:
        """It took something; whether it was down until then."""
        was_down = self.down_since is not None
        if was_down:
            self._up_since = now
        self._failures = self.probes = 0
        self.down_since = None
        return was_down

    def failed(self, sent: Sent, now: int, *, first: bool) -> bool:
        """It did not take an event; whether it counts as down from now on.

        ``first``: the event is of a conversation that was well until then.
        """
        asked_s = sent.retry_after_s if sent.status in {429, 503} else None
        if asked_s is not None:
            self.hold_until = max(self.hold_until, now + int(min(max(asked_s, 0), MAX_RETRY_AFTER_S) * US_PER_S))
        self._failures += first
        if self.down_since is not None or (self._failures < FAILURES_IN_A_ROW and self.hold_until <= now):
            return False
        self.down_since = now  # also where it asked for a pause: behind that it gets one request, not all at once
        self._next_probe(now)
        return True

    def probed(self, now: int) -> None:
        """A probe was made, with whatever outcome."""
        if self.down_since is not None:
            self.probes += 1
            self._next_probe(now)

    def is_long_down(self, now: int) -> bool:
        """Whether it has been seen down for so long that its age alone ends an event."""
        return self.down_since is not None and now - self.down_since >= LONG_OUTAGE_US

    def next_try(self, since: int, now: int) -> int:
        """When an event is due that has been failing ``since``, and just now."""
        if self.down_since is not None:
            return max(now, self.probe_at, self.hold_until)
        step = bisect_right(_STEPS_US, now - max(since, self._up_since))
        return max(now + self._jittered(PAUSES_S[min(step, len(PAUSES_S) - 1)]), self.hold_until)

    def latest_try(self, since: int, now: int) -> int:
        """No event is due later that has been failing ``since``: if one seems to be, a clock was wrong."""
        step = bisect_right(_STEPS_US, now - since)
        pause_s = max(PAUSES_S[min(step, len(PAUSES_S) - 1)], LAST_PROBE_S) * (1 + JITTER)
        return max(now + int(pause_s * US_PER_S), self.hold_until)

    def move(self, step_us: int) -> None:
        """The clock was put forward by ``step_us``, or back."""
        self.hold_until += step_us if self.hold_until else 0
        self.probe_at += step_us if self.probe_at else 0
        self._up_since += step_us if self._up_since else 0
        if self.down_since is not None:
            self.down_since += step_us

    def _next_probe(self, now: int) -> None:
        self.probe_at = now + self._jittered(min(FIRST_PROBE_S * 2 ** min(self.probes, 10), LAST_PROBE_S))

    def _jittered(self, seconds: float) -> int:
        return int(seconds * (1 - JITTER + 2 * JITTER * self._random()) * US_PER_S)


class Due:
    """Names, each with the instant at which its turn comes."""

    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []

    def put(self, name: str, at: int) -> None:
        """``name``'s turn comes ``at``, whenever it was to come before."""
        if self._at.get(name) != at:
            self._at[name] = at
            heapq.heappush(self._heap, (at, name))

    def drop(self, name: str) -> None:
        """``name`` has no turn any more."""
        self._at.pop(name, None)

    def all_now(self, now: int) -> None:
        """Everybody's turn comes at once, in the order that they had."""
        for name in sorted(self._at, key=self._at.__getitem__):
            if self._at[name] > now:
                self.put(name, now)

    def move(self, by: int) -> None:
        """All turns come ``by`` later, which may be negative."""
        self._at = {name: at + by for name, at in self._at.items()}
        self._heap = [(at, name) for name, at in self._at.items()]
        heapq.heapify(self._heap)

    def next_at(self) -> int | None:
        """When the next turn comes."""
        heap = self._heap
        while heap and self._at.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def take(self, now: int | None) -> str | None:
        """The name whose turn it is by ``now``, which then has none any more; ``None``: the next one, due or not."""
        at = self.next_at()
        if at is None or (now is not None and at > now):
            return None
        name = heapq.heappop(self._heap)[1]
        del self._at[name]
        return name


def reason(sent: Sent) -> str:
    """Why an attempt failed, for people."""
    text = sent.error or f"answered {sent.status}"
    if sent.excerpt:
        text = f"{text}: {sent.excerpt}"
    return text[:_MAX_ERROR_CHARS].replace("\0", "\N{REPLACEMENT CHARACTER}")
