"""Recording comes first, and what readers took while nothing was recorded is nobody's debt."""

from __future__ import annotations

import asyncio
import time

from turnlog.pace import Pace

SOON_S = 5
"""Far more than what anybody should wait, and far less than the debts below."""


def test_what_was_read_while_nothing_was_recorded_delays_nobody_later() -> None:
    async def scenario() -> None:
        pace = Pace(time.monotonic)
        for _ in range(100):
            await pace.turn()
            pace.spent(1.0)
        pace.recorded()
        async with asyncio.timeout(SOON_S):
            await pace.turn()

    asyncio.run(scenario())


def test_one_long_turn_does_not_keep_the_others_waiting_for_long() -> None:
    async def scenario() -> None:
        pace = Pace(time.monotonic)
        pace.recorded()
        pace.spent(60.0)
        async with asyncio.timeout(SOON_S):
            await asyncio.gather(*(pace.turn() for _ in range(20)))

    asyncio.run(scenario())


def test_while_messages_are_recorded_readers_take_their_share_and_no_more() -> None:
    """On a clock of its own: ten turns of a tenth of a second leave the rest of the time to recording."""

    async def scenario() -> float:
        now = [0.0]
        pace = Pace(lambda: now[0], share=0.5)
        loop = asyncio.get_running_loop()
        for _ in range(100):
            pace.recorded()
            turn = loop.create_task(pace.turn())
            for _ in range(100):
                await asyncio.sleep(0)
            waited = 0
            while not turn.done():
                now[0] += 0.01
                pace.recorded()
                waited += 1
                await asyncio.sleep(0.001)
                assert waited < 1000
            now[0] += 0.01
            pace.spent(0.01)
        return now[0]

    # A hundred turns of 10 ms each, and as much time again for recording, but for the burst at the beginning.
    assert asyncio.run(scenario()) > 1.8


def test_who_waits_goes_in_the_order_of_coming() -> None:
    async def scenario() -> list[int]:
        pace = Pace(time.monotonic)
        pace.recorded()
        pace.spent(0.01)
        order: list[int] = []

        async def take(number: int) -> None:
            await pace.turn()
            order.append(number)

        async with asyncio.timeout(SOON_S):
            await asyncio.gather(*(take(number) for number in range(10)))
        return order

    assert asyncio.run(scenario()) == list(range(10))
