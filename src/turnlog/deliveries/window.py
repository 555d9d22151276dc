"""What a session holds of the log between its webhook's cursor and what it has read. No I/O.

Which conversation may be sent next, which are blocked, how far all is done, and what of that is not stored yet.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from msgspec.structs import replace

from turnlog.deliveries.retries import Due
from turnlog.model import Message
from turnlog.store.webhooks import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.model import Blocked, DeadLetter, Entry
    from turnlog.store.protocol import LogPart
    from turnlog.store.webhooks import Delivery

WINDOW_EVENTS = 1000
"""Behind the cursor, delivered or not: bounds the memory, and how much is sent again after a crash."""
WINDOW_CHARS = 4 * 1024 * 1024
MAX_BLOCKED = 1000
"""Conversations that may be blocked; then nothing new is sent, and the cursor stands still."""


class Window:
    """Entries in memory by their conversations. A conversation is ready, busy (under way) or blocked.

    Entries of blocked conversations are not kept: they are read again once the conversation's turn comes. A blocked
    conversation is ``parked`` where all of its events up to its place are delivered, and what has been read does not
    reach that place again yet: so it is after a restart from a cursor that lay behind.
    """

    def __init__(self, delivery: Delivery, end: int) -> None:
        """``end`` of the log: what is said to lie behind it is forgotten, and its positions will be others'."""
        self.read_to = min(delivery.position, end)
        self.blocked = {one.conversation: one for one in delivery.blocked if one.position <= end + 1}
        self.busy: set[str] = set()
        self.dead: list[DeadLetter] = []
        self.replayed: list[int] = []
        self.hold_until = delivery.hold_until
        """When the receiver may be asked again, to be stored."""
        self._saved = (delivery.position, delivery.hold_until)
        self._touched = {one.conversation for one in delivery.blocked} - self.blocked.keys()
        self._order: deque[tuple[int, str]] = deque()
        self._done: set[int] = set()
        self._queues: dict[str, deque[Entry]] = {}
        self._ready: deque[str] = deque()
        self._chars = 0
        self._parked: set[str] = set()
        self.due = Due()
        for one in self.blocked.values():
            self.due.put(one.conversation, one.next_at)

    # What is read, and how far all is done.

    @property
    def cursor(self) -> int:
        """Everything up to here is delivered, given up, or belongs to a blocked conversation. It never goes back."""
        self._forget_done()
        return self._order[0][0] - 1 if self._order else self.read_to

    def _forget_done(self) -> None:
        order, done = self._order, self._done
        while order and order[0][0] in done:
            done.discard(order.popleft()[0])

    @property
    def room(self) -> int:
        """How many entries more may be read: only those behind the cursor take up room."""
        self._forget_done()
        return WINDOW_EVENTS - len(self._order) if self._chars < WINDOW_CHARS else 0

    def add(self, part: LogPart) -> None:
        """Take in what was read behind ``read_to``."""
        for entry in part.entries:
            conversation = entry.conversation_id
            blocked = self.blocked.get(conversation)
            if blocked is not None:
                if conversation not in self._parked or entry.position < blocked.position:
                    continue
                self._unblock(conversation)
            self._order.append((entry.position, conversation))
            self._chars += _chars(entry)
            queue = self._queues.get(conversation)
            if queue is None:
                self._queues[conversation] = deque((entry,))
                self._ready.append(conversation)
            else:
                queue.append(entry)
        self.read_to = part.reached
        for conversation in list(self._parked):
            if self.blocked[conversation].position <= part.reached + 1:
                self._unblock(conversation)

    # Conversations that are well.

    @property
    def is_ready(self) -> bool:
        """Whether ``take`` would give one."""
        return any(conversation not in self.busy for conversation in self._ready)

    def take(self) -> Entry | None:
        """The next entry to be sent of a conversation that is well, which is busy from now on."""
        for _ in range(len(self._ready)):
            conversation = self._ready.popleft()
            if conversation not in self.busy:
                self.busy.add(conversation)
                return self._queues[conversation][0]
            self._ready.append(conversation)
        return None

    def put_back(self, entry: Entry) -> None:
        """An entry that was taken is the next one of its conversation still."""
        self.busy.discard(entry.conversation_id)
        self._ready.appendleft(entry.conversation_id)

    def done(self, entry: Entry) -> None:
        """An entry that was taken is delivered: its conversation goes on."""
        conversation = entry.conversation_id
        queue = self._queues[conversation]
        queue.popleft()
        self._forget(entry)
        self.busy.discard(conversation)
        if queue:
            self._ready.append(conversation)
        else:
            del self._queues[conversation]

    def block(self, entry: Entry, blocked: Blocked) -> None:
        """An entry that was taken could not be delivered: its conversation waits, and the others pass it by."""
        conversation = entry.conversation_id
        for waiting in self._queues.pop(conversation):
            self._forget(waiting)
        self.busy.discard(conversation)
        self.change(blocked)

    def oldest(self) -> Entry | None:
        """The first entry that is not done, unless its conversation is busy."""
        if self.cursor == self.read_to:
            return None
        conversation = self._order[0][1]
        return None if conversation in self.busy else self._queues[conversation][0]

    def give_up(self, entry: Entry, letter: DeadLetter) -> None:
        """The ``oldest`` entry becomes a dead letter without having been taken."""
        conversation = entry.conversation_id
        queue = self._queues[conversation]
        queue.popleft()
        self._forget(entry)
        self.dead.append(letter)
        if not queue:
            del self._queues[conversation]
            self._ready.remove(conversation)

    # Conversations that are blocked.

    def change(self, blocked: Blocked) -> None:
        """A conversation is blocked in this way from now on; its turn comes when that says, unless it is busy."""
        self.blocked[blocked.conversation] = blocked
        self._touched.add(blocked.conversation)
        if blocked.conversation not in self.busy:
            self.due.put(blocked.conversation, blocked.next_at)

    def limit(self, conversation: str) -> int:
        """Up to where a blocked conversation has to be delivered before it is not blocked any more."""
        blocked = self.blocked[conversation]
        return max(self.read_to, blocked.position) if blocked.attempts else self.read_to

    def bound(self, now: int, latest_try: Callable[[int, int], int]) -> None:
        """Nothing was failing before ``now``, and nothing is due later than ``latest_try`` says of both instants."""
        for one in list(self.blocked.values()):
            since = min(one.first_failed_at, now)
            at = min(one.next_at, latest_try(since, now))
            if (since, at) != (one.first_failed_at, one.next_at):
                self.change(replace(one, first_failed_at=since, next_at=at))

    def move(self, step_us: int) -> None:
        """The clock was put forward by ``step_us``, or back: what is blocked waits as long as before."""
        self.due.move(step_us)
        for one in list(self.blocked.values()):
            since, at = one.first_failed_at + step_us, one.next_at + step_us
            self.blocked[one.conversation] = replace(one, first_failed_at=since, next_at=at)
            self._touched.add(one.conversation)
        self.hold_until += step_us if self.hold_until else 0

    def caught_up(self, conversation: str) -> None:
        """A blocked conversation is delivered up to its ``limit``."""
        if self.blocked[conversation].position > self.read_to + 1:
            self._parked.add(conversation)
            self.due.drop(conversation)
        else:
            self._unblock(conversation)

    def overdue(self, before: int, limit: int) -> list[str]:
        """Blocked conversations whose first event has been failing since ``before``, and which are not busy."""
        found = []
        others = self.busy | self._parked
        for one in self.blocked.values():
            if one.first_failed_at <= before and one.conversation not in others:
                found.append(one.conversation)
                if len(found) == limit:
                    break
        return found

    # What is not stored yet.

    @property
    def is_dirty(self) -> bool:
        """Whether there is something to store."""
        moved = (self.cursor, self.hold_until) != self._saved
        return moved or bool(self._touched or self.dead or self.replayed)

    def progress(self, account: str, webhook_id: str, revision: int, disabled: str | None) -> Progress:
        """What is to be stored. Where that fails, it has to be given ``back``."""
        touched, self._touched = self._touched, set()
        dead, self.dead = self.dead, []
        replayed, self.replayed = self.replayed, []
        return Progress(
            account,
            webhook_id,
            revision,
            self.cursor,
            [self.blocked[one] for one in touched if one in self.blocked],
            [one for one in touched if one not in self.blocked],
            dead,
            replayed,
            disabled,
            self.hold_until,
        )

    def saved(self, progress: Progress) -> None:
        """It was stored."""
        self._saved = (progress.position, progress.hold_until)

    def back(self, progress: Progress) -> None:
        """It was not stored, or nobody knows: storing it twice does no harm."""
        self._touched.update(one.conversation for one in progress.blocked)
        self._touched.update(progress.unblocked)
        self.dead[:0] = progress.dead
        self.replayed[:0] = progress.replayed

    def _unblock(self, conversation: str) -> None:
        del self.blocked[conversation]
        self._touched.add(conversation)
        self._parked.discard(conversation)
        self.due.drop(conversation)

    def _forget(self, entry: Entry) -> None:
        self._done.add(entry.position)
        self._chars -= _chars(entry)


def _chars(entry: Entry) -> int:
    """About what an entry takes in memory."""
    subject = entry.subject
    if isinstance(subject, Message):
        return len(subject.text)
    return sum([len(value) for value in (subject.metadata or {}).values()])
