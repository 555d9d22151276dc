"""The specification of storage: what every store promises to the rest of the program. It knows no HTTP.

The unit is the operation. ``append`` is the only way in for what is recorded: one call is one transaction, durable
when it returns. Everything is scoped to an account; what belongs to another account does not exist. Where a call does
not say otherwise, it raises StoreUnavailableError while the store does not answer.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import msgspec

from turnlog.model import ApiKey, Entry, NewAuthentication, NewConversation, NewMessage, SecretHash
from turnlog.store.webhooks import WebhookStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from turnlog.ids import Place
    from turnlog.model import Conversation, LogFilter, Message


class Idempotency(msgspec.Struct, frozen=True):
    """The caller's idempotency key, and a digest of the request that it stands for."""

    key: str
    fingerprint: bytes


class AppendMessages(msgspec.Struct, frozen=True):
    """Record ``messages`` in their order, all or none. ``ids`` are theirs, one each, ULIDs of this server.

    With ``idempotency``: where the account used the key before for the same request, nothing is recorded and the
    first ids are the outcome. With ``refuse_repeats``: a message whose conversation, role, sender, timestamp and text
    are all recorded already is not recorded again; where that is so for every message of the write, the outcome is
    AlreadyRecordedError, else the ids of the earlier records stand in their places.
    """

    account: str
    conversation: str
    messages: Sequence[NewMessage]
    ids: Sequence[str]
    created_at: int
    idempotency: Idempotency | None = None
    refuse_repeats: bool = False

    @property
    def rows(self) -> int:
        """How many rows the write may add: what a queue is bounded by."""
        return len(self.messages)

    @property
    def chars(self) -> int:
        """How many characters of text it carries: the other bound."""
        chars = 0
        for message in self.messages:
            chars += len(message.text)
        return chars


class _OneRow(msgspec.Struct, frozen=True):
    """A write that adds one row of no great length."""

    @property
    def rows(self) -> int:
        """See AppendMessages.rows."""
        return 1

    @property
    def chars(self) -> int:
        """See AppendMessages.chars."""
        return 0


class PutConversation(_OneRow, frozen=True):
    """Create the conversation, or update the one that has its external id. ``id`` is for a new one without its own."""

    account: str
    conversation: NewConversation
    id: str
    created_at: int


class RecordAuthentication(_OneRow, frozen=True):
    """Record that a customer authenticated in a conversation."""

    account: str
    conversation: str
    authentication: NewAuthentication
    created_at: int


class ForgetIdempotency(_OneRow, frozen=True):
    """Drop up to ``limit`` idempotency keys first used before ``before``; the outcome is how many went."""

    before: int
    limit: int = 1000


Write = AppendMessages | PutConversation | RecordAuthentication | ForgetIdempotency
Outcome = object
"""AppendMessages: the ids. PutConversation: the id. ForgetIdempotency: a count. Else ``None``. A refusal: an Error."""


class StoreUnavailableError(Exception):
    """It certainly did not happen (disk full, locked, read-only, no server): nothing of the batch is stored."""


class StoreUncertainError(Exception):
    """Whether the transaction happened is unknown, and the store goes on: the way to its server was cut."""


class StoreFailedError(Exception):
    """Whether the transaction happened is unknown; the store must not be used again before a restart."""


class StoreDamagedError(StoreFailedError):
    """What is stored is not what was written: somebody has to look (``turnlog check``), and to restore a backup."""


class KeyRecord(msgspec.Struct, frozen=True):
    """A key together with the hashes of its secrets."""

    key: ApiKey
    secrets: tuple[SecretHash, ...]


class Health(msgspec.Struct, frozen=True):
    """What an operator wants to know of a store: the number of the schema, and sizes in bytes where it knows them."""

    schema: int
    data_bytes: int
    log_bytes: int | None


class Recorder(Protocol):
    """The side of a store that records."""

    @property
    def failure(self) -> BaseException | None:
        """Why the store must not be used any more, once that is so."""

    @property
    def parallel(self) -> int:
        """How many calls of ``append`` it can be given at once."""

    def lane(self, write: Write) -> Hashable:
        """Writes of one lane wait for each other, so they belong together; lanes may be recorded side by side."""

    async def append(self, writes: Sequence[Write]) -> list[object]:
        """Carry out ``writes`` in their order, in one transaction, durable when this returns; one outcome each.

        A refusal (an Error among the outcomes) leaves the other writes untouched. Log positions are given in the
        order of the writes, gap-free per account, and an entry is seen only once all before it are.
        Raises StoreUnavailableError, StoreUncertainError, StoreFailedError.
        """

    @property
    def scrubbed(self) -> int:
        """How often ``scrub`` has looked at everything."""

    async def scrub(self, interval_s: float, sleep: Callable[[float], Awaitable[None]]) -> None:
        """Look for damage in what is stored, every ``interval_s`` and beside everything else; it ends with the damage.

        ``failure`` says then what it is. A database that looks after itself is left to that.
        """


class LogPart(NamedTuple):
    """Entries in their order, and the position up to which the log has been looked through for them."""

    entries: list[Entry]
    reached: int


class LogReader(Protocol):
    """The side of a store that its logs are read from: positions are gap-free, and only become visible in order."""

    @property
    def generation(self) -> int:
        """Another number once this may be another store, or an earlier state of it: what was read may not be there."""

    async def last_position(self, account: str) -> int:
        """The position of the newest entry of the account's log; 0 where it is empty."""

    async def log(
        self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int
    ) -> LogPart:
        """The next entries behind position ``after`` that are ``wanted``, at most ``limit``.

        ``up_to`` is a position that ``last_position`` has answered, or a lower one; none behind it is looked at. What
        is looked through is bounded, so ``reached`` may come short of ``up_to`` with fewer than ``limit`` entries, or
        with none. None behind the one whose text takes the sum over ``max_chars``.
        """

    async def log_start(self, account: str) -> int:
        """The position before the first entry that is kept: 0 as long as none was ever given up."""

    async def log_name(self) -> str:
        """What tells this log from every other: made with the store, the same in its copies."""

    async def follow(self, moved: Callable[[str], None]) -> None:
        """For ever: call ``moved(account)`` soon after this or any other process recorded something in it.

        Within 200 ms; where the store cannot be asked, once it can be again. It may be called for nothing.
        """


class Reader(LogReader, Protocol):
    """The side of a store that answers. Only what is durable is ever seen."""

    async def conversation(self, account: str, conversation_id: str) -> Conversation | None:
        """The conversation with this id."""

    async def conversation_by_external_id(self, account: str, external_id: str) -> Conversation | None:
        """The conversation with this external id."""

    async def message(self, account: str, conversation_id: str, message_id: str) -> Message | None:
        """The message with this id, where it is in this conversation."""

    async def messages(
        self,
        account: str,
        conversation_id: str,
        *,
        after: Place | None,
        limit: int,
        up_to: int | None = None,
        max_chars: int | None = None,
    ) -> list[Message] | None:
        """At most ``limit`` messages behind ``after``, by ``client_at``, then ``position``.

        With ``up_to``, none whose position is higher. With ``max_chars``, none behind the one whose text takes the sum
        over that: fewer than ``limit`` are then no sign of the end. ``None`` where there is no such conversation.
        """

    async def check(self) -> None:
        """Raises whatever keeps the store from answering and from recording durably, within about a second."""

    async def health(self) -> Health:
        """The store's sizes. Raises whatever keeps it from answering."""


class KeyStore(Protocol):
    """The side of a store that keeps accounts and keys. Safe beside running servers, from any process."""

    async def keys_version(self) -> int:
        """A number that grows with every change to any key."""

    async def keys(self) -> list[KeyRecord]:
        """Every key of every account, in the order of creation."""

    async def add_key(self, record: KeyRecord) -> None:
        """Keep a new key; its account comes into being with its first key."""

    async def revoke_key(self, key_id: str, at: int) -> None:
        """Mark the key revoked. Raises SettingError where there is none with this id."""

    async def rotate_key(self, key_id: str, secret: SecretHash, old_expire_at: int) -> None:
        """Add a secret to the key; the live ones end at ``old_expire_at`` at the latest. Raises as ``revoke_key``."""


class Store(Recorder, Reader, KeyStore, WebhookStore, Protocol):
    """All sides of one store."""

    async def close(self) -> None:
        """Finish what is under way and let go of files and connections."""
