"""Who takes part, and in what."""

from __future__ import annotations

from typing import NamedTuple

from bench.requests import LISTED, LONG, PAGE


class Scenario(NamedTuple):
    """``requests`` names an entry of ``prepare``; ``items`` is how many messages one request is about."""

    title: str
    requests: str
    connections: int
    items: int = 1

    @property
    def among(self) -> str:
        """How many ask."""
        return "1 connection" if self.connections == 1 else f"{self.connections} connections"


class Contestant(NamedTuple):
    """Its scenarios, in a whole run and in a quick one."""

    title: str
    scenarios: tuple[str, ...]
    quick: tuple[str, ...]


# In the order of their turns: what is compared comes together.
SCENARIOS = {
    "empty-1": Scenario("an empty answer", "empty", 1),
    "message-1": Scenario("record one message", "message", 1),
    "raw-1": Scenario("one synced insert, without HTTP", "", 1),
    "empty-16": Scenario("an empty answer", "empty", 16),
    "message-16": Scenario("record one message", "message", 16),
    "empty-64": Scenario("an empty answer", "empty", 64),
    "message-64": Scenario("record one message", "message", 64),
    "half-64": Scenario("record one message, at half load", "message", 64),
    "empty-256": Scenario("an empty answer", "empty", 256),
    "message-256": Scenario("record one message", "message", 256),
    "batch10-64": Scenario("record a batch of 10", "batch10", 64, 10),
    "batch300-16": Scenario("record a batch of 300", "batch300", 16, 300),
    "read-64": Scenario("read one message", "read", 64),
    "list20-64": Scenario(f"list {LISTED}", "list20", 64, LISTED),
    "list1000-16": Scenario(f"list {LONG:,}", "list1000", 16, LONG),
    "page100-4": Scenario(f"a page of {PAGE} at any depth of a long conversation", "page100", 4, PAGE),
    "mixed-64": Scenario("mixed, 80 % record, 20 % read", "mixed", 64),
}
HALF, FULL = "half-64", "message-64"

_ALL = ("message-1", "message-16", FULL, "message-256", "batch10-64", "batch300-16", "read-64", "list20-64",
        "list1000-16", "mixed-64")  # fmt: skip
_FEW = ("message-1", FULL, "batch300-16", "read-64", "list20-64")
_TEXTBOOK = ("message-1", FULL, "batch10-64", "read-64", "list20-64")
_STORED = (FULL, "read-64", "list20-64", "page100-4")
CONTESTANTS = {
    "empty": Contestant("empty ASGI callable", ("empty-1", "empty-16", "empty-64", "empty-256"), ("empty-64",)),
    "sqlite": Contestant("Turnlog, SQLite", (*_ALL[:3], HALF, *_ALL[3:]), (*_FEW[:2], HALF, *_FEW[2:])),
    "sqlite-stored": Contestant("Turnlog, SQLite, {stored} stored", _STORED, _STORED),
    "postgresql": Contestant("Turnlog, PostgreSQL", _ALL, _FEW),
    "postgresql-4": Contestant(
        "Turnlog, PostgreSQL, 4 workers",
        (FULL, "message-256", "batch10-64", "read-64", "list20-64", "mixed-64"),
        (FULL, "read-64"),
    ),
    "textbook-sqlite": Contestant("textbook service, SQLite", _TEXTBOOK, (FULL, "read-64")),
    "textbook-postgresql": Contestant("textbook service, PostgreSQL", _TEXTBOOK, (FULL, "read-64")),
    "raw-sqlite": Contestant("raw inserts, SQLite", ("raw-1",), ("raw-1",)),
    "raw-postgresql": Contestant("raw inserts, PostgreSQL", ("raw-1",), ("raw-1",)),
}


def million(messages: int) -> str:
    """A number of messages in words: 10,000,000 is ``10 million``."""
    return (
        f"{messages // 1_000_000} million" if messages >= 1_000_000 and messages % 1_000_000 == 0 else f"{messages:,}"
    )


def title(contestant: str, stored: int) -> str:
    """What the reader calls it."""
    return CONTESTANTS[contestant].title.format(stored=million(stored))
