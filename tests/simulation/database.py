"""The database of the simulated world, as what survives its processes: in memory, planned by the real store/plan.py."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Protocol

import msgspec

from tests.simulation.webhooks import WebhookRows
from turnlog.model import ROLES, Conversation, Entry, LogFilter, Message
from turnlog.store.plan import Known, Plan, by_account
from turnlog.store.protocol import ForgetIdempotency, LogPart, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnlog.ids import Place
    from turnlog.model import DeadLetter, Webhook
    from turnlog.store.plan import Identity, UsedKey
    from turnlog.store.protocol import Write
    from turnlog.store.webhooks import Delivery, Progress

LOG_NAME = "log"
HOUR_US = 3600 * 1_000_000
TTL_US = 24 * HOUR_US
_decode = msgspec.json.Decoder(Conversation).decode


class Database(Protocol):
    """What a node's store asks of it; nothing here waits. Methods as in store/protocol.py and store/webhooks.py."""

    shared: bool
    """Whether several processes may use it at once."""
    scanned: int
    """How many entries of a log it looks through at a time, where it says so."""

    def commit(self, writes: Sequence[Write], fail_at: int = 0) -> list[object]:
        """One transaction; with ``fail_at``, one that may fail there, with StoreUnavailableError and nothing stored."""

    def restart(self) -> None:
        """The process that used it is gone: what it kept in memory, too."""

    def close(self) -> None: ...

    def last_position(self, account: str) -> int: ...

    def log(
        self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int
    ) -> LogPart: ...

    def log_start(self, account: str) -> int: ...

    def log_name(self) -> str: ...

    def conversation(self, account: str, conversation_id: str) -> Conversation | None: ...

    def conversation_by_external_id(self, account: str, external_id: str) -> Conversation | None: ...

    def message(self, account: str, conversation_id: str, message_id: str) -> Message | None: ...

    def messages(
        self,
        account: str,
        conversation_id: str,
        *,
        after: Place | None,
        limit: int,
        up_to: int | None = None,
        max_chars: int | None = None,
    ) -> list[Message] | None: ...

    def stream_ids(self, account: str) -> list[str]:
        """Of the facts of authentication that are recorded."""

    def webhooks_version(self) -> int: ...

    def delivery(self, account: str, webhook_id: str) -> Delivery | None: ...

    def claim_webhooks(self, owner: str, ttl_s: float) -> list[tuple[str, str]]: ...

    def release_webhooks(self, owner: str) -> None: ...

    def save_progress(self, owner: str, progress: Progress) -> bool: ...

    def owner_of(self, webhook_id: str) -> tuple[str | None, float]:
        """Who has the claim, and until when."""

    def add_webhook(self, webhook: Webhook, position: int) -> None: ...

    def change_webhook(self, webhook: Webhook, retry_from_at: int | None) -> object: ...

    def replay_from(self, account: str, webhook_id: str, position: int, at: int) -> object: ...

    def replay_dead(self, account: str, webhook_id: str) -> None: ...

    def dead_letters(self, account: str, webhook_id: str) -> Sequence[DeadLetter]: ...


class _Account:
    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.numbers: dict[str, int] = {}
        self.by_number: dict[int, Conversation] = {}
        self.by_external_id: dict[str, tuple[int, Conversation]] = {}
        self.keys: dict[str, UsedKey] = {}
        self.recorded: dict[Identity, str] = {}
        self.messages: dict[int, list[Message]] = defaultdict(list)
        self.authentications: list[str] = []

    def take(self, plan: Plan) -> None:
        """Store what a batch came to."""
        self.numbers.update(plan.numbers)
        self.keys.update(plan.keys)
        for number, row in plan.conversations.items():
            self.by_number[number] = row.conversation
            self.by_external_id[row.conversation.external_id] = (number, row.conversation)
        new: list[Entry] = []
        for position, number, message_id, role, sender, client_at, created_at, text in plan.messages:
            message = Message(message_id, position, text, ROLES[role], sender, client_at, created_at)
            self.messages[number].append(message)
            self.recorded.setdefault((number, client_at, role, sender, text), message_id)
            about = self.by_number[number]
            new.append(Entry(position, "message.created", created_at, about.id, about.external_id, message))
        for position, number, created, changed_at, state in plan.changes:
            about = self.by_number[number]
            kind = "conversation.created" if created else "conversation.updated"
            new.append(Entry(position, kind, changed_at, about.id, about.external_id, _decode(state)))  # type: ignore[arg-type]
        self.entries += sorted(new, key=lambda entry: entry.position)
        self.authentications += [fact.stream_id or "" for _, fact, _ in plan.authentications]


class MemoryDatabase:
    """See Database."""

    def __init__(self, accounts: Sequence[str], *, shared: bool, scanned: int) -> None:
        self.shared = shared
        self.scanned = scanned
        self._accounts = {name: _Account() for name in accounts}
        self._conversations = 0
        self._webhooks = WebhookRows(alone=not shared)

    def commit(self, writes: Sequence[Write], fail_at: int = 0) -> list[object]:
        if fail_at:
            raise StoreUnavailableError("no space")
        outcomes: dict[int, object] = {}
        plans = []
        for name, group in by_account(writes).items():
            account = self._accounts[name]
            known = Known(len(account.entries), account.numbers, {}, account.by_external_id, account.keys)
            known.recorded = account.recorded
            plan = Plan(known, idempotency_ttl_us=TTL_US, new_number=self._number)
            outcomes.update((place, plan.take(write)) for place, write in group)
            plans.append((account, plan))
        for account, plan in plans:
            account.take(plan)
        for place, write in enumerate(writes):
            if isinstance(write, ForgetIdempotency):
                outcomes[place] = self._forget(write)
        return [outcomes[place] for place in range(len(writes))]

    def restart(self) -> None:
        """Nothing is kept outside it."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def _number(self, _position: int) -> int:
        self._conversations += 1
        return self._conversations

    def _forget(self, write: ForgetIdempotency) -> int:
        forgotten = 0
        for account in self._accounts.values():
            old = [key for key, used in account.keys.items() if used.created_at < write.before][: write.limit]
            for key in old:
                del account.keys[key]
            forgotten += len(old)
        return forgotten

    # Reading.

    def last_position(self, account: str) -> int:
        return len(self._accounts[account].entries)

    def log(self, account: str, wanted: LogFilter, *, after: int, up_to: int, limit: int, max_chars: int) -> LogPart:
        found: list[Entry] = []
        end = min(up_to, after + self.scanned)
        for entry in self._accounts[account].entries[after:end]:
            if _fits(entry, wanted):
                found.append(entry)
                max_chars -= len(entry.subject.text) if isinstance(entry.subject, Message) else 0
                if len(found) == limit or max_chars < 0:
                    return LogPart(found, entry.position)
        return LogPart(found, max(after, end))

    def log_start(self, _account: str) -> int:
        return 0

    def log_name(self) -> str:
        return LOG_NAME

    def conversation(self, account: str, conversation_id: str) -> Conversation | None:
        number = self._accounts[account].numbers.get(conversation_id)
        return None if number is None else self._accounts[account].by_number[number]

    def conversation_by_external_id(self, account: str, external_id: str) -> Conversation | None:
        found = self._accounts[account].by_external_id.get(external_id)
        return None if found is None else found[1]

    def message(self, account: str, conversation_id: str, message_id: str) -> Message | None:
        found = self.messages(account, conversation_id, after=None, limit=1 << 30) or []
        return next((one for one in found if one.id == message_id), None)

    def messages(
        self,
        account: str,
        conversation_id: str,
        *,
        after: Place | None,
        limit: int,
        up_to: int | None = None,
        max_chars: int | None = None,
    ) -> list[Message] | None:
        number = self._accounts[account].numbers.get(conversation_id)
        if number is None:
            return None
        found: list[Message] = []
        left = float("inf") if max_chars is None else max_chars
        for message in sorted(self._accounts[account].messages[number], key=lambda one: (one.client_at, one.position)):
            if after is not None and (message.client_at, message.position) <= after:
                continue
            if up_to is not None and message.position > up_to:
                continue
            if len(found) == limit or left < 0:
                break
            found.append(message)
            left -= len(message.text)
        return found

    def stream_ids(self, account: str) -> list[str]:
        return self._accounts[account].authentications

    # Webhooks.

    def webhooks_version(self) -> int:
        return self._webhooks.version

    def delivery(self, _account: str, webhook_id: str) -> Delivery | None:
        return self._webhooks.find(webhook_id)

    def claim_webhooks(self, owner: str, ttl_s: float) -> list[tuple[str, str]]:
        return self._webhooks.claim(owner, ttl_s)

    def release_webhooks(self, owner: str) -> None:
        self._webhooks.release(owner)

    def save_progress(self, owner: str, progress: Progress) -> bool:
        return self._webhooks.save(owner, progress)

    def owner_of(self, webhook_id: str) -> tuple[str | None, float]:
        kept = self._webhooks.kept[webhook_id]
        return kept.owner, kept.claimed_until

    def add_webhook(self, webhook: Webhook, position: int) -> None:
        self._webhooks.add(webhook, position)

    def change_webhook(self, webhook: Webhook, retry_from_at: int | None) -> None:
        self._webhooks.replace(webhook, retry_from_at)

    def replay_from(self, _account: str, webhook_id: str, position: int, at: int) -> None:
        self._webhooks.put_back(webhook_id, position, at)

    def replay_dead(self, _account: str, webhook_id: str) -> None:
        self._webhooks.revive(webhook_id)

    def dead_letters(self, _account: str, webhook_id: str) -> Sequence[DeadLetter]:
        return self._webhooks.dead(webhook_id)


def _fits(entry: Entry, wanted: LogFilter) -> bool:
    return (
        (wanted.types is None or entry.type in wanted.types)
        and wanted.conversation_id in (None, entry.conversation_id)
        and wanted.external_id in (None, entry.external_id)
    )
