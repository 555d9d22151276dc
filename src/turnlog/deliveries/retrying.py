"""What failed before is sent again; what was tried for too long is given up.

Blocked conversations are sent until they have caught up, dead letters once, on request.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from turnlog.deliveries.attempts import GONE
from turnlog.deliveries.retries import TRIED_FOR_US, reason
from turnlog.errors import GoneError
from turnlog.model import EVERYTHING, Blocked

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

    from turnlog.deliveries.attempts import Attempts
    from turnlog.model import DeadLetter, Entry
    from turnlog.sent import Sent

CATCH_UP_EVENTS = 50
"""Of one blocked conversation, before others have their turn."""
GIVEN_UP_AT_A_PROBE = 10_000
"""Events that were never tried, whose age ends them while their receiver is down, for each probe that fails."""
MANY_DEAD = 500
"""Dead letters that wait to be stored: no more are made then."""
_CONVERSATIONS_AT_A_PROBE = 100
_LOOKED_AT = 32
_LATER_US = 1_000_000


class Retrying:
    """The side of a session that deals with what failed."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._window = attempts.window
        self._receiver = attempts.receiver
        self._replays: deque[DeadLetter] = deque(attempts.delivery.replays)
        self._replaying: set[int] = set()
        self._may_give_up = 0

    # What is to be done.

    def is_due(self, now: int) -> bool:
        """Whether ``begin`` has something to do, as long as the receiver is up."""
        due_at = self._window.due.next_at()
        return (due_at is not None and due_at <= now) or self._next_replay() is not None

    def begin(self, now: int) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """The next thing to be done."""
        conversation = self._take(now)
        if conversation is not None:
            return partial(self._catch_up, conversation, CATCH_UP_EVENTS)
        return self.replay()

    @property
    def is_possible(self) -> bool:
        """Whether there is something to probe a receiver with that is down."""
        return self._window.due.next_at() is not None or self._next_replay() is not None

    def replay(self) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """One attempt with the next dead letter that somebody wants sent again."""
        index = self._next_replay()
        if index is None:
            return None
        letter = self._replays[index]
        del self._replays[index]
        self._window.busy.add(letter.conversation)
        self._replaying.add(letter.position)
        return partial(self._replay, letter)

    def probe(self) -> Callable[[], Coroutine[Any, Any, None]] | None:
        """One attempt for a blocked conversation, whenever its turn would be: the one that has waited longest."""
        conversation = self._take(None)
        return None if conversation is None else partial(self._catch_up, conversation, 1)

    def expect(self, replays: tuple[DeadLetter, ...]) -> None:
        """These dead letters are to be sent again."""
        known = {*self._replaying, *self._window.replayed, *(letter.position for letter in self._window.dead)}
        self._replays = deque(letter for letter in replays if letter.position not in known)

    @property
    def replays_settled(self) -> bool:
        """Whether all dead letters that were to be sent again have been, for better or worse."""
        return not self._replays and not self._replaying

    def _take(self, now: int | None) -> str | None:
        window = self._window
        conversation = window.due.take(now)
        if conversation is None:
            return None
        if conversation in window.busy:  # with a dead letter that is being sent again
            window.due.put(conversation, self._attempts.now_us() + _LATER_US)
            return None
        window.busy.add(conversation)
        return conversation

    def _next_replay(self) -> int | None:
        """The index of a dead letter whose conversation is not busy; not all of them are looked at."""
        for index, letter in enumerate(islice(self._replays, _LOOKED_AT)):
            if letter.conversation not in self._window.busy:
                return index
        return None

    # Blocked conversations.

    async def _catch_up(self, conversation: str, most: int) -> None:
        """Send what waits of a blocked conversation, in its order: until one fails, or it is not blocked any more."""
        attempts, window = self._attempts, self._window
        was_down = self._receiver.down_since is not None
        reached = window.blocked[conversation].position - 1
        waiting: deque[Entry] = deque()
        while most:
            if not waiting and reached < window.limit(conversation):
                reached, waiting = await self._read_on(conversation, reached)
                continue
            if not waiting or waiting[0].position > window.limit(conversation):
                window.busy.discard(conversation)
                window.caught_up(conversation)
                return
            await attempts.means.turn()
            if self._receiver.down_since is not None and not was_down:
                break
            sent = await attempts.send(entry := waiting.popleft(), first=False)
            if sent is None:
                break
            blocked = _at(window.blocked[conversation], entry)
            most -= 1
            if sent.delivered:
                window.change(self._behind(blocked, entry))
            elif sent.status == GONE or not self._failed_again(entry, blocked, sent):
                break
        self._leave(conversation)

    async def _read_on(self, conversation: str, reached: int) -> tuple[int, deque[Entry]]:
        wanted = msgspec.structs.replace(self._attempts.wanted, conversation_id=conversation)
        part = await self._attempts.part(wanted, reached)
        if part.reached == reached:  # the log ends here, and what has been read of it behind here is nothing
            return max(reached, self._window.limit(conversation)), deque()
        return part.reached, deque(part.entries)

    def _leave(self, conversation: str) -> None:
        """The conversation stays blocked; its turn comes when its row says."""
        self._window.busy.discard(conversation)
        self._window.due.put(conversation, self._window.blocked[conversation].next_at)

    def _behind(self, blocked: Blocked, entry: Entry) -> Blocked:
        """The conversation as it is once ``entry`` is done: its next event was not tried yet."""
        now = self._attempts.now_us()
        since = now if self._receiver.down_since is None else blocked.first_failed_at  # its age may end it, too
        return Blocked(blocked.conversation, entry.position + 1, 0, since, now, blocked.error)

    def _failed_again(self, entry: Entry, blocked: Blocked, sent: Sent) -> bool:
        """Keep that the first event of a blocked conversation failed; whether its next one may be sent now."""
        attempts, now = self._attempts, self._attempts.now_us()
        count, error = blocked.attempts + 1, reason(sent)
        since = blocked.first_failed_at if blocked.attempts else now
        by_age = not blocked.attempts and self._receiver.is_long_down(now)
        until = attempts.tried_until(entry, None if by_age else since)
        if now >= until:
            self._window.dead.append(attempts.letter(entry, count, since, error))
            self._window.change(self._behind(blocked, entry))
            return True
        next_at = max(min(self._receiver.next_try(since, now), until), self._receiver.hold_until)
        self._window.change(Blocked(blocked.conversation, entry.position, count, since, next_at, error))
        return False

    # Dead letters that somebody wants sent again.

    async def _replay(self, letter: DeadLetter) -> None:
        """Send it once: it is delivered, or a dead letter again, with one attempt more.

        There is no schedule for these. Whoever asked for it is there to ask again, and meanwhile the conversation
        has gone on without it.
        """
        attempts, window = self._attempts, self._window
        try:
            entries = (await attempts.part(EVERYTHING, letter.position - 1, 1)).entries
        except GoneError:
            entries = []
        await attempts.means.turn()
        error = "not in the log any more"
        if entries and entries[0].position == letter.position:
            sent = await attempts.send(entries[0], first=False)
            if sent is None:
                self._replays.appendleft(letter)
                self._settled(letter)
                return
            error = "" if sent.delivered else reason(sent)
        if error:
            count, now = letter.attempts + 1, attempts.now_us()
            dead = msgspec.structs.replace(letter, attempts=count, dead_at=now, error=error, replayed=False)
            window.dead.append(dead)
        else:
            window.replayed.append(letter.position)
        self._settled(letter)

    def _settled(self, letter: DeadLetter) -> None:
        self._window.busy.discard(letter.conversation)
        self._replaying.discard(letter.position)

    # What a receiver that has been down for days never was asked to take.

    async def probe_failed(self) -> None:
        """Give up what three days have passed for, while its receiver is down."""
        attempts, window = self._attempts, self._window
        now = attempts.now_us()
        if not self._receiver.is_long_down(now) or attempts.delivery.retry_from_at + TRIED_FOR_US > now:
            return
        self._may_give_up = GIVEN_UP_AT_A_PROBE
        self.give_up_old()
        for conversation in window.overdue(now - TRIED_FOR_US, _CONVERSATIONS_AT_A_PROBE):
            if conversation in window.busy or len(window.dead) >= MANY_DEAD:
                continue
            window.busy.add(conversation)
            window.due.drop(conversation)
            await self._give_up_blocked(conversation)

    def give_up_old(self) -> None:
        """Give up what has been read and never was tried, oldest first, as far as the last failed probe allows."""
        attempts, window, receiver = self._attempts, self._window, self._receiver
        now = attempts.now_us()
        while self._may_give_up and len(window.dead) < MANY_DEAD and receiver.is_long_down(now):
            entry = window.oldest()
            if entry is None or attempts.tried_until(entry, None) > now:
                return
            self._may_give_up -= 1
            since = receiver.down_since or now
            window.give_up(entry, attempts.letter(entry, 0, since, "the receiver was down for too long"))

    async def _give_up_blocked(self, conversation: str) -> None:
        """Give up the events of a blocked conversation that have waited for too long; none is sent."""
        attempts, window = self._attempts, self._window
        reached = window.blocked[conversation].position - 1
        waiting: deque[Entry] = deque()
        while self._may_give_up and self._receiver.down_since is not None and len(window.dead) < MANY_DEAD:
            if not waiting and reached < window.limit(conversation):
                reached, waiting = await self._read_on(conversation, reached)
                continue
            if not waiting or waiting[0].position > window.limit(conversation):
                window.busy.discard(conversation)
                window.caught_up(conversation)
                return
            entry = waiting.popleft()
            blocked = _at(window.blocked[conversation], entry)
            until = attempts.tried_until(entry, blocked.first_failed_at if blocked.attempts else None)
            if until > attempts.now_us():
                if not blocked.attempts:  # from here its three days count, which are over before "now" has them over
                    window.change(msgspec.structs.replace(blocked, first_failed_at=until - TRIED_FOR_US))
                break
            self._may_give_up -= 1
            window.dead.append(attempts.letter(entry, blocked.attempts, blocked.first_failed_at, blocked.error))
            window.change(self._behind(blocked, entry))
        self._leave(conversation)


def _at(blocked: Blocked, entry: Entry) -> Blocked:
    """The conversation as blocked by ``entry``, which is another one than before where the wanted types changed."""
    if entry.position == blocked.position or not blocked.attempts:
        return msgspec.structs.replace(blocked, position=entry.position)
    return msgspec.structs.replace(blocked, position=entry.position, attempts=0)
