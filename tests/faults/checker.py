"""What a run came to: conversations are checked one after another as they are closed, the log in one pass at the end.

So a run of any length takes little memory: of what was checked only a digest stays, to be held against the log.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import TYPE_CHECKING

from tests.history import check, falling_ids, read_listings
from tests.sse import CHANGES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.history import Caller, Request

PAGE = 1000
KINDS = {
    "lost": ("lost", "misplaced", "half a batch"),
    "duplicated": ("duplicated", "recorded twice"),
    "reordered": ("reordered", "ids fall"),
    "refused but stored": ("refused and recorded",),
    "changed": ("changed", "changed ids"),
    "unexpected": ("never sent",),
}
"""How problems are counted: by what stands before their colon."""


class Checker:
    """Collects what is wrong with closed conversations, and what they held."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.acknowledged = 0
        """Messages whose requests were acknowledged, and which were checked."""
        self.refused = 0
        """Requests that were refused, and of which nothing may be stored."""
        self._digests: dict[str, str] = {}

    async def closed(self, caller: Caller, requests: Iterable[Request], conversations: list[str]) -> None:
        """Check conversations that nobody sends to any more."""
        requests = list(requests)
        listings = await read_listings(caller, conversations, PAGE)
        self.problems += check(requests, listings) + falling_ids(listings)
        self.acknowledged += sum(len(one.texts) for one in requests if one.outcome == "acknowledged")
        self.refused += sum(one.outcome == "refused" for one in requests)
        for name, items in listings.items():
            digest = hashlib.blake2b()
            for one_id, _ in items:
                digest.update(one_id.encode())
            self._digests[name] = digest.hexdigest()

    async def log(self, caller: Caller) -> int:
        """Check that the feed has what was listed, in that order, and nothing twice; how many events it has."""
        digests = {name: hashlib.blake2b() for name in self._digests}
        count, after, last = 0, "", ""
        while True:
            status, page = await caller.ask("GET", f"{CHANGES}?limit={PAGE}{after}")
            assert status == 200, page
            for item in page["items"]:
                count += 1
                if "message" in item and item["conversationId"] in digests:
                    digests[item["conversationId"]].update(item["message"]["messageId"].encode())
            after, before = f"&after={page['nextCursor']}", last
            last = page["nextCursor"]
            if last == before:
                break
        self.problems += [
            f"feed: {name} is not what is listed, in the order of arrival"
            for name, digest in digests.items()
            if digest.hexdigest() != self._digests[name]
        ]
        return count


def count(problems: Iterable[str]) -> dict[str, int]:
    """How many problems of each kind; every kind is there."""
    found = Counter(problem.partition(":")[0] for problem in problems)
    return {kind: sum(found[name] for name in names) for kind, names in KINDS.items()}
