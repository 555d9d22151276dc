"""The embedded store: one SQLite file, written by one connection, read by others beside it."""

from turnlog.store.sqlite.store import SqliteStore, open_keys, open_store

__all__ = ["SqliteStore", "open_keys", "open_store"]
