"""Following a log in its store: a reader of another process than those that record, which it does not hold up."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from turnlog.errors import Error, OverloadedError, SettingError
from turnlog.feed import Feed
from turnlog.following.protocol import Event
from turnlog.http.events import event_json
from turnlog.model import EVERYTHING
from turnlog.store.connect import open_keys, open_log, shown
from turnlog.store.protocol import StoreUnavailableError

if TYPE_CHECKING:
    from turnlog.following.protocol import Say, Take, Wanted
    from turnlog.ids import LogCursors
    from turnlog.model import LogFilter

_LOOK_AGAIN_S = 1.0
_FIRST_STEP = 256
_STEP_FACTOR = 8


async def follow_store(url: str, account: str, wanted: Wanted, take: Take, say: Say) -> None:
    """Give ``take`` the log of ``account``; returns at its end where it is not to be followed.

    Raises SettingError where there is no such store or account, or no such place in its log, and where the store does
    not answer at the start; later it is waited for.
    """
    try:
        async with open_log(url) as reader:
            feed = Feed(reader)
            cursors = await feed.cursors(account)
            if await feed.end(account) == 0:
                await _check_account(url, account)
            place = await _first_place(feed, account, wanted)
            take((), cursors.cursor(place))
            following = asyncio.create_task(reader.follow(feed.moved))
            try:
                await _follow(feed, cursors, account, wanted, place, take, say)
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
    except StoreUnavailableError as error:
        raise SettingError(f"the store {shown(url)} does not answer: {error}") from None
    except Error as error:
        raise SettingError(error.message) from None


async def _check_account(url: str, account: str) -> None:
    """An empty log may be that of an account that there is not."""
    async with open_keys(url) as kept:
        if account not in {record.key.account for record in await kept.keys()}:
            raise SettingError(f"the store {shown(url)} has no account {account!r}")


async def _first_place(feed: Feed, account: str, wanted: Wanted) -> int:
    if wanted.after is not None:
        return await feed.place(account, wanted.after, "Option '--after'")
    start, end = await feed.place(account, None), await feed.end(account)
    if wanted.last == 0:
        return max(start, end)
    return await _before_the_last(feed, account, wanted.filter, wanted.last, start, end)


async def _before_the_last(feed: Feed, account: str, wanted: LogFilter, last: int, start: int, end: int) -> int:
    """The position before the last so many entries that are ``wanted``, found backwards in growing steps.

    Positions have no gaps, so that the first step is the only one where everything is wanted.
    """
    step = last if wanted == EVERYTHING else max(last, _FIRST_STEP)
    high, left = end, last
    while high > start:
        low = max(start, high - step)
        found: deque[int] = deque(maxlen=left)
        place = low
        while place < high:
            part = await feed.part(account, wanted, place)
            found += [entry.position for entry in part.entries if entry.position <= high]
            if part.reached == place:
                break
            place = part.reached
        left -= len(found)
        if left == 0:
            return found[0] - 1
        high, step = low, step * _STEP_FACTOR
    return start


async def _follow(
    feed: Feed, cursors: LogCursors, account: str, wanted: Wanted, place: int, take: Take, say: Say
) -> None:
    away = False
    while True:
        seen = feed.moves(account)
        try:
            part = await feed.part(account, wanted.filter, place)
        except OverloadedError:
            if not wanted.follow:
                raise
            if not away:
                say("the store does not answer: waiting for it")
            away = True
            await asyncio.sleep(_LOOK_AGAIN_S)
            continue
        if away:
            say("the store answers again")
            away = False
        if part.reached > place:
            place = part.reached
            events = []
            for entry in part.entries:
                event_id = cursors.cursor(entry.position)
                events.append(Event(event_id, event_json(entry, event_id)))
            take(events, cursors.cursor(place))
        elif not wanted.follow:
            return
        else:
            await feed.wait(account, seen, _LOOK_AGAIN_S)
