"""What must hold at the end of a run: nothing acknowledged lost, doubled, changed, reordered, nothing refused kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from tests.simulation.callers import RECORDED
from tests.simulation.database import LOG_NAME
from tests.simulation.world import ACCOUNTS
from turnlog.ids import LogCursors
from turnlog.model import Conversation, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.simulation.callers import History, Messages, Put
    from tests.simulation.readers import Reader
    from tests.simulation.world import World
    from turnlog.model import Entry

LATE_S = 60.0
"""How long behind its last answer what was asked for may still be carried out."""
Stored = dict[tuple[str, str], list["Entry"]]
"""By account and text, the entries that have it."""


def check_history(world: World, history: History) -> None:
    """INV, against the log."""
    stored: Stored = defaultdict(list)
    ids: Counter[str] = Counter()
    for account in ACCOUNTS:
        _check_log(world, account)
        for entry in world.log(account):
            if isinstance(entry.subject, Message):
                stored[account, entry.subject.text].append(entry)
                ids[entry.subject.id] += 1
    for one_id, times in ids.items():
        world.check(times == 1, f"the id {one_id} is there {times} times")
    sent = {(request.account, text) for request in history.messages for text in request.texts}
    for place in stored:
        world.check(place in sent, f"never sent: {place}")
    for request in history.messages:
        for problem in _wrong(world, request, stored):
            world.problem(problem)
    _check_order(world, history, stored)
    _check_puts(world, history.puts)
    _check_facts(world, history)


def _check_log(world: World, account: str) -> None:
    entries = world.log(account)
    positions = [entry.position for entry in entries]
    world.check(positions == list(range(1, len(positions) + 1)), f"{account}: the positions have gaps: {positions}")
    states: dict[str, Conversation] = {}
    for entry in entries:
        known = states.get(entry.conversation_id)
        if isinstance(entry.subject, Message):
            world.check(known is not None, f"{account}: {entry.position} comes before its conversation")
            continue
        created = entry.type == "conversation.created"
        world.check(created == (known is None), f"{account}: {entry.position} is {entry.type}")
        world.check(entry.subject != known, f"{account}: {entry.position} changes nothing")
        states[entry.conversation_id] = entry.subject
    for conversation_id, state in states.items():
        now = world.database.conversation(account, conversation_id)
        world.check(now == state, f"{account}: {conversation_id} is {now}, and {state} in the log")


def _wrong(world: World, request: Messages, stored: Stored) -> Iterator[str]:
    found = [stored.get((request.account, text), []) for text in request.texts]
    times = [len(entries) for entries in found]
    name = f"{request.texts[0]!r} (key {request.key!r}, told {[answer.code or '200' for answer in request.told]})"
    if request.must_be_refused and request.acknowledged and world.wrong_year[0] > (request.ended or 0.0):
        yield f"not refused: {name}"
    if request.refused:
        if any(times):
            yield f"refused and stored: {name}"
        return
    if len(set(times)) > 1:
        yield f"half a batch: {name}: {times}"
    at_most = _at_most(world, request)
    if times[0] > at_most:
        yield f"stored {times[0]} times: {name}"
    if not request.acknowledged:
        return
    if times[0] == 0:
        yield f"lost: {name}"
        return
    yield from (f"{problem}: {name}" for problem in _wrong_places(world, request, found))


def _wrong_places(world: World, request: Messages, found: list[list[Entry]]) -> Iterator[str]:
    """What is wrong with the ids and the places of what was acknowledged, and is there."""
    told = {tuple(answer.value) for answer in request.told if not answer.code}
    if len(told) > 1 and not _is_excused(world, request):
        yield f"several ids for one key, {told}"
    for ids in told:
        for one_id, entries in zip(ids, found, strict=True):
            if one_id not in [entry.subject.id for entry in entries]:
                yield f"acknowledged as {one_id} and not there under it"
    positions = [entries[0].position for entries in found]
    if _at_most(world, request) == 1 and positions != list(range(positions[0], positions[0] + len(positions))):
        yield f"its messages are not side by side, but at {positions}"
    if any(entry.conversation_id != request.conversation for entries in found for entry in entries):
        yield "in another conversation"


def _at_most(world: World, request: Messages) -> int:
    """How often it may be stored."""
    if (request.key is not None and not _is_excused(world, request)) or world.plan.refuse_repeats:
        return 1
    doubtful = sum(not answer.is_certain for answer in request.told)
    return doubtful + sum(answer.code in ("", RECORDED) for answer in request.told)


def _is_excused(world: World, request: Messages) -> bool:
    """A key ends after 24 hours of the wall clock: where one was put forward by a year, it ended."""
    ended = world.now_s if request.ended is None else request.ended
    since, until = world.wrong_year
    return since <= ended + LATE_S and request.began <= until


def _check_order(world: World, history: History, stored: Stored) -> None:
    """What was acknowledged before something else was sent comes before it in the log."""
    spans: list[tuple[str, int, int, float, float, str]] = []
    for request in history.messages:
        if (
            request.ids is None
            or request.at_once
            or request.has_twin
            or request.ended is None
            or _is_excused(world, request)
        ):
            continue
        entries = [stored.get((request.account, text), []) for text in request.texts]
        if all(len(one) == 1 for one in entries):
            first, last = entries[0][0].position, entries[-1][0].position
            spans.append((request.account, first, last, request.began, request.ended, request.texts[0]))
    for account in ACCOUNTS:
        earliest_end, who = float("inf"), ""
        for _, first, _, began, ended, name in sorted((one for one in spans if one[0] == account), reverse=True):
            world.check(
                earliest_end >= began, f"{account}: {name!r} at {first} was sent after {who!r} was acknowledged"
            )
            if ended < earliest_end:
                earliest_end, who = ended, name


def _check_puts(world: World, puts: list[Put]) -> None:
    ids: dict[tuple[str, str], set[str]] = defaultdict(set)
    for put in puts:
        ids[put.account, put.external_id] |= {answer.value for answer in put.told if not answer.code}
        world.check(all(answer.code[:1] != "4" for answer in put.told), f"{put.external_id} was refused: {put.told}")
    for (account, external_id), told in ids.items():
        world.check(len(told) <= 1, f"{external_id} has several ids: {told}")
        found = world.database.conversation_by_external_id(account, external_id)
        if told:
            world.check(found is not None and found.id in told, f"lost: the conversation {external_id}")
    recorded = {
        (account, entry.external_id, int((entry.subject.metadata or {})["version"]))
        for account in ACCOUNTS
        for entry in world.log(account)
        if isinstance(entry.subject, Conversation)
    }
    for put in puts:
        if any(not answer.code for answer in put.told):
            name = (put.account, put.external_id, put.version)
            world.check(name in recorded, f"lost: what {name} was changed to")
        elif put.told and all(answer.is_certain for answer in put.told):
            name = (put.account, put.external_id, put.version)
            world.check(name not in recorded, f"refused and stored: {name}")


def _check_facts(world: World, history: History) -> None:
    recorded = {account: Counter(world.database.stream_ids(account)) for account in ACCOUNTS}
    for fact in history.facts:
        times = recorded[fact.account][fact.stream_id]
        acknowledged = sum(not answer.code for answer in fact.told)
        doubtful = sum(not answer.is_certain for answer in fact.told)
        world.check(
            acknowledged <= times <= acknowledged + doubtful,
            f"{fact.stream_id} is recorded {times} times, acknowledged {acknowledged}, in doubt {doubtful}",
        )


def check_reader(world: World, reader: Reader) -> None:
    """It has seen exactly the log, in order."""
    cursors = LogCursors(LOG_NAME, reader.account)
    expected = [cursors.cursor(entry.position) for entry in reader.expected()]
    if reader.seen != expected:
        seen = [cursors.position(one) for one in reader.seen]
        wanted = [entry.position for entry in reader.expected()]
        index = next(
            (n for n, (a, b) in enumerate(zip(seen, wanted, strict=False)) if a != b), min(len(seen), len(wanted))
        )
        world.problem(f"a reader ({reader.kind}) saw {seen[index : index + 5]} and not {wanted[index : index + 5]}")
    for refusal in reader.refusals:
        world.problem(f"a reader ({reader.kind}) was refused: {refusal}")
