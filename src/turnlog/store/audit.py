"""What a check of a whole store (``turnlog check``) comes to."""

from __future__ import annotations

import msgspec


class Findings(msgspec.Struct):
    """How much of each kind there is, and what is wrong: one line each, none where all is well."""

    counts: dict[str, int] = msgspec.field(default_factory=dict)
    problems: list[str] = msgspec.field(default_factory=list)


def log_problem(account: str, entries: int, last: int, twice: int, told: int | None = None) -> str | None:
    """What is wrong with an account's log of so many entries up to ``last``, of which so many have another's position.

    Positions are whole numbers from 1 on, so a log without a gap is one that has as many entries as its last says.
    ``told`` is the last position by the account's own counter, where there is one.
    """
    if twice:
        return f"account {account}: {twice} positions of the log are taken twice"
    if entries != last:
        return f"account {account}: the log has {entries} entries up to position {last}"
    if told not in (None, last):
        return f"account {account}: the log ends at position {last}, and its counter says {told}"
    return None
