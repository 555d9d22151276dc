"""The embedded store: one SQLite file, written by one connection, read by others beside it."""

from turnlog.store.sqlite.backup import back_up
from turnlog.store.sqlite.beside import open_log
from turnlog.store.sqlite.check import check_store
from turnlog.store.sqlite.migrate import migrate_store
from turnlog.store.sqlite.restore import restore
from turnlog.store.sqlite.store import SqliteStore, open_keys, open_store
from turnlog.store.sqlite.transfer import open_source, open_target

__all__ = [
    "SqliteStore",
    "back_up",
    "check_store",
    "migrate_store",
    "open_keys",
    "open_log",
    "open_source",
    "open_store",
    "open_target",
    "restore",
]
