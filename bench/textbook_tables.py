"""The textbook service's tables, and how it gets to its database."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    DateTime,
    Dialect,
    ForeignKeyConstraint,
    Index,
    String,
    TypeDecorator,
    UniqueConstraint,
    event,
)
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

POSTGRES_POOL = 20
SQLITE_READERS = 4
SQLITE_WRITERS = 1
_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_id() -> str:
    """A ULID."""
    number = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    return "".join(_DIGITS[number >> shift & 31] for shift in range(125, -1, -5))


class Instant(TypeDecorator[datetime]):
    """An instant in UTC: SQLite keeps no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        return value if value is None or value.tzinfo else value.replace(tzinfo=UTC)


class Base(DeclarativeBase):
    pass


class ApiKey(Base):
    __tablename__ = "api_key"

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    account_id: Mapped[int]


class Conversation(Base):
    __tablename__ = "conversation"

    account_id: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    external_id: Mapped[str]
    customer: Mapped[str]
    customer_name: Mapped[str | None]
    agent: Mapped[str | None]
    agent_name: Mapped[str | None]
    details: Mapped[dict[str, str] | None] = mapped_column(JSON)
    client_at: Mapped[datetime] = mapped_column(Instant)
    created_at: Mapped[datetime] = mapped_column(Instant)

    __table_args__ = (UniqueConstraint("account_id", "external_id"),)


class Message(Base):
    __tablename__ = "message"

    id: Mapped[str] = mapped_column(String(26), primary_key=True)
    account_id: Mapped[int]
    conversation_id: Mapped[str] = mapped_column(String(26))
    role: Mapped[str] = mapped_column(String(8))
    sender: Mapped[str]
    client_at: Mapped[datetime] = mapped_column(Instant)
    created_at: Mapped[datetime] = mapped_column(Instant)
    text: Mapped[str]

    __table_args__ = (
        ForeignKeyConstraint(["account_id", "conversation_id"], ["conversation.account_id", "conversation.id"]),
        Index("message_listing", "account_id", "conversation_id", "client_at", "id"),
    )


class Database:
    """Sessions on pooled connections: ``writer`` for what records, ``reader`` for the rest.

    SQLite has one writer at a time. Connections that wait in line for it in the pool are woken in turn; those that
    wait in SQLite's busy handler sleep and try again, and some of them fail in the end.
    """

    def __init__(self, url: str) -> None:
        options: dict[str, Any] = {"max_overflow": 0, "pool_timeout": 60}
        if url.startswith("sqlite"):
            address = url.replace("sqlite:", "sqlite+aiosqlite:", 1)
            writer = create_async_engine(address, pool_size=SQLITE_WRITERS, **options)
            reader = create_async_engine(address, pool_size=SQLITE_READERS, **options)
            self.engines = [writer, reader]
            _tune_sqlite(writer, "BEGIN IMMEDIATE")
            _tune_sqlite(reader, "BEGIN")
        else:
            address = url.replace("postgresql:", "postgresql+asyncpg:", 1)
            writer = reader = create_async_engine(address, pool_size=POSTGRES_POOL, **options)
            self.engines = [writer]
        self.writer = async_sessionmaker(writer, expire_on_commit=False)
        # One SELECT is a transaction by itself: no BEGIN and no ROLLBACK around it.
        reader = reader.execution_options(isolation_level="AUTOCOMMIT")
        self.reader = async_sessionmaker(reader, expire_on_commit=False)

    async def close(self) -> None:
        for engine in self.engines:
            await engine.dispose()


def _tune_sqlite(engine: AsyncEngine, begin: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the driver would begin late, and so upgrade a lock: "database is locked"
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000", "foreign_keys=ON",
                       "cache_size=-32768", "temp_store=MEMORY"):  # fmt: skip
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begun(connection: Any) -> None:
        connection.exec_driver_sql(begin)
