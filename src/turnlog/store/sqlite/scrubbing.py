"""The scheduled check: every page of the file against its checksum, a little at a time, beside everything else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from turnlog.store.protocol import StoreDamagedError
from turnlog.store.sqlite.damage import damaged_pages, tell_pages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from turnlog.store.sqlite.pages import Pages

_SLICE_PAGES = 256
"""Half a millisecond of one core."""
_PAUSE_S = 0.05
"""10 MiB a second: a store of 10 million messages in six minutes, for 1 % of one core."""
_LOOKS = 5
_LOOKS_APART_S = 0.1
"""A page may be in the middle of being written, and a disk may be away for a moment."""


class Scrubber:
    """Goes over the file's pages again and again; ``on_damage`` hears of what is not what was written."""

    def __init__(self, path: Path, pages: Pages, on_damage: Callable[[StoreDamagedError], None]) -> None:
        self._path = path
        self._pages = pages
        self._on_damage = on_damage
        self.rounds = 0
        """How often every page has been looked at."""

    async def run(self, interval_s: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """A round every ``interval_s``, until there is damage."""
        while True:
            async for damaged in scrub(self._path, self._pages, sleep):
                if damaged:
                    self._on_damage(StoreDamagedError(tell_pages(damaged)))
                    return
                await sleep(_PAUSE_S)
            self.rounds += 1
            await sleep(interval_s)


async def scrub(path: Path, pages: Pages, sleep: Callable[[float], Awaitable[None]]) -> AsyncIterator[list[int]]:
    """The damaged pages of each slice of the file, from its beginning to its end."""
    first = 1
    while first <= len(pages):
        damaged = await asyncio.to_thread(damaged_pages, pages, path, first, _SLICE_PAGES)
        for _ in range(_LOOKS - 1):
            if not damaged:
                break
            await sleep(_LOOKS_APART_S)
            damaged = [page for page in damaged if damaged_pages(pages, path, page, 1)]
        yield damaged
        first += _SLICE_PAGES
