"""Roles of a database that may do little, and the URLs with which a server is one of them."""

from __future__ import annotations

import asyncio
import itertools
from urllib.parse import quote, urlsplit

import asyncpg

_numbers = itertools.count(1)
# Every character that means something in a URL, in SQL or to a shell, and one that is not ASCII.
ROLE_PASSWORD = "a:b/c?d#e[f]@g!h$&'()*+,;=%40 \"ü"  # noqa: S105 - of roles that live for one test
_SERVE = """
    GRANT USAGE ON SCHEMA turnlog TO {name};
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA turnlog TO {name};
"""


def script(url: str, text: str) -> None:
    """Run statements that find nothing. Within a coroutine, call it in a thread."""

    async def execute() -> None:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(text)
        finally:
            await connection.close()

    asyncio.run(execute())


def user_of(url: str) -> str:
    """Who a URL says one is."""
    return urlsplit(url).username or ""


def make_role(url: str, *, serve: bool = True, password: str = ROLE_PASSWORD) -> str:
    """The URL of the same database for a new role; with ``serve`` one that may do what a server does on its tables."""
    name = f"role_{next(_numbers)}"
    literal = password.replace("'", "''")
    script(url, f"CREATE ROLE {name} LOGIN PASSWORD '{literal}';" + (_SERVE.format(name=name) if serve else ""))
    return f"postgresql://{name}:{quote(password, safe='')}@{url.rpartition('@')[2]}"
