"""What webhooks are promised, in a simulated world: at least once, in order per conversation, whatever fails."""

from __future__ import annotations

import asyncio
import itertools
import math
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from msgspec.structs import replace

from tests.simulated import DAY_S, FAILED, HOUR_S, OK, SILENT, World, flaky, now_s, now_us, recorded_s, simulate
from turnlog.deliveries import claims
from turnlog.sent import Sent

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

TEN = [f"c{number}" for number in range(10)]
HUNDRED = [f"c{number}" for number in range(100)]


def simulated(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    def run(**arguments: object) -> None:
        simulate(test(**arguments))

    run.__name__ = test.__name__
    return run


def ask_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("CLAIM_INTERVAL_S", 120), ("CLAIM_TTL_S", 360), ("VERSION_INTERVAL_S", 120)):
        monkeypatch.setattr(claims, name, float(seconds))
    monkeypatch.setattr(claims, "LAG_INTERVAL_S", 120.0)


@pytest.fixture
def long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Days are to pass: what a node asks for every second would be all that the test does."""
    ask_rarely(monkeypatch)


@simulated
async def test_what_is_recorded_is_delivered_at_once_and_little_is_written() -> None:
    world = World()
    receiver = world.add("hook")
    deliveries = world.start("a")
    await asyncio.sleep(1)
    before = len(world.store.saves)
    await world.record_along(60, 0.01, HUNDRED)
    await asyncio.sleep(6)
    world.check("hook")
    assert len(receiver.requests) == len(world.store.entries)
    late = [at - recorded_s(world.store.entries[one - 1]) for one, at in receiver.accepted_at.items()]
    assert max(late) < 0.2
    saves = world.store.saves[before:]
    assert len(saves) <= 63
    assert not any(save.blocked or save.unblocked or save.dead or save.replayed for save in saves)
    assert deliveries.lags() == {"hook": 0}
    await world.stop()


@pytest.mark.usefixtures("long")
@simulated
async def test_a_receiver_that_was_down_for_six_hours_gets_everything_and_another_one_notices_nothing() -> None:
    world = World()
    back_at = 6 * HOUR_S
    down = world.add("down", lambda *_: OK if now_s() >= back_at else SILENT)
    down.seconds = lambda: 0.05 if now_s() >= back_at else 15.0
    well = world.add("well")
    deliveries = world.start("a")
    await world.record_along(back_at, 5.0, HUNDRED)
    assert len(down.requests) < 200  # probes, not the backlog again and again
    state = deliveries.states()["down"]
    assert state.is_down
    assert state.blocked <= 100
    await world.record_along(12 * 60, 5.0, HUNDRED)
    await asyncio.sleep(125)
    assert deliveries.lags() == {"down": 0, "well": 0}
    await asyncio.sleep(10)
    for name in ("down", "well"):
        world.check(name)
    assert not world.store.kept["down"].dead
    assert not world.store.kept["down"].blocked
    assert world.store.kept["down"].position == len(world.store.entries)
    delays = [at - 5.0 * (position - 1) for position, at in well.accepted_at.items() if position > 5]
    assert max(delays) < 2 * 0.05 + 0.02
    await world.stop()


@simulated
async def test_a_backlog_is_delivered_side_by_side_within_bounds() -> None:
    world = World()
    receiver = world.add("hook")
    world.record(HUNDRED * 50)
    world.start("a")
    await asyncio.sleep(5000 * 0.05 / 16 * 1.3)
    world.check("hook")
    assert receiver.most == 16
    await world.stop()


@pytest.mark.usefixtures("long")
@simulated
async def test_a_poisoned_conversation_blocks_itself_alone_until_it_is_given_up() -> None:
    world = World()
    receiver = world.add("hook", lambda position, _: FAILED if position == 4 else OK)
    world.start("a")
    world.record(TEN * 3)
    await asyncio.sleep(1)
    assert receiver.accepted == set(range(1, 31)) - {4, 14, 24}
    await asyncio.sleep(2)
    kept = world.store.kept["hook"]
    assert kept.position == 30
    assert kept.blocked["c3"].position == 4
    assert kept.blocked["c3"].error == "answered 500: no"
    await asyncio.sleep(2.8 * DAY_S)
    assert not kept.dead
    await asyncio.sleep(0.3 * DAY_S)
    world.record(["c3"])
    await asyncio.sleep(2)
    world.check("hook")
    assert list(kept.dead) == [4]
    assert kept.dead[4].attempts == sum(request.position == 4 for request in receiver.requests) >= 15
    assert kept.dead[4].dead_at - kept.dead[4].first_failed_at >= 3 * DAY_S * 1e6
    assert {14, 24, 31} <= receiver.accepted
    assert not kept.blocked
    assert world.outcomes["hook", "dead"] == 1
    await world.stop()


@pytest.mark.usefixtures("long")
@simulated
async def test_many_poisoned_conversations_do_not_stop_the_others() -> None:
    world = World()
    bad = {f"c{number}" for number in range(20)}
    receiver = world.add("hook", lambda _, conversation: FAILED if conversation in bad else OK)
    world.start("a")
    world.record(sorted(bad))
    await asyncio.sleep(60)
    world.record(HUNDRED)
    await asyncio.sleep(40 * 60)
    assert len(receiver.accepted) == 80
    await world.record_along(HOUR_S, 1.0, HUNDRED[20:])
    await asyncio.sleep(1)
    last = [receiver.accepted_at[position] for position in sorted(receiver.accepted)[-80:]]
    assert max(last) - min(last) < 100  # they go on as if nothing were
    await world.stop()


@pytest.mark.usefixtures("long")
@simulated
async def test_after_three_days_without_an_answer_events_are_given_up_and_younger_ones_are_delivered() -> None:
    world = World()
    back_at = 3.5 * DAY_S
    receiver = world.add("hook", lambda *_: OK if now_s() >= back_at else FAILED)
    world.start("a")
    await world.record_along(back_at - HOUR_S, 60.0, TEN)
    await asyncio.sleep(2 * HOUR_S)
    world.check("hook")
    dead = world.store.kept["hook"].dead
    ages = [back_at - recorded_s(world.store.entries[one - 1]) for one in dead]
    assert min(ages) >= 3 * DAY_S - 60
    assert len(dead) >= 0.4 * DAY_S / 60
    assert len(receiver.accepted) >= 2.9 * DAY_S / 60
    assert not world.store.kept["hook"].blocked
    await world.stop()


@pytest.mark.usefixtures("long")
@simulated
async def test_dead_letters_are_sent_again_on_request_under_their_ids() -> None:
    world = World()
    takes: set[int] = set()
    receiver = world.add("hook", lambda position, _: OK if position not in {1, 2} or position in takes else FAILED)
    world.start("a")
    world.record(TEN)
    await asyncio.sleep(3.2 * DAY_S)
    kept = world.store.kept["hook"]
    assert set(kept.dead) == {1, 2}
    attempts = kept.dead[2].attempts
    takes.add(1)
    world.store.change("hook")
    kept.dead = {position: replace(letter, replayed=True) for position, letter in kept.dead.items()}
    await asyncio.sleep(125)
    assert set(kept.dead) == {2}
    assert not kept.dead[2].replayed
    assert kept.dead[2].attempts == attempts + 1
    assert 1 in receiver.accepted
    world.check("hook")
    await world.stop()


@simulated
async def test_a_replay_from_a_position_delivers_all_behind_it_again() -> None:
    world = World()
    receiver = world.add("hook")
    world.start("a")
    world.record(TEN * 10)
    await asyncio.sleep(5)
    kept = world.store.change("hook")
    kept.position, kept.retry_from_at = 50, now_us()
    await asyncio.sleep(5)
    assert [request.position for request in receiver.requests].count(50) == 1
    assert all([request.position for request in receiver.requests].count(one) == 2 for one in range(51, 101))
    await world.stop()


@pytest.mark.usefixtures("long")
@simulated
async def test_gone_disables_and_enabling_goes_on_where_it_was() -> None:
    world = World()
    gone = True
    receiver = world.add("hook", lambda *_: Sent(410, "", 0.0) if gone else OK)
    world.start("a")
    world.record(TEN)
    await asyncio.sleep(HOUR_S)
    kept = world.store.kept["hook"]
    assert kept.webhook.disabled == "the receiver answered 410 Gone"
    assert kept.position == 0
    assert len(receiver.requests) <= 16
    gone = False
    world.store.change("hook")
    kept.webhook, kept.retry_from_at = replace(kept.webhook, disabled=None), now_us()
    await asyncio.sleep(125)
    world.check("hook")
    await world.stop()


@pytest.mark.usefixtures("long")
@simulated
async def test_retry_after_is_kept() -> None:
    world = World()
    busy_until = 3600.0
    receiver = world.add("hook", lambda *_: OK if now_s() >= busy_until else Sent(429, "", 0.0, retry_after_s=1200.0))
    world.start("a")
    world.record(["c1"])
    await asyncio.sleep(10)
    await world.record_along(2 * HOUR_S, 10.0, TEN)
    await asyncio.sleep(5)
    times = [request.at for request in receiver.requests if not request.accepted]
    assert all(later - earlier >= 1200 for earlier, later in itertools.pairwise(times))
    assert len(times) == 3, times
    world.check("hook")
    await world.stop()


@simulated
async def test_when_a_node_dies_another_takes_over_within_ten_seconds_and_nothing_is_lost() -> None:
    world = World()
    receiver = world.add("hook", seconds=0.3)
    world.start("a")
    await asyncio.sleep(3)
    world.start("b")
    recording = asyncio.create_task(world.record_along(60, 0.05, TEN))
    await asyncio.sleep(20)
    world.kill("a")
    killed_at = now_s()
    await recording
    await asyncio.sleep(30)
    assert min(at for at, owner, _ in world.attempts_of if owner == "b") - killed_at < 10
    world.check("hook")
    assert len(receiver.requests) <= len(world.store.entries) + 200
    await world.stop()


@simulated
async def test_whoever_cannot_renew_its_claim_stops_before_another_begins() -> None:
    world = World()
    world.add("hook", seconds=0.3)
    world.start("a")
    await asyncio.sleep(3)
    recording = asyncio.create_task(world.record_along(60, 0.05, TEN))
    await asyncio.sleep(10)
    asking = world.store.claim_webhooks

    async def claim_webhooks(owner: str, ttl_s: float) -> list[tuple[str, str]]:
        if owner == "a":
            await asyncio.sleep(1e6)
        return await asking(owner, ttl_s)

    world.store.claim_webhooks = claim_webhooks  # type: ignore[method-assign]
    world.start("b")
    await recording
    await asyncio.sleep(60)
    world.check("hook")
    last = max(at for at, owner, _ in world.attempts_of if owner == "a")
    first = min(at for at, owner, _ in world.attempts_of if owner == "b")
    assert last < first < last + 10
    await world.stop()


@simulated
async def test_a_store_that_does_not_answer_delays_and_no_more() -> None:
    world = World()
    world.add("hook")
    world.start("a")
    recording = asyncio.create_task(world.record_along(60, 0.1, TEN))
    await asyncio.sleep(10)
    world.store.away = True
    await asyncio.sleep(30)
    assert not [at for at, _, _ in world.attempts_of if at > 16]  # its claim may be another one's by now
    world.store.away = False
    await recording
    await asyncio.sleep(20)
    world.check("hook")
    await world.stop()


@simulated
async def test_a_stop_stores_what_was_delivered() -> None:
    world = World()
    receiver = world.add("hook", seconds=0.5)
    world.start("a")
    await asyncio.sleep(3)
    recording = asyncio.create_task(world.record_along(30, 0.05, HUNDRED))
    await asyncio.sleep(10.3)
    await world.stop()
    assert world.store.kept["hook"].owner is None
    world.start("b")
    await recording
    await asyncio.sleep(10)
    world.check("hook")
    assert len(receiver.requests) == len(world.store.entries)  # none of them twice
    await world.stop()


@simulated
async def test_a_bug_ends_no_deliveries() -> None:
    world = World()
    receiver = world.add("hook")
    taking, broken = receiver.take, True

    async def take(event_id: str) -> Sent:
        if broken:
            raise ZeroDivisionError
        return await taking(event_id)

    receiver.take = take  # type: ignore[method-assign]
    world.start("a")
    world.record(TEN)
    await asyncio.sleep(60)
    broken = False
    await asyncio.sleep(15)
    world.check("hook")
    await world.stop()


@pytest.mark.parametrize("seed", range(200))
def test_whatever_fails_at_random_the_promises_are_kept(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(_whatever_fails(seed, monkeypatch))


async def _whatever_fails(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(seed)  # noqa: S311
    world = World(seed)
    calm_at = 500.0
    badness = random.choice([0.02, 0.2, 0.6])
    outage_at, outage_s = random.uniform(0, 300), random.choice([0.0, 60.0, 200.0])

    def behave(_position: int, _conversation: str) -> Sent:
        if now_s() >= calm_at:
            return OK
        if outage_at <= now_s() < outage_at + outage_s:
            return SILENT
        if random.random() < badness:
            return random.choice([FAILED, SILENT, Sent(None, "lost", 0.0), Sent(503, "", 0.0, retry_after_s=7.0)])
        return OK

    receiver = world.add("hook", behave)
    receiver.seconds = lambda: random.choice([0.01, 0.1, 3.0]) if now_s() < calm_at else 0.01
    world.store.fault = flaky(random, random.choice([0.0, 0.05, 0.3]))
    conversations = [f"c{number}" for number in range(random.choice([1, 10, 60]))]
    world.start("n0")
    recording = asyncio.create_task(world.record_along(300, random.choice([0.3, 2.0]), conversations))
    for number in range(1, 5):
        await asyncio.sleep(random.uniform(10, 90))
        if random.random() < 0.5:
            world.start(f"n{number}")
            world.kill(f"n{number - 1}")
        else:
            await world.stop()
            world.start(f"n{number}")
    await recording
    await asyncio.sleep(max(0.0, calm_at - now_s()))
    world.store.fault = lambda _call: None
    await asyncio.sleep(10)  # a claim that is renewed ends as it was made
    ask_rarely(monkeypatch)
    await asyncio.sleep(2 * HOUR_S)
    world.check("hook")
    kept = world.store.kept["hook"]
    assert not kept.dead
    assert not kept.blocked
    assert kept.position == len(world.store.entries)
    assert math.isclose(receiver.most, 16, abs_tol=16)
    await world.stop()
