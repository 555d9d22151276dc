"""What the importer (importing.py) asks of the place where messages go.

Every target keeps the promise that what it returns from is durable.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Protocol

from turnlog.errors import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from turnlog.model import NewConversation, NewMessage

PATIENCE_S = 60.0
"""How long a target tries again without a single success of any of its threads."""
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 30.0


class RefusedError(Exception):
    """The target will not have it; ``status`` is the contract's. Half of a refused batch may still be welcome."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Patience:
    """When to try again, and when to give up; shared by the threads of a target."""

    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._succeeded_at = time.monotonic()

    def succeeded(self) -> None:
        """Somebody got through: the others may hope."""
        self._succeeded_at = time.monotonic()

    def end(self) -> None:
        """Nobody tries again: the caller is leaving."""
        self._stopped.set()

    def wait(self, attempt: int, since: float, retry_after_s: float, problem: str) -> None:
        """Wait before attempt number ``attempt`` + 1 of what began at ``since``. Raises SettingError instead."""
        waited_s = time.monotonic() - max(since, self._succeeded_at)
        pause_s = min(max(retry_after_s, _FIRST_PAUSE_S * 2 ** min(attempt, 6)), _LONGEST_PAUSE_S)
        if waited_s + pause_s > PATIENCE_S or self._stopped.wait(pause_s):
            raise SettingError(problem)


class Target(Protocol):
    """Where messages go. Up to ``workers`` threads call at once; what a call returns from is durable.

    Raises SettingError where nothing more can be done: after patience, where patience may help.
    """

    workers: int
    patience: Patience

    def find(self, external_id: str) -> str | None:
        """The id of the conversation with this external id."""

    def create(self, new: NewConversation) -> None:
        """Create the conversation under the id that ``new`` brings, again without harm.

        Raises RefusedError: with 409 where another conversation has the external id, which then stays as it is.
        """

    def recorded(self, conversation_id: str) -> Iterator[NewMessage]:
        """Every message of the conversation."""

    def record(self, conversation_id: str, messages: Sequence[NewMessage], idempotency_key: str) -> None:
        """Record all or none, and once for a key however often it is tried. Raises RefusedError."""
