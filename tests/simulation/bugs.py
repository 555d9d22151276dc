"""Deliberate bugs, planted into the code under test for as long as ``planted`` lasts: the simulation must see them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from turnlog import writer
from turnlog.deliveries import attempts, claims, retrying, storing, window
from turnlog.errors import OverloadedError
from turnlog.feed import Feed
from turnlog.ids import Ulids
from turnlog.service import Listing
from turnlog.store.plan import Plan, UsedKey
from turnlog.store.protocol import AppendMessages, LogPart
from turnlog.store.sqlite.append import Appender
from turnlog.store.sqlite.log import Log
from turnlog.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Bug = tuple[object, str, "Callable[[Any], object]"]
"""Where, the name of what is replaced, and what it becomes, given what it was."""


def _ack_before_commit(commit: Any) -> object:
    async def bug(self: Any, lane: Any, batch: list[Any]) -> None:
        for waiting in batch:
            if isinstance(waiting.write, AppendMessages) and not waiting.answer.done():
                waiting.answer.set_result(waiting.write.ids)
        await commit(self, lane, batch)

    return bug


def _expired_is_recorded(_expire: Any) -> object:
    def bug(self: Any) -> None:
        too_late = self._now_s() - self._deadline_s
        for lane in self._lanes.values():
            for waiting in lane.queue:
                if waiting.submitted_at < too_late and not waiting.answer.done():
                    waiting.answer.set_exception(OverloadedError("too long"))
        self._watch = self._loop.call_later(0.1, self._expire)

    return bug


def _nobody_expires(_expire: Any) -> object:
    return lambda _self: None


def _late_is_acknowledged(_deliver: Any) -> object:
    def bug(_self: Any, batch: list[Any], outcomes: list[object]) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if not waiting.answer.done():
                if isinstance(outcome, Exception):
                    waiting.answer.set_exception(outcome)
                else:
                    waiting.answer.set_result(outcome)

    return bug


def _unbounded(init: Any) -> object:
    def bug(self: Any, *given: Any, **named: Any) -> None:
        init(self, *given, **{**named, "max_rows": 1_000_000})

    return bug


def _key_not_recorded(append: Any) -> object:
    def bug(self: Any, write: AppendMessages) -> object:
        ids = append(self, write)
        if write.idempotency is not None:
            self.keys.pop(write.idempotency.key, None)
        return ids

    return bug


def _key_only_stored(append: Any) -> object:
    def bug(self: Any, write: AppendMessages) -> object:
        if write.idempotency is not None:
            self.keys.pop(write.idempotency.key, None)
        return append(self, write)

    return bug


def _any_request(append: Any) -> object:
    """The key stands for whatever comes with it."""

    def bug(self: Any, write: AppendMessages) -> object:
        if write.idempotency is not None:
            key, fingerprint = write.idempotency.key, write.idempotency.fingerprint
            used = self.keys.get(key) or self.known.keys.get(key)
            if used is not None:
                self.keys[key] = UsedKey(fingerprint, used.ids, used.created_at)
        return append(self, write)

    return bug


def _own_ids(append: Any) -> object:
    """A retry is told its own ids, not the first ones."""

    def bug(self: Any, write: AppendMessages) -> object:
        append(self, write)
        return write.ids

    return bug


def _half_a_batch(add: Any) -> object:
    def bug(self: Any, write: AppendMessages, conversation: int) -> None:
        for index in range(max(1, len(write.messages) - 1)):
            self._add_one(write, index, conversation)

    return bug


def _skips(part: Any) -> object:
    async def bug(self: Any, account: str, wanted: Any, after: int, limit: int = 200) -> LogPart:
        found = await part(self, account, wanted, after, limit)
        return LogPart(found.entries, await self.end(account) if found.reached > after else after)

    return bug


def _repeats(place: Any) -> object:
    async def bug(self: Any, *given: Any) -> int:
        return max(0, int(await place(self, *given)) - 1)

    return bug


def _missed_move(next_move: Any) -> object:
    return lambda self, account, _seen: next_move(self, account, self._moves[account].count)


def _learns_too_early(carry_out: Any) -> object:
    def bug(self: Any, groups: Any, outcomes: Any) -> object:
        plans = carry_out(self, groups, outcomes)
        self._learn(plans)
        return plans

    return bug


def _failed_is_done(_block: Any) -> object:
    return lambda self, entry, _sent: self.window.done(entry)


def _not_busy(take: Any) -> object:
    def bug(self: Any) -> object:
        entry = take(self)
        if entry is not None:
            self.busy.discard(entry.conversation_id)
            self._ready.append(entry.conversation_id)
        return entry

    return bug


def _counted_from_behind(_claimed: Any) -> object:
    def bug(self: Any, _until: float) -> None:
        _claimed(self, self._means.monotonic_s() + claims.CLAIM_TTL_S + claims.CLAIM_MARGIN_S)

    return bug


def _short_part(part: Any) -> object:
    def bug(self: Any, *given: Any, **named: Any) -> LogPart:
        found = part(self, *given, **named)
        return LogPart(found.entries, found.reached + 1) if len(found.entries) == 1 else found

    return bug


def _no_step(new: Any) -> object:
    def bug(self: Any) -> object:
        self._ms = -1
        return new(self)

    return bug


def _one_too_few(part: Any) -> object:
    async def bug(self: Any) -> object:
        found = await part(self)
        return found._replace(items=found.items[:-1]) if len(found.items) > 1 else found

    return bug


BUGS: dict[str, Bug] = {
    "acknowledged before the commit": (Writer, "_commit", _ack_before_commit),
    "what expired in the queue is recorded still": (Writer, "_expire", _expired_is_recorded),
    "nothing expires": (Writer, "_expire", _nobody_expires),
    "acknowledged behind the deadline": (Writer, "_deliver", _late_is_acknowledged),
    "the queue is not bounded": (Writer, "__init__", _unbounded),
    "an unknown outcome is called a refusal": (writer, "_unknown", lambda _: lambda: OverloadedError("not stored")),
    "a key is not recorded": (Plan, "_append_messages", _key_not_recorded),
    "a key twice in one batch": (Plan, "_append_messages", _key_only_stored),
    "a key used again for another request": (Plan, "_append_messages", _any_request),
    "a retry gets ids of its own": (Plan, "_append_messages", _own_ids),
    "the last message of a batch is forgotten": (Plan, "_add", _half_a_batch),
    "SQLite: learnt from what was rolled back": (Appender, "_carry_out", _learns_too_early),
    "SQLite: a reader skips": (Log, "part", _short_part),
    "ids fall back with the clock": (Ulids, "new", _no_step),
    "a listing leaves one out": (Listing, "part", _one_too_few),
    "the feed skips to the end": (Feed, "part", _skips),
    "the feed repeats the last event": (Feed, "place", _repeats),
    "a move between two looks is missed": (Feed, "next_move", _missed_move),
    "a webhook's cursor is what was read": (window.Window, "cursor", lambda _: property(lambda self: self.read_to)),
    "what is done takes room": (
        window.Window,
        "room",
        lambda _: property(lambda self: window.WINDOW_EVENTS - self.read_to),
    ),
    "a failed event counts as delivered": (attempts.Attempts, "block", _failed_is_done),
    "two events of a conversation at once": (window.Window, "take", _not_busy),
    "a claim is not asked for": (claims.Worker, "_may_send", lambda _: lambda _self: True),
    "a claim is counted from behind": (claims.Worker, "claimed", _counted_from_behind),
    "progress that was not saved is dropped": (window.Window, "back", lambda _: lambda _self, _progress: None),
    "blocked conversations stay": (retrying.Retrying, "is_due", lambda _: lambda _self, _now: False),
    "another owner's session goes on": (storing, "_goes_on", lambda _: lambda _before, _now: True),
}

RARE = frozenset(
    {
        "a claim is counted from behind",
        "progress that was not saved is dropped",
        "another owner's session goes on",
        "a move between two looks is missed",
    }
)
"""Those that take many seeds; the others are seen within seconds."""


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While this lasts, the code under test has the bug."""
    where, what, replacement = BUGS[name]
    with patch.object(where, what, replacement(vars(where)[what])):
        yield
