"""The store on PostgreSQL 15 and newer: many processes and machines in front of one database."""

from turnlog.store.postgres.beside import open_log
from turnlog.store.postgres.check import check_store
from turnlog.store.postgres.store import PostgresStore, migrate_store, open_keys, open_store
from turnlog.store.postgres.transfer import open_source, open_target

__all__ = [
    "PostgresStore",
    "check_store",
    "migrate_store",
    "open_keys",
    "open_log",
    "open_source",
    "open_store",
    "open_target",
]
