"""What a process remembers of the database: what is there stays, so that it is asked for once."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from asyncpg import Connection


_KNOWN_CONVERSATIONS = 100_000
_ACCOUNT = "SELECT account FROM turnlog.account WHERE name = $1"
_NUMBERS = "SELECT id, number FROM turnlog.conversation WHERE account = $1 AND id = ANY($2)"


class Accounts:
    """Numbers of accounts by name, and of their conversations by id."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: it is another database now, which may have given the numbers to others."""
        self._accounts: dict[str, int] = {}
        self._conversations: dict[int, dict[str, int]] = {}

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
        return dict(await connection.fetch(_NUMBERS, account, list(ids)))

    @staticmethod
    def learn(known: dict[str, int], numbers: Mapping[str, int]) -> None:
        """Remember what is committed, with those ``known`` before, and forget the oldest where it is too much."""
        known.update(numbers)
        while len(known) > _KNOWN_CONVERSATIONS:
            del known[next(iter(known))]
