-- Has a row while a copy into this store (turnlog copy) is not finished: until then the store is not served.

CREATE TABLE copying (
    one        INTEGER PRIMARY KEY CHECK (one = 1),
    source     TEXT NOT NULL,                -- where from, without a password
    started_at INTEGER NOT NULL
) STRICT;
