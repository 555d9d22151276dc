"""Brings transcripts into a store or a running server, so that doing it again records nothing twice.

What is recorded is the standard, not what an earlier run remembers: per conversation, the messages that are there
(role, sender, instant and text, each as often as it is there) are set against the rows of the file, and only what is
missing is recorded. So it does not matter how far a run came, or whether it went to the store or to its server.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter, OrderedDict, deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

import msgspec

from turnlog import limits
from turnlog.errors import UnprocessableError
from turnlog.model import MAX_BATCH_MESSAGES, NewConversation, Participant
from turnlog.targets.protocol import RefusedError
from turnlog.transcripts import COLUMNS, Problem, Row, read

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from turnlog.ids import Ulids
    from turnlog.model import NewMessage, Role
    from turnlog.targets.protocol import Target

MAX_BATCH_BYTES = 4 * 1024 * 1024
"""Of a batch as its rows stand in the file: half of what a server takes by default, for what escaping adds."""
MAX_BUFFERED_ROWS = 10_000
MAX_BUFFERED_BYTES = 16 * 1024 * 1024
MAX_IN_FLIGHT_ROWS = 20_000
MAX_IN_FLIGHT_BYTES = 32 * 1024 * 1024
MAX_CONVERSATIONS = 10_000
MAX_UNMATCHED = 1_000_000
"""Messages of those conversations that are recorded and have not been met in the file: about 200 bytes each."""


class Summary(msgspec.Struct):
    """What became of the rows: ``rows`` is the sum of the other three; ``present`` were recorded before."""

    files: int = 0
    unreadable: int = 0
    rows: int = 0
    recorded: int = 0
    present: int = 0
    bad: int = 0


class _Chunk(msgspec.Struct):
    """Rows of one conversation on their way, the first of them its ``start``-th in the file."""

    file: str
    start: int = 0
    size: int = 0
    rows: list[Row] = msgspec.field(default_factory=list)


class _Conversation:
    """A conversation of the file being read. ``unmatched`` is what is recorded of it and was not in the file so far."""

    def __init__(self, external_id: str) -> None:
        self.external_id = external_id
        self.id = ""
        self.unmatched: Counter[bytes] = Counter()
        self.rows = 0
        self.chunks: deque[_Chunk] = deque()
        self.busy = False


class Importer:
    """Takes files one after the other; leaving the context waits for what is under way.

    Each file is set against what is recorded when its turn comes: two equal rows of one file are two messages, the
    same row in two files is one. Within a conversation the order of the file is the order of arrival. A conversation
    that does not exist is created with its first customer and agent among its first rows (at most 300); where none is
    a customer, whom the API requires, the conversation's own external id stands in. One that exists stays as it is.

    Memory is bounded by the limits above: a conversation that has not been seen for 10,000 others is looked up again
    when it comes back, and then a row equal to one before the gap counts as recorded already.
    """

    def __init__(self, target: Target, ids: Ulids, on_problem: Callable[[Problem], None]) -> None:
        self.summary = Summary()
        self._target = target
        self._ids = ids
        self._on_problem = on_problem
        self._pool = ThreadPoolExecutor(target.workers, thread_name_prefix="turnlog-import")
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._in_flight_rows = 0
        self._in_flight_bytes = 0
        self._unmatched = 0
        self._conversations: OrderedDict[str, _Conversation] = OrderedDict()
        self._buffers: OrderedDict[str, _Chunk] = OrderedDict()
        self._buffered_rows = 0
        self._buffered_bytes = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if error is not None:
            self._fail(error)
            self._target.patience.end()
        self._pool.shutdown(cancel_futures=error is not None)

    def take(self, file: str, on_bytes: Callable[[int], None]) -> None:
        """Record what is missing of ``file`` (``-`` is standard input), durably when this returns."""
        self.summary.files += 1
        for item in read(file, on_bytes):
            problem = item if isinstance(item, Problem) else _over_limits(file, item)
            if problem is not None:
                self._report(problem)
            elif isinstance(item, Row):
                self._buffer(file, item)
        while self._buffers:
            self._dispatch(next(iter(self._buffers)))
        with self._changed:
            self._wait_until(lambda: not self._in_flight_rows)
        self._conversations.clear()
        self._unmatched = 0

    def _report(self, problem: Problem) -> None:
        with self._changed:
            self.summary.unreadable += problem.unreadable
            self.summary.bad += not problem.unreadable
            self.summary.rows += not problem.unreadable
            self._on_problem(problem)

    # The reading thread: rows become chunks. Where a chunk ends depends on the file alone, so that a second run makes
    # the same ones and a batch that the first left under way meets its own idempotency key.

    def _buffer(self, file: str, row: Row) -> None:
        chunk = self._buffers.get(row.conversation)
        if chunk is not None and (len(chunk.rows) == MAX_BATCH_MESSAGES or chunk.size + row.size > MAX_BATCH_BYTES):
            self._dispatch(row.conversation)
            chunk = None
        if chunk is None:
            chunk = self._buffers[row.conversation] = _Chunk(file)
        chunk.rows.append(row)
        chunk.size += row.size
        self._buffers.move_to_end(row.conversation)
        self._buffered_rows += 1
        self._buffered_bytes += row.size
        while self._buffered_rows > MAX_BUFFERED_ROWS or self._buffered_bytes > MAX_BUFFERED_BYTES:
            self._dispatch(next(iter(self._buffers)))

    def _dispatch(self, external_id: str) -> None:
        """Hand the buffered rows of a conversation over, behind those handed over before."""
        chunk = self._buffers.pop(external_id)
        self._buffered_rows -= len(chunk.rows)
        self._buffered_bytes -= chunk.size
        with self._changed:
            self._wait_until(
                lambda: (
                    not self._in_flight_rows
                    or (
                        self._in_flight_rows + len(chunk.rows) <= MAX_IN_FLIGHT_ROWS
                        and self._in_flight_bytes + chunk.size <= MAX_IN_FLIGHT_BYTES
                    )
                )
            )
            conversation = self._conversation(external_id)
            chunk.start = conversation.rows
            conversation.rows += len(chunk.rows)
            conversation.chunks.append(chunk)
            self._in_flight_rows += len(chunk.rows)
            self._in_flight_bytes += chunk.size
            if not conversation.busy:
                conversation.busy = True
                self._pool.submit(self._work, conversation)

    def _conversation(self, external_id: str) -> _Conversation:
        """What is known of the conversation; forgets those that were not seen for the longest time."""
        conversation = self._conversations.pop(external_id, None)
        while len(self._conversations) >= MAX_CONVERSATIONS or (
            self._conversations and self._unmatched > MAX_UNMATCHED
        ):
            _, oldest = self._conversations.popitem(last=False)
            self._wait_until(lambda busy=oldest: not busy.busy)  # type: ignore[misc] # bound at once
            self._unmatched -= oldest.unmatched.total()
        conversation = self._conversations[external_id] = conversation or _Conversation(external_id)
        return conversation

    def _wait_until(self, condition: Callable[[], bool]) -> None:
        """Raises what a worker has failed with."""
        self._changed.wait_for(lambda: self._failure is not None or condition())
        if self._failure is not None:
            raise self._failure

    def _fail(self, failure: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or failure

    # The workers: one at a time for each conversation.

    def _work(self, conversation: _Conversation) -> None:
        while True:
            with self._changed:
                if not conversation.chunks or self._failure is not None:
                    conversation.busy = False
                    self._changed.notify_all()
                    return
                chunk = conversation.chunks.popleft()
            before = conversation.unmatched.total()
            try:
                self._import(conversation, chunk)
            except BaseException as failure:  # noqa: BLE001 - raised again by the reading thread
                self._fail(failure)
            with self._changed:
                self._unmatched += conversation.unmatched.total() - before
                self._in_flight_rows -= len(chunk.rows)
                self._in_flight_bytes -= chunk.size
                self._changed.notify_all()

    def _import(self, conversation: _Conversation, chunk: _Chunk) -> None:
        try:
            if not conversation.id:
                self._enter(conversation, chunk.rows)
        except RefusedError as refusal:
            for row in chunk.rows:
                self._report(Problem(chunk.file, row.line, f"the conversation was refused: {refusal}"))
            return
        unmatched = conversation.unmatched
        missing: list[tuple[int, Row]] = []
        for number, row in enumerate(chunk.rows, chunk.start):
            if unmatched:
                digest = _digest(row.message)
                if digest in unmatched:
                    unmatched[digest] -= 1
                    if not unmatched[digest]:
                        del unmatched[digest]
                    continue
            missing.append((number, row))
        self._count(present=len(chunk.rows) - len(missing))
        if missing:
            self._record(conversation.id, chunk.file, missing)

    def _enter(self, conversation: _Conversation, rows: Sequence[Row]) -> None:
        """Find the conversation and what is recorded of it, or create it."""
        found = self._target.find(conversation.external_id)
        if found is None:
            new = self._new_conversation(conversation.external_id, rows)
            try:
                self._target.create(new)
            except RefusedError as refusal:
                found = self._target.find(conversation.external_id) if refusal.status == 409 else None
                if found is None:
                    raise
            else:
                conversation.id = new.id or ""
                return
        conversation.unmatched.update(_digest(message) for message in self._target.recorded(found))
        conversation.id = found

    def _new_conversation(self, external_id: str, rows: Sequence[Row]) -> NewConversation:
        first: dict[Role, str] = {}
        for row in rows:
            first.setdefault(row.message.role, row.message.sender)
        with self._changed:
            new_id = self._ids.new()  # the source of ids is not made for threads
        agent = Participant(first["agent"]) if "agent" in first else None
        customer = Participant(first.get("customer", external_id))
        return NewConversation(external_id, customer, rows[0].message.client_at, agent, id=new_id)

    def _record(self, conversation_id: str, file: str, rows: Sequence[tuple[int, Row]]) -> None:
        """Record the rows in one batch; where that is refused, in ever smaller ones, until the bad rows are known."""
        messages = [row.message for _, row in rows]
        try:
            self._target.record(conversation_id, messages, _idempotency_key(conversation_id, rows[0][0], messages))
        except RefusedError as refusal:
            if refusal.status == 409:  # exact repeats are refused there, and these are all recorded
                self._count(present=len(rows))
            elif len(rows) > 1:
                half = len(rows) // 2
                self._record(conversation_id, file, rows[:half])
                self._record(conversation_id, file, rows[half:])
            else:
                self._report(Problem(file, rows[0][1].line, f"refused: {refusal}"))
        else:
            self._count(recorded=len(rows))

    def _count(self, *, recorded: int = 0, present: int = 0) -> None:
        with self._changed:
            self.summary.rows += recorded + present
            self.summary.recorded += recorded
            self.summary.present += present


def _over_limits(file: str, row: Row) -> Problem | None:
    """The documented limits, with the name of the column in the place of a pointer into a body."""
    try:
        limits.check_short_text(row.conversation, COLUMNS[0])
        limits.check_short_text(row.message.sender, COLUMNS[1])
        limits.check_text(row.message.text, COLUMNS[3])
    except UnprocessableError as error:
        place, _, what = error.message.removeprefix("[Path '").partition("'] ")
        return Problem(file, row.line, f"{place}: {what}")
    return None


def _digest(message: NewMessage) -> bytes:
    """Equal for equal messages: same role, sender, instant and text."""
    parts = (message.role, message.sender, message.client_at, message.text)
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=16).digest()


def _idempotency_key(conversation_id: str, start: int, messages: Sequence[NewMessage]) -> str:
    """The same for the same batch in every run; ``start`` tells equal batches of one file apart."""
    digest = hashlib.blake2b(f"{conversation_id}/{start}".encode(), digest_size=16, person=b"turnlog import")
    for message in messages:
        digest.update(_digest(message))
    return f"import-{digest.hexdigest()}"
