"""Stores as programs before this one left them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.harness import Key
from turnlog import secret
from turnlog.store.sqlite.connection import connect
from turnlog.store.sqlite.migrate import migrations

if TYPE_CHECKING:
    from pathlib import Path

NEWEST = migrations()[-1][0]
KEY = Key("turnlog_id_OLD", "turnlog_sk_OLD")

# What a program of schema 1 wrote: every table has rows, every column a value and, where it may, none.
ROWS_OF_SCHEMA_1 = """
    INSERT INTO account VALUES (0, 'default'), (1, 'other');
    INSERT INTO api_key VALUES
        (1, 'turnlog_id_OLD', 0, 'old', 'conversations:write messages:write read', NULL, 0, 10, NULL, NULL),
        (2, 'turnlog_id_GONE', 1, 'gone', 'read', 50.5, 1, 11, 99, 12);
    UPDATE keys_version SET version = 7;
    INSERT INTO conversation VALUES
        (1, 0, 'C1', 'chat-1', 'jane', 'Jane', 'bob', 'Bob', '{"a":"é"}', -5, 20),
        (2, 1, 'C1', 'chat-1', 'jack', NULL, NULL, NULL, NULL, 6, 21);
    INSERT INTO conversation_change VALUES
        (1, 1, 1, 20, '{"id":"C1","external_id":"chat-1","customer":{"external_id":"jane"}}'),
        (2, 1, 0, 22, '{"id":"C1","external_id":"chat-1","customer":{"external_id":"jane","name":"Jane"},'
            || '"agent":{"external_id":"bob","name":"Bob"},"metadata":{"a":"é"}}'),
        ((1 << 40) + 1, 2, 1, 21, '{"id":"C1","external_id":"chat-1","customer":{"external_id":"jack"}}');
    INSERT INTO message VALUES
        (3, 1, 'M1', 1, 'jane', 1637669594555000, 1637669594556000, 'Grüße ' || char(1) || char(128512)),
        (4, 1, 'M2', 0, 'bob', 1637669594555000, 1637669594557000, 'Hello'),
        ((1 << 40) + 2, 2, 'M3', 2, 'bot', 1637669594555000, 1637669594558000, 'Hi');
    INSERT INTO idempotency VALUES (0, 'k', x'0102', 'M1 M2', 30);
    INSERT INTO authentication VALUES (1, 1, 'jane', 'token session', 'S1', 40), (2, 1, 'jane', 'token', NULL, 41);
"""


def old_store(folder: Path, version: int) -> str:
    """The URL of a store as a program of schema ``version`` left it."""
    path = folder / "turnlog.db"
    path.touch()
    connection = connect(path)
    for number, sql in migrations()[:version]:
        connection.execute(sql)
        connection.pragma("user_version", number)
    connection.execute(ROWS_OF_SCHEMA_1)
    connection.execute("INSERT INTO api_secret VALUES (?, 1, 10, NULL)", (secret.digest(KEY.secret.encode()),))
    connection.close()
    return f"sqlite:///{path}"
