"""L02. What must be in no log, metric or error, looked for in everything that the servers of a whole run say.

The suite's messages have the text ``Hello!`` where a test does not care, and each secret begins with what secrets begin
with: either, anywhere but in an answer to who may read it, is a leak. The run fails at its end and shows where.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx

_MARKS = re.compile(r"Hello!|turnlog_sk_|whsec_[A-Za-z0-9+/]{8}")
"""What a message about secrets says of their beginning is no secret."""


class Canary:
    """What was looked through, and the leaks that were found."""

    def __init__(self) -> None:
        self.looked_through = 0
        self.leaks: list[str] = []

    def look(self, text: str, where: str) -> None:
        """Look through something that a server said."""
        self.looked_through += 1
        for mark in _MARKS.finditer(text):
            self.leaks.append(f"{where}: {text[max(0, mark.start() - 200) : mark.start() + 100]!r}")

    def look_at_error(self, answer: httpx.Response) -> None:
        """Look through an answer, where it is an error: the others are for their callers to read."""
        if answer.status_code >= 400:
            answer.read()
            self.look(answer.text, f"the {answer.status_code} of {answer.request.method} {answer.request.url.path}")


canary = Canary()
"""The run's."""
