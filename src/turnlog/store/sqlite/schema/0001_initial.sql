-- Accounts, keys, conversations, messages and the log that orders them.
--
-- The log: every accepted write has a position in its account, 1, 2, 3, … without a gap, in commit order. A message's
-- row is its log entry; a conversation's creation or change has an entry in conversation_change. Both tables are keyed
-- by entry = account << 40 | position (entries.py), so that an account's log is one range of row ids and needs no
-- second index.
--
-- REFERENCES are for the reader: nothing is ever deleted from a referenced table, and the one connection that writes
-- looks a conversation up in the same transaction, so the check per row would buy nothing (foreign_keys stays off).

CREATE TABLE account (
    number INTEGER PRIMARY KEY,              -- 0, 1, 2, …: a small number keeps every entry small
    name   TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE api_key (
    number         INTEGER PRIMARY KEY,
    id             TEXT NOT NULL UNIQUE,
    account        INTEGER NOT NULL REFERENCES account (number),
    name           TEXT NOT NULL,
    permissions    TEXT NOT NULL,            -- separated by one space
    rate_per_s     REAL,
    refuse_repeats INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    expires_at     INTEGER,
    revoked_at     INTEGER
) STRICT;

CREATE TABLE api_secret (
    digest     BLOB PRIMARY KEY,
    api_key    INTEGER NOT NULL REFERENCES api_key (number),
    created_at INTEGER NOT NULL,
    expires_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX api_secret_key ON api_secret (api_key);

-- Grows with every change to a key, so that a running server sees one in a single small read.
CREATE TABLE keys_version (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL
) STRICT;

INSERT INTO keys_version VALUES (1, 0);

CREATE TABLE conversation (
    number        INTEGER PRIMARY KEY,
    account       INTEGER NOT NULL REFERENCES account (number),
    id            TEXT NOT NULL,
    external_id   TEXT NOT NULL,
    customer      TEXT NOT NULL,             -- the participant's external id
    customer_name TEXT,
    agent         TEXT,
    agent_name    TEXT,
    metadata      TEXT,                      -- JSON object of strings
    client_at     INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    UNIQUE (account, id),
    UNIQUE (account, external_id)
) STRICT;

CREATE TABLE conversation_change (
    entry        INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL REFERENCES conversation (number),
    created      INTEGER NOT NULL,           -- 1: created, 0: updated
    changed_at   INTEGER NOT NULL,
    state        TEXT NOT NULL               -- the conversation after the change, JSON
) STRICT;

CREATE TABLE message (
    entry        INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL REFERENCES conversation (number),
    id           TEXT NOT NULL UNIQUE,
    role         INTEGER NOT NULL,           -- its place in model.ROLES
    sender       TEXT NOT NULL,
    client_at    INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    text         TEXT NOT NULL
) STRICT;

-- A row id stands behind every index entry: (conversation, client_at, entry) is the order of a listing.
CREATE INDEX message_listing ON message (conversation, client_at);

CREATE TABLE idempotency (
    account     INTEGER NOT NULL REFERENCES account (number),
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    ids         TEXT NOT NULL,               -- of the messages recorded, separated by one space
    created_at  INTEGER NOT NULL,
    PRIMARY KEY (account, key)
) STRICT, WITHOUT ROWID;

CREATE INDEX idempotency_age ON idempotency (created_at);

CREATE TABLE authentication (
    number       INTEGER PRIMARY KEY,
    conversation INTEGER NOT NULL REFERENCES conversation (number),
    customer     TEXT NOT NULL,
    parts        TEXT NOT NULL,              -- which parts were sent, separated by one space; never what they held
    stream_id    TEXT,
    created_at   INTEGER NOT NULL
) STRICT;
