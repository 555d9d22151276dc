"""Copies a store whole into another, so that it can be stopped at any instant and run again, and verifies the copy.

The log leads. The target's last position of each account says how far the copy came, and whatever else is put into
the target refers only to entries that are there already. The source may go on recording: where something of it can
change, the copy first follows the log up to the position at which that was read, and compares there.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import TYPE_CHECKING

import msgspec

from turnlog.comparison import Check, Comparison, Tally, aligned
from turnlog.errors import SettingError
from turnlog.store.protocol import KeyRecord
from turnlog.store.transfer import ChangeEntry, MessageEntry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from turnlog.store.transfer import AuthenticationRow, ConversationRow, Entry, IdempotencyRow, Source, Target

COPYING, CONVERSATIONS, VERIFYING = "copying", "comparing conversations", "verifying"


class Summary(msgspec.Struct):
    """What became of a copy. Entries are the log's: messages, and creations and changes of conversations.

    ``present`` were there before, ``copied`` came with this run, ``behind`` the source has recorded since. ``verified``
    says whether the log was compared from its beginning or only what this run copied.
    """

    source: str
    target: str
    accounts: int = 0
    present: int = 0
    copied: int = 0
    behind: int = 0
    verified: str = ""
    checks: list[Check] = msgspec.field(default_factory=list)
    complete: bool = False


class Copier:
    """Copies ``source`` into ``target``.

    ``on_progress`` hears what is being done, how much of it is done and, where that is known, how much there is.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        now_us: Callable[[], int],
        on_progress: Callable[[str, int, int | None], None],
    ) -> None:
        self.summary = Summary(source.shown, target.shown)
        self._source = source
        self._target = target
        self._now_us = now_us
        self._on_progress = on_progress
        self._to_copy = 0
        self._copied: dict[str, int] = {}
        """Each account's last position in the target."""

    async def run(self, *, whole: bool) -> Summary:
        """Copy what is missing and verify the copy; with ``whole``, also the entries that were there before.

        Where the copy is not complete the target stays marked as half copied. Raises SettingError, before anything is
        written, where the target has data of its own.
        """
        await self._refuse_other_data()
        # What an earlier run copied and did not come to verify is verified now.
        whole = whole or await self._target.unfinished() is not None
        await self._target.begin(self._source.shown, self._now_us())
        accounts = await self._source.accounts()  # one that comes into being from here on waits for the next run
        await self._put_keys()
        await self._target.put_log_name(await self._source.log_name())
        starts = {account: await self._target.last_position(account) for account in accounts}
        ends = {account: await self._source.last_position(account) for account in accounts}
        self._copied = dict(starts)
        self._to_copy = sum(ends.values()) - sum(starts.values())
        self.summary.accounts, self.summary.present = len(accounts), sum(starts.values())
        self.summary.verified = "all" if whole else "new"
        for account in accounts:
            await self._copy_entries(account, ends[account])
        await self._copy_authentications()
        self.summary.checks = await self._verify(dict.fromkeys(accounts, 0) if whole else starts)
        for account in await self._source.accounts():
            self.summary.behind += await self._source.last_position(account) - self._copied.get(account, 0)
        if all(check.difference is None for check in self.summary.checks):
            await self._target.finish()
            self.summary.complete = True
        return self.summary

    # Before anything is written.

    async def _refuse_other_data(self) -> None:
        """The target must hold what the source holds up to some position, or nothing."""
        has_other = f"the store {self._target.shown} has data of its own: "
        known = {record.key.id for record in await self._source.keys()}
        for record in await self._target.keys():
            if record.key.id not in known:
                key = f"{record.key.id} ({record.key.account}/{record.key.name})"
                raise SettingError(f"{has_other}the source has no key {key}")
        for account in await self._target.accounts():
            there = await self._target.last_position(account)
            here = await self._source.last_position(account)
            if there > here:
                raise SettingError(f"{has_other}account {account!r} has {there} entries, and {here} in the source")
            if not there:
                continue
            newest = await self._target.entries(account, after=there - 1, up_to=there)
            if newest != await self._source.entries(account, after=there - 1, up_to=there):
                raise SettingError(
                    f"{has_other}its entry at position {there} of account {account!r} is not the source's"
                )

    # Copying.

    async def _put_keys(self) -> tuple[list[KeyRecord], list[KeyRecord]]:
        """Make the target's keys the source's; both, as they were read."""
        accounts, ours = await self._source.accounts(), _sorted(await self._source.keys())
        theirs = _sorted(await self._target.keys())
        if ours != theirs or not set(accounts) <= set(await self._target.accounts()):
            await self._target.put_keys(accounts, ours)
            theirs = _sorted(await self._target.keys())
        return ours, theirs

    async def _copy_entries(self, account: str, up_to: int) -> None:
        """Bring the account to the position ``up_to``, where it is not there yet. Reads ahead while it writes."""
        page = await self._next_entries(account, up_to)
        while page:
            before = self._copied[account]
            self._copied[account] = page[-1].position
            page, _ = await asyncio.gather(self._next_entries(account, up_to), self._target.add_entries(account, page))
            self.summary.copied += self._copied[account] - before
            self._on_progress(COPYING, self.summary.copied, max(self._to_copy, self.summary.copied))

    async def _next_entries(self, account: str, up_to: int) -> list[Entry]:
        """The page behind what is copied; empty at the end. Raises SettingError where the log is not whole."""
        after = self._copied[account]
        if after >= up_to:
            return []
        page = await self._source.entries(account, after=after, up_to=up_to)
        if not page or page[-1].position != after + len(page):
            whole = [entry for number, entry in enumerate(page, after + 1) if entry.position == number]
            raise SettingError(
                f"the log of account {account!r} in {self._source.shown} has a gap behind position "
                f"{after + len(whole)}: it cannot be copied"
            )
        return page

    async def _follow(self, account: str) -> None:
        """Bring the account to the source's last position, so that what was read before refers to nothing missing."""
        await self._copy_entries(account, await self._source.last_position(account))

    async def _copy_authentications(self) -> None:
        """Add those that are missing: behind as many as the target has."""
        there = await self._authentications_there()
        seen: Counter[str] = Counter()
        async for page in self._source.authentications():
            missing = []
            for row in page:
                seen[row.account] += 1
                if seen[row.account] > there[row.account] and row.account in self._copied:
                    missing.append(row)
            for account in {row.account for row in missing}:
                await self._follow(account)
            if missing:
                await self._target.add_authentications(missing)

    async def _authentications_there(self) -> Counter[str]:
        """How many the target has of each account."""
        there: Counter[str] = Counter()
        async for page in self._target.authentications():
            there.update(row.account for row in page)
        return there

    # Verifying.

    async def _verify(self, starts: Mapping[str, int]) -> list[Check]:
        """Compare everything, of the log what is behind ``starts``; the log last, once it is not followed any more."""
        conversations, keys = Comparison("conversations"), Comparison("idempotency keys")
        for account in starts:
            conversations.enter(account)
            await self._compare_conversations(account, conversations)
        for account in starts:
            keys.enter(account)
            await self._put_idempotency(account, keys)
        messages, changes = Comparison("messages"), Comparison("conversation changes")
        total, done = sum(self._copied.values()) - sum(starts.values()), 0
        for account, start in starts.items():
            messages.enter(account)
            changes.enter(account)
            ours, theirs = (self._log(store, account, start) for store in (self._source, self._target))
            async for mine, others in aligned(ours, theirs):
                for kind, comparison in ((MessageEntry, messages), (ChangeEntry, changes)):
                    comparison.take(
                        [entry for entry in mine if isinstance(entry, kind)],
                        [entry for entry in others if isinstance(entry, kind)],
                    )
                done += len(mine)
                self._on_progress(VERIFYING, done, total)
        authentications, api_keys = Comparison("authentications"), Comparison("API keys")
        await self._compare_authentications(authentications)
        webhooks = await self._put_webhooks()
        api_keys.take(*await self._put_keys())
        return [one.check for one in (messages, changes, conversations, authentications, keys, api_keys, webhooks)]

    async def _log(self, store: Source, account: str, after: int) -> AsyncIterator[list[Entry]]:
        """The account's entries behind ``after``, as far as they are copied."""
        while page := await store.entries(account, after=after, up_to=self._copied[account]):
            yield page
            after = page[-1].position

    async def _compare_conversations(self, account: str, comparison: Comparison) -> None:
        """Page by page, each at the one position that both stores stand at then."""
        after, done = 0, 0
        while True:
            position, ours = await self._source.conversations(account, after=after)
            await self._copy_entries(account, position)
            last = ours[-1].position if ours else None
            theirs = await self._conversations_there(account, after, last)
            comparison.take(ours, theirs)
            if last is None:
                return
            after = last
            done += len(ours)
            self._on_progress(CONVERSATIONS, done, None)

    async def _conversations_there(self, account: str, after: int, up_to: int | None) -> list[ConversationRow]:
        """The target's, up to the one created at ``up_to``; a page of those behind ``after`` where it is ``None``."""
        found: list[ConversationRow] = []
        while up_to is None or after < up_to:
            _, page = await self._target.conversations(account, after=after)
            found += [row for row in page if up_to is None or row.position <= up_to]
            if up_to is None or not page:
                break
            after = page[-1].position
        return found

    async def _put_idempotency(self, account: str, comparison: Comparison) -> None:
        """Make the account's keys the source's where they are not, page by page, each read back at once.

        They come and go, so that a page that was compared later would differ while the source goes on.
        """
        after = ""
        while ours := await self._source.idempotency(account, after=after):
            up_to = ours[-1].key
            theirs = await self._idempotency_there(account, after, up_to, len(ours))
            if ours != theirs:
                await self._follow(account)
                await self._target.put_idempotency(account, after=after, up_to=up_to, rows=ours)
                theirs = await self._idempotency_there(account, after, up_to, len(ours))
            comparison.take(ours, theirs)
            after = up_to
        await self._target.put_idempotency(account, after=after, up_to=None, rows=[])

    async def _put_webhooks(self) -> Comparison:
        """Make the target's webhooks the source's, as they stand now, each page of what belongs to one read back.

        A webhook's cursor is read before what it has left behind itself, so that nothing undelivered is missed.
        """
        comparison = Comparison("webhooks")
        ours = await self._source.webhooks()
        ours = [row for row in ours if row.account in self._copied]  # others' accounts wait for the next run
        for account in {row.account for row in ours}:
            await self._follow(account)
        await self._target.put_webhooks(ours)
        comparison.take(ours, await self._target.webhooks())
        for webhook in ours:
            conversation, position = "", 0
            while blocked := await self._source.blocked(webhook, after=conversation):
                await self._target.add_blocked(webhook, blocked)
                comparison.take(blocked, await self._target.blocked(webhook, after=conversation))
                conversation = blocked[-1].conversation
            while dead := await self._source.dead(webhook, after=position):
                await self._target.add_dead(webhook, dead)
                comparison.take(dead, await self._target.dead(webhook, after=position))
                position = dead[-1].position
        return comparison

    async def _idempotency_there(self, account: str, after: str, up_to: str, expected: int) -> list[IdempotencyRow]:
        """The target's, behind ``after`` and up to ``up_to``; not all of them where there are more than expected."""
        found: list[IdempotencyRow] = []
        while len(found) <= expected:
            page = await self._target.idempotency(account, after=after, up_to=up_to)
            if not page:
                break
            found += page
            after = page[-1].key
        return found

    async def _compare_authentications(self, comparison: Comparison) -> None:
        """As many of each account as the target has: the source may have recorded more since.

        The stores keep them in different orders among accounts, so each account has a digest of its own, and only
        where two of those differ are its rows set against each other.
        """
        there = await self._authentications_there()
        ours, theirs = [await _digests(store, there) for store in (self._source, self._target)]
        for account in self._copied:
            comparison.enter(account)
            if ours[account].side == theirs[account].side:
                comparison.take_equal(ours[account].side)
                continue
            pages = [_of_account(store, account) for store in (self._source, self._target)]
            left = there[account]
            async for mine, others in aligned(*pages):
                comparison.take(mine[:left], others)
                left -= len(mine[:left])


async def _digests(store: Source, counts: Mapping[str, int]) -> dict[str, Tally]:
    """Of each account's first authentications, as many as ``counts`` says."""
    tallies: defaultdict[str, Tally] = defaultdict(Tally)
    async for page in store.authentications():
        for row in page:
            tally = tallies[row.account]
            if tally.count < counts[row.account]:
                tally.add([row])
    return tallies


async def _of_account(store: Source, account: str) -> AsyncIterator[list[AuthenticationRow]]:
    async for page in store.authentications():
        rows = [row for row in page if row.account == account]
        if rows:
            yield rows


def _sorted(records: list[KeyRecord]) -> list[KeyRecord]:
    """The keys with their secrets in one order: stores do not promise any for those of one instant."""
    return [
        KeyRecord(record.key, tuple(sorted(record.secrets, key=lambda one: (one.created_at, one.digest))))
        for record in records
    ]
