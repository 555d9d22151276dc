"""What the connections of a server share: who is there, what is under way, and what each of them needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.config import Config
    from turnlog.http.connection import Connection
    from turnlog.http.steps import Steps
    from turnlog.metrics import Metrics


class Traffic:
    """One for all connections. ``new_id`` makes the ids of what never became a request."""

    def __init__(self, limits: Config, new_id: Callable[[], str], metrics: Metrics) -> None:
        self.limits = limits
        self.new_id = new_id
        self.metrics = metrics
        self.connections: set[Connection] = set()
        self.under_way: set[Steps] = set()
        self.stopping = False
        """Whether nobody is to stay."""
        self.standing = b""
        """The header lines that every answer has at the time: ``date``, and over TLS ``strict-transport-security``."""

    @property
    def is_over(self) -> bool:
        """Whether nobody is connected and nothing is under way."""
        return not self.connections and not self.under_way
