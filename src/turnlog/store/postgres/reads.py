"""The statements that read. Each names one account; a listing goes along one index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnlog.instants import EARLIEST
from turnlog.store.columns import CONVERSATION_COLUMNS, conversation_of
from turnlog.store.postgres.rows import MESSAGE_COLUMNS, message_of

if TYPE_CHECKING:
    from asyncpg import Connection

    from turnlog.ids import Place
    from turnlog.model import Conversation, Message
    from turnlog.store.postgres.accounts import Accounts

_MAX = 2**63 - 1
_CONVERSATION = f"SELECT {CONVERSATION_COLUMNS} FROM turnlog.conversation WHERE account = $1 AND "  # noqa: S608
BY_ID = f"{_CONVERSATION} id = $2"
BY_EXTERNAL_ID = f"{_CONVERSATION} external_id = $2"
MESSAGE = (
    f"SELECT {MESSAGE_COLUMNS} FROM turnlog.message "  # noqa: S608
    "WHERE account = $1 AND id = $3 AND conversation = $2"
)
LAST_POSITION = "SELECT position FROM turnlog.log WHERE account = $1"
_PAGE = (
    f"SELECT {MESSAGE_COLUMNS} FROM turnlog.message "  # noqa: S608
    "WHERE account = $1 AND conversation = $2 AND (client_at, position) > ($3, $4) AND position <= $5 "
    "ORDER BY client_at, position LIMIT $6"
)
# `before`: the characters of the texts ahead in the page.
PAGE = (
    f"SELECT {MESSAGE_COLUMNS} FROM (SELECT page.*, sum(length(text)) OVER (ORDER BY client_at, position "  # noqa: S608
    f"ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) - length(text) AS before FROM ({_PAGE}) AS page) AS measured "
    "WHERE before <= $7 ORDER BY client_at, position"
)


class Reads:
    """The reading side of one database, on whatever connection it is given (protocol.Reader)."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def conversation(self, connection: Connection, account: str, conversation_id: str) -> Conversation | None:
        """See protocol.Reader."""
        return await self._conversation(connection, BY_ID, account, conversation_id)

    async def conversation_by_external_id(
        self, connection: Connection, account: str, external_id: str
    ) -> Conversation | None:
        """See protocol.Reader."""
        return await self._conversation(connection, BY_EXTERNAL_ID, account, external_id)

    async def _conversation(self, connection: Connection, query: str, account: str, wanted: str) -> Conversation | None:
        number = await self._accounts.number(connection, account)
        row = None if number is None else await connection.fetchrow(query, number, wanted)
        return None if row is None else conversation_of(row)

    async def message(
        self, connection: Connection, account: str, conversation_id: str, message_id: str
    ) -> Message | None:
        """See protocol.Reader."""
        number, conversation = await self._numbers(connection, account, conversation_id)
        if conversation is None:
            return None
        row = await connection.fetchrow(MESSAGE, number, conversation, message_id)
        return None if row is None else message_of(row)

    async def last_position(self, connection: Connection, account: str) -> int:
        """See protocol.Reader."""
        number = await self._accounts.number(connection, account)
        return 0 if number is None else int(await connection.fetchval(LAST_POSITION, number))

    async def messages(
        self,
        connection: Connection,
        account: str,
        conversation_id: str,
        *,
        after: Place | None,
        limit: int,
        up_to: int | None,
        max_chars: int | None,
    ) -> list[Message] | None:
        """See protocol.Reader."""
        number, conversation = await self._numbers(connection, account, conversation_id)
        if conversation is None:
            return None
        client_at, position = (EARLIEST - 1, 0) if after is None else after
        newest = _MAX if up_to is None else up_to
        budget = _MAX if max_chars is None else max_chars
        rows = await connection.fetch(PAGE, number, conversation, client_at, position, newest, limit, budget)
        return [message_of(row) for row in rows]

    async def _numbers(
        self, connection: Connection, account: str, conversation_id: str
    ) -> tuple[int | None, int | None]:
        """Of the account and of its conversation, where there are such."""
        number = await self._accounts.number(connection, account)
        if number is None:
            return None, None
        known = self._accounts.conversations(number)
        conversation = known.get(conversation_id)
        if conversation is None:
            found = await self._accounts.look_up(connection, number, (conversation_id,))
            self._accounts.learn(known, found)
            conversation = found.get(conversation_id)
        return number, conversation
