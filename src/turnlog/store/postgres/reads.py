"""The statements that read, each for many callers, whatever their accounts (see gather.py).

For each caller the database goes along one index of one account.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from turnlog.instants import EARLIEST
from turnlog.model import ROLES, Message
from turnlog.store.columns import CONVERSATION_COLUMNS, conversation_of
from turnlog.store.postgres.for_each import ForEach, one_each
from turnlog.store.postgres.gather import ALONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asyncpg import Connection

    from turnlog.ids import Place
    from turnlog.model import Conversation
    from turnlog.store.postgres.accounts import Accounts
    from turnlog.store.postgres.gather import Alone

MESSAGE_COLUMNS = "id, position, text, role, sender, client_at, created_at"
SHARED_CHARS = 4 * 1024 * 1024
"""Of text in the pages of one statement, shared out evenly: a page of more than its share is asked for alone."""
_MAX = 2**63 - 1
_BEGINNING = (EARLIEST - 1, 0)

CONVERSATION = one_each("conversation", CONVERSATION_COLUMNS, "id")
CONVERSATION_BY_EXTERNAL_ID = one_each("conversation", CONVERSATION_COLUMNS, "external_id")
MESSAGE = one_each("message", f"{MESSAGE_COLUMNS}, conversation", "id")
LAST_POSITIONS = "SELECT account, position FROM turnlog.log WHERE account = ANY($1::integer[])"
# `before`: the characters of the texts ahead in the page.
PAGE = ForEach(
    "account integer, conversation bigint, after_at bigint, after bigint, up_to bigint, rows bigint, chars bigint",
    f"""
    SELECT wanted.n, {MESSAGE_COLUMNS} FROM wanted CROSS JOIN LATERAL (
        SELECT page.*, sum(length(text)) OVER (
            ORDER BY client_at, position ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS before
        FROM (
            SELECT {MESSAGE_COLUMNS} FROM turnlog.message AS m
            WHERE m.account = wanted.account AND m.conversation = wanted.conversation
                AND (m.client_at, m.position) > (wanted.after_at, wanted.after) AND m.position <= wanted.up_to
            ORDER BY m.client_at, m.position LIMIT wanted.rows
        ) AS page
    ) AS measured
    WHERE before IS NULL OR before <= wanted.chars
    """,  # noqa: S608
)

Wanted = tuple[str, str]
"""Of something that its id names: the account and the id."""
WantedMessage = tuple[str, str, str]
"""Account, conversation and id."""


class WantedPage(NamedTuple):
    """See protocol.Reader.messages; here nothing is left out."""

    account: str
    conversation: str
    after_at: int
    after: int
    up_to: int
    limit: int
    max_chars: int


def wanted_page(
    account: str, conversation_id: str, after: Place | None, limit: int, up_to: int | None, max_chars: int | None
) -> WantedPage:
    """What is left out is put in."""
    after_at, position = _BEGINNING if after is None else after
    return WantedPage(
        account,
        conversation_id,
        after_at,
        position,
        _MAX if up_to is None else up_to,
        limit,
        _MAX if max_chars is None else max_chars,
    )


async def conversations(
    connection: Connection, accounts: Accounts, wanted: Sequence[Wanted]
) -> list[Conversation | None]:
    """See protocol.Reader.conversation."""
    return await _conversations(connection, CONVERSATION, accounts, wanted)


async def conversations_by_external_id(
    connection: Connection, accounts: Accounts, wanted: Sequence[Wanted]
) -> list[Conversation | None]:
    """See protocol.Reader.conversation_by_external_id."""
    return await _conversations(connection, CONVERSATION_BY_EXTERNAL_ID, accounts, wanted)


async def _conversations(
    connection: Connection, query: ForEach, accounts: Accounts, wanted: Sequence[Wanted]
) -> list[Conversation | None]:
    numbers = await accounts.numbers(connection, {account for account, _ in wanted})
    asked = [(numbers[account], wanted_id) for account, wanted_id in wanted]
    answers: list[Conversation | None] = [None] * len(wanted)
    for row in await query.fetch(connection, asked):
        answers[row[0] - 1] = conversation_of(row[1:])
    return answers


async def messages(connection: Connection, accounts: Accounts, wanted: Sequence[WantedMessage]) -> list[Message | None]:
    """See protocol.Reader.message."""
    places = await accounts.places(connection, [one[:2] for one in wanted])
    asked = [(place[0], one[2]) for one, place in zip(wanted, places, strict=True)]
    answers: list[Message | None] = [None] * len(wanted)
    rows = await MESSAGE.fetch(connection, asked)
    for n, message_id, position, text, role, sender, client_at, created_at, conversation in rows:
        if places[n - 1][1] == conversation:
            answers[n - 1] = Message(message_id, position, text, ROLES[role], sender, client_at, created_at)
    return answers


async def last_positions(connection: Connection, accounts: Accounts, wanted: Sequence[str]) -> list[int]:
    """See protocol.Reader.last_position."""
    numbers = await accounts.numbers(connection, set(wanted))
    last = dict(await connection.fetch(LAST_POSITIONS, list(numbers.values())))
    return [last.get(numbers[name], 0) for name in wanted]


async def pages(
    connection: Connection, accounts: Accounts, wanted: Sequence[WantedPage]
) -> list[list[Message] | Alone | None]:
    """See protocol.Reader.messages; ALONE for what is longer than its share of a statement with several."""
    places = await accounts.places(connection, [one[:2] for one in wanted])
    share = _MAX if len(wanted) == 1 else SHARED_CHARS // len(wanted)
    asked = [(*place, *one[2:6], min(share, one[6])) for one, place in zip(wanted, places, strict=True)]
    found: list[list[Message]] = [[] for _ in wanted]
    rows = await PAGE.fetch(connection, asked)
    for n, message_id, position, text, role, sender, client_at, created_at in rows:
        found[n - 1].append(Message(message_id, position, text, ROLES[role], sender, client_at, created_at))
    answers: list[list[Message] | Alone | None] = []
    for one, (_, conversation), page in zip(wanted, places, found, strict=True):
        if conversation is None:
            answers.append(None)
        elif len(page) < one.limit and one.max_chars > share and sum(len(message.text) for message in page) > share:
            answers.append(ALONE)
        else:
            answers.append(page)
    return answers
