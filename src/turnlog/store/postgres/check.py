"""The whole check of a database's store, beside its servers, all of one moment: the log, what refers to what.

Pages and indexes are PostgreSQL's own: ``data_checksums``, ``pg_amcheck``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from turnlog.store.audit import Findings, log_problem
from turnlog.store.postgres import migrate
from turnlog.store.postgres.beside import refuse_other_schema
from turnlog.store.postgres.connections import Connections

if TYPE_CHECKING:
    from asyncpg import Connection

    from turnlog.store.postgres.address import Address

_LIMIT_S = 4 * 3600.0
_COUNTED = ("account", "conversation", "conversation_change", "message", "api_key", "webhook")
_LOGS = """
    SELECT coalesce(a.name, 'of no name, number ' || account), coalesce(m.entries, 0) + coalesce(x.entries, 0),
        greatest(m.last, x.last, 0), coalesce(l.position, 0)
    FROM turnlog.account AS a
    FULL JOIN turnlog.log AS l USING (account)
    FULL JOIN (SELECT account, count(*) AS entries, max(position) AS last FROM turnlog.message GROUP BY account)
        AS m USING (account)
    FULL JOIN (SELECT account, count(*) AS entries, max(position) AS last FROM turnlog.conversation_change
        GROUP BY account) AS x USING (account)
"""
_TWICE = """
    SELECT a.name, count(*) FROM turnlog.conversation_change AS x JOIN turnlog.message AS m USING (account, position)
    JOIN turnlog.account AS a USING (account) GROUP BY a.name
"""


def _without(table: str, parent: str, condition: str) -> tuple[str, str]:
    lonely = f"SELECT count(*) FROM turnlog.{table} AS t WHERE NOT EXISTS "  # noqa: S608
    found = f"(SELECT 1 FROM turnlog.{parent} AS p WHERE {condition})"  # noqa: S608
    return f"rows of {table} have no row of {parent}", lonely + found


_OF_CONVERSATION = "p.account = t.account AND p.number = t.conversation"
_OF_WEBHOOK = "p.account = t.account AND p.id = t.webhook"
_RELATIONS = (
    *(
        _without(table, "account", "p.account = t.account")
        for table in ("message", "conversation_change", "conversation", "api_key", "idempotency", "log", "webhook")
    ),
    _without("message", "conversation", _OF_CONVERSATION),
    _without("conversation_change", "conversation", _OF_CONVERSATION),
    _without("authentication", "conversation", _OF_CONVERSATION),
    _without("api_secret", "api_key", "p.account = t.account AND p.id = t.key"),
    _without("webhook_blocked", "webhook", _OF_WEBHOOK),
    _without("webhook_dead", "webhook", _OF_WEBHOOK),
    (
        "conversations do not have one creation in the log",
        """
        SELECT count(*) FROM turnlog.conversation AS c FULL JOIN
            (SELECT account, conversation AS number, count(*) AS creations FROM turnlog.conversation_change
            WHERE created GROUP BY account, conversation) AS x USING (account, number)
        WHERE creations IS DISTINCT FROM 1
        """,
    ),
)


async def check_store(address: Address) -> Findings:
    """Everything that can be checked in the database; nothing of it is changed.

    Raises SettingError where there is no store, where it is of another schema, where it is half a copy;
    StoreUnavailableError.
    """
    async with Connections(address, reading=True).alone(_LIMIT_S) as connection:
        refuse_other_schema(await migrate.look(connection, address.shown), address.shown)
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            return await _findings(connection)


async def _findings(connection: Connection) -> Findings:
    findings = Findings()
    for table in _COUNTED:
        findings.counts[table] = await connection.fetchval(f"SELECT count(*) FROM turnlog.{table}")  # noqa: S608
    twice = dict(await connection.fetch(_TWICE))
    for name, count, last, told in await connection.fetch(_LOGS):
        problem = log_problem(name, count, last, twice.get(name, 0), told)
        findings.problems += [] if problem is None else [problem]
    for what, statement in _RELATIONS:
        if count := await connection.fetchval(statement):
            findings.problems.append(f"{count} {what}")
    return findings
