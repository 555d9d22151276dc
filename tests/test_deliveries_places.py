"""How far deliveries go, and where they pause: what a receiver asked for, another one, a log put back, an account.

In the world of tests/simulated.py.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from functools import partial
from typing import TYPE_CHECKING

import pytest
import structlog
from msgspec.structs import replace

from tests.simulated import DAY_S, FAILED, HOUR_S, OK, SILENT, US, World, now_s, now_us, simulate
from tests.test_deliveries import HUNDRED, TEN, simulated
from turnlog.deliveries.claims import ACCOUNT_REQUESTS
from turnlog.model import DeadLetter
from turnlog.sent import Sent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.simulation.webhooks import Kept

HOLD = Sent(429, "", 0.0, retry_after_s=HOUR_S)


def _letter(position: int, conversation: str) -> DeadLetter:
    return DeadLetter(position, "message.created", conversation, 9, 1, 2, "no", replayed=True)


@simulated
async def test_a_quick_receiver_gets_more_than_a_window_between_two_saves() -> None:
    world = World()
    receiver = world.add("hook")
    receiver.seconds = lambda: 0.001
    world.record(HUNDRED * 50)
    world.start("a")
    await asyncio.sleep(10)
    world.check("hook")
    assert world.store.kept["hook"].position == len(world.store.entries)
    await world.stop()


@simulated
async def test_replays_go_on_behind_a_retry_after_without_anything_new() -> None:
    world = World()
    refusals = [Sent(429, "", 0.0, retry_after_s=1.0)] * 16
    receiver = world.add("hook")
    world.start("a")
    conversations = [f"c{number}" for number in range(40)]
    world.record(conversations)
    await asyncio.sleep(5)
    receiver.behave = lambda *_: refusals.pop() if refusals else OK
    kept = world.store.change("hook")
    kept.dead = {index + 1: _letter(index + 1, name) for index, name in enumerate(conversations)}
    await asyncio.sleep(20)
    assert len(kept.dead) == 16  # one attempt each
    assert not any(letter.replayed for letter in kept.dead.values())
    assert len(receiver.requests) == 80
    await world.stop()


@simulated
async def test_another_url_is_another_receiver() -> None:
    world = World()
    receiver = world.add("hook", lambda *_: HOLD)
    world.start("a")
    world.record(TEN)
    await asyncio.sleep(5)
    assert world.store.kept["hook"].hold_until > now_us()
    receiver.behave = lambda *_: OK
    kept = world.store.change("hook")
    kept.webhook, kept.hold_until = replace(kept.webhook, url="https://healthy.example"), 0
    kept.blocked = {name: replace(blocked, next_at=0) for name, blocked in kept.blocked.items()}
    await asyncio.sleep(10)
    assert receiver.accepted == set(range(1, 11))
    await world.stop()


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_receiver_asked_for_holds_for_the_next_process(killed: bool) -> None:
    simulate(_what_a_receiver_asked_for_holds_for_the_next_process(killed))


async def _what_a_receiver_asked_for_holds_for_the_next_process(killed: bool) -> None:
    world = World()
    receiver = world.add("hook", lambda *_: HOLD if now_s() < HOUR_S else OK)
    world.start("a")
    world.record(TEN)
    await asyncio.sleep(5)
    asked = len(receiver.requests)
    last_at = receiver.requests[-1].at
    if killed:
        world.kill("a")
    else:
        await world.stop()
    world.start("b")
    world.record(TEN)
    await asyncio.sleep(HOUR_S + 60)
    later = receiver.requests[asked:]
    assert later[0].at >= last_at + HOUR_S
    assert later[1].at >= later[0].at + 0.05  # one goes first
    world.check("hook")
    await world.stop()


@simulated
async def test_no_hold_is_longer_than_a_day_whatever_a_clock_said() -> None:
    world = World()
    receiver = world.add("hook")
    world.store.kept["hook"].hold_until = now_us() * 2
    world.start("a")
    world.record(TEN)
    await asyncio.sleep(23 * HOUR_S)
    assert not receiver.requests
    await asyncio.sleep(2 * HOUR_S)
    world.check("hook")
    await world.stop()


@pytest.mark.parametrize("step_s", [-HOUR_S, HOUR_S, 365 * DAY_S])
@pytest.mark.parametrize("killed", [False, True])
def test_a_clock_that_was_wrong_and_is_put_right_delays_nothing_for_long(step_s: float, killed: bool) -> None:
    """T01. Within six minutes, however far it was ahead: also for the process that finds what was stored meanwhile."""
    simulate(_a_clock_that_was_wrong_and_is_put_right_delays_nothing_for_long(step_s, killed))


async def _a_clock_that_was_wrong_and_is_put_right_delays_nothing_for_long(step_s: float, killed: bool) -> None:
    world = World()
    world.add("hook", lambda _, conversation: FAILED if now_s() < 20 and conversation == "c3" else OK)
    world.start("a")
    world.record(TEN)
    await asyncio.sleep(3)
    world.clock_ahead_us = int(step_s * US)
    world.record(TEN)
    await asyncio.sleep(15)
    world.clock_ahead_us = 0
    if killed:
        world.kill("a")
        world.start("b")
    await asyncio.sleep(6 * 60 + 12)
    world.check("hook")
    assert not world.store.kept["hook"].dead
    await world.stop()


@simulated
async def test_a_clock_that_goes_forward_by_a_year_gives_nothing_up() -> None:
    """T01."""
    world = World()
    receiver = world.add("hook", lambda _, conversation: FAILED if now_s() < 60 and conversation == "c3" else OK)
    world.start("a")
    world.record(TEN)
    await asyncio.sleep(10)
    world.clock_ahead_us = int(365 * DAY_S * US)
    await asyncio.sleep(180)
    assert not world.store.kept["hook"].dead
    assert receiver.accepted == set(range(1, 11))
    await world.stop()


def _put_back(world: World, end: int) -> Kept:
    """The log, to an earlier time."""
    del world.store.entries[end:]
    for positions in world.store.of_conversation.values():
        del positions[bisect_right(positions, end) :]
    for receiver in world.receivers.values():
        receiver.accepted = {position for position in receiver.accepted if position <= end}
    return world.store.kept["hook"]


@pytest.mark.parametrize("told", [False, True])
def test_what_is_recorded_in_a_log_that_was_put_back_is_delivered(told: bool) -> None:
    simulate(_what_is_recorded_in_a_log_that_was_put_back_is_delivered(told))


async def _what_is_recorded_in_a_log_that_was_put_back_is_delivered(told: bool) -> None:
    """Nothing is sent while it goes back. ``told``: it is longer than it was by the time that it is looked at."""
    world = World()
    world.add("hook")
    world.start("a")
    world.record(TEN * 10)
    await asyncio.sleep(5)
    kept = _put_back(world, 60)
    kept.position = 60
    if told:
        world.store.generation += 1
    world.record(TEN * 8 if told else TEN)
    await asyncio.sleep(5)
    world.check("hook")
    assert kept.position == len(world.store.entries)
    await world.stop()


@simulated
async def test_what_was_under_way_when_the_log_was_put_back_is_not_stored() -> None:
    world = World()
    receiver = world.add("hook")
    world.start("a")
    world.record(TEN * 10)
    await asyncio.sleep(5)
    receiver.seconds = 3.0
    world.record(TEN)
    await asyncio.sleep(1)
    kept = _put_back(world, 60)
    kept.position = 60
    world.store.generation += 1
    await asyncio.sleep(10)
    assert kept.position == 60
    world.record(TEN)
    await asyncio.sleep(10)
    assert set(range(61, 71)) <= receiver.accepted
    assert kept.position == 70
    await world.stop()


@simulated
async def test_a_cursor_that_is_ahead_of_the_log_begins_at_its_end() -> None:
    world = World()
    world.add("hook", lambda position, _: SILENT if position > 95 else OK)
    world.start("a")
    world.record(TEN * 10)
    await asyncio.sleep(5)
    kept = world.store.kept["hook"]
    assert kept.blocked
    await world.stop()
    world.receivers["hook"].behave = lambda *_: OK
    _put_back(world, 60)
    kept.dead = {90: _letter(90, "c9")}
    with structlog.testing.capture_logs() as logs:
        world.start("b")
        await asyncio.sleep(5)
    assert [one["end"] for one in logs if one["event"] == "webhook_cursor_ahead"] == [60]
    assert (kept.position, kept.blocked) == (60, {})
    assert kept.dead[90].error == "not in the log any more"
    kept.dead = {}
    world.record(TEN * 2)
    await asyncio.sleep(5)
    world.check("hook")
    await world.stop()


@simulated
async def test_an_account_has_so_many_requests_under_way_and_no_more() -> None:
    world = World()
    names = [f"hook{number}" for number in range(20)]
    open_now = most = 0

    async def counted(taking: Callable[[str], Awaitable[Sent]], event_id: str) -> Sent:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            return await taking(event_id)
        finally:
            open_now -= 1

    for name in names:
        receiver = world.add(name, lambda *_: SILENT if now_s() < 100 else OK, seconds=15.0)
        receiver.take = partial(counted, receiver.take)  # type: ignore[method-assign]
    world.start("a")
    world.record([f"c{number}" for number in range(40)])
    await asyncio.sleep(HOUR_S)
    assert most == ACCOUNT_REQUESTS
    for name in names:
        world.check(name)
    await world.stop()


@simulated
async def test_whoever_waits_for_its_account_sends_nothing_once_its_claim_is_over() -> None:
    world = World()
    names = [f"hook{number}" for number in range(20)]
    for name in names:
        world.add(name, lambda *_: SILENT, seconds=15.0)
    world.start("a")
    world.record([f"c{number}" for number in range(40)])
    await asyncio.sleep(5)
    world.store.away = True
    await asyncio.sleep(60)
    assert len(world.attempts_of) == ACCOUNT_REQUESTS
    world.store.away = False
    await world.stop()
