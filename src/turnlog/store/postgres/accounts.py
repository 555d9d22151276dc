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
        return dict(await connection.fetch(_NUMBERS, account, list(ids)))

    def learn(self, known: dict[str, int], numbers: Mapping[str, int]) -> None:
        """Remember what is committed, with those ``known`` before; where it has become too much, begin anew."""
        known.update(numbers)
        self._learned += len(numbers)
        if self._learned > _KNOWN_CONVERSATIONS:
            self._forget_conversations()
