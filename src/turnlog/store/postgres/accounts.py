"""What a process remembers of the database: what is there stays, so that it is asked for once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnlog.store.postgres.for_each import one_each

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from asyncpg import Connection


_KNOWN_CONVERSATIONS = 100_000
_ACCOUNT = "SELECT account FROM turnlog.account WHERE name = $1"
NUMBERS = one_each("conversation", "id, number", "id")

Numbers = tuple[int | None, int | None]
"""The numbers of an account and of a conversation in it; ``None`` for what there is not."""


class Accounts:
    """Numbers of accounts by name, and of their conversations by id."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: it is another database now, which may have given the numbers to others."""
        self._accounts: dict[str, int] = {}
        self._forget_conversations()

    def _forget_conversations(self) -> None:
        # New dicts: whoever is in the middle of a batch goes on with those that it was given.
        self._conversations: dict[int, dict[str, int]] = {}
        self._learned = 0

    async def number(self, connection: Connection, name: str) -> int | None:
        """The account's number; ``None`` where it has never had a key."""
        known = self._accounts
        account = known.get(name)
        if account is None:
            account = await connection.fetchval(_ACCOUNT, name)
            if account is not None:
                known[name] = account
        return account

    def conversations(self, account: int) -> dict[str, int]:
        """Those of the account's conversations that were looked up before."""
        known = self._conversations.get(account)
        if known is None:
            known = self._conversations[account] = {}
        return known

    async def look_up(self, connection: Connection, account: int, ids: Collection[str]) -> dict[str, int]:
        """The numbers of those of ``ids`` that exist."""
        rows = await NUMBERS.fetch(connection, [(account, conversation_id) for conversation_id in ids])
        return {conversation_id: number for _, conversation_id, number in rows}

    async def numbers(self, connection: Connection, names: Iterable[str]) -> dict[str, int | None]:
        """The number of each account; ``None`` where it has never had a key."""
        return {name: await self.number(connection, name) for name in names}

    async def places(self, connection: Connection, wanted: Sequence[tuple[str, str]]) -> list[Numbers]:
        """The numbers of each wanted account and conversation, with one statement for all that are not known."""
        accounts = await self.numbers(connection, {name for name, _ in wanted})
        places: list[Numbers] = []
        unknown: dict[tuple[int, str], list[int]] = {}
        for n, (name, conversation_id) in enumerate(wanted):
            account = accounts[name]
            number = None if account is None else self.conversations(account).get(conversation_id)
            places.append((account, number))
            if account is not None and number is None:
                unknown.setdefault((account, conversation_id), []).append(n)
        if unknown:
            asked = list(unknown)
            for n, conversation_id, number in await NUMBERS.fetch(connection, asked):
                account = asked[n - 1][0]
                for place in unknown[asked[n - 1]]:
                    places[place] = (account, number)
                self.learn(self.conversations(account), {conversation_id: number})
        return places

    def learn(self, known: dict[str, int], numbers: Mapping[str, int]) -> None:
        """Remember what is committed, with those ``known`` before; where it has become too much, begin anew."""
        known.update(numbers)
        self._learned += len(numbers)
        if self._learned > _KNOWN_CONVERSATIONS:
            self._forget_conversations()
