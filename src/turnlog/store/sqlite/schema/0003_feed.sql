-- What the change feed and webhooks need beside the log: its name, a conversation's changes, and who is subscribed.

CREATE TABLE log_name (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    name TEXT NOT NULL                       -- tells this log's cursors from every other's; the same in copies
) STRICT;

INSERT INTO log_name VALUES (1, lower(hex(randomblob(16))));

CREATE INDEX conversation_change_conversation ON conversation_change (conversation);

CREATE TABLE webhook (
    number        INTEGER PRIMARY KEY,
    account       INTEGER NOT NULL REFERENCES account (number),
    id            TEXT NOT NULL UNIQUE,
    settings      TEXT NOT NULL,             -- model.Webhook, JSON; holds the secrets, which a signature needs
    position      INTEGER NOT NULL,          -- its cursor: all before it is delivered, dead, or blocked
    retry_from_at INTEGER NOT NULL,
    hold_until    INTEGER NOT NULL DEFAULT 0,  -- its receiver asked for nothing to be sent before
    revision      INTEGER NOT NULL,          -- grows with every new owner, and every change not from its worker
    owner         TEXT                       -- the process that works for it: the one that records, until the next
) STRICT;

CREATE INDEX webhook_account ON webhook (account);

CREATE TABLE webhook_blocked (
    webhook         INTEGER NOT NULL REFERENCES webhook (number),
    conversation    TEXT NOT NULL,           -- its id
    position        INTEGER NOT NULL,        -- of its first event that was not delivered
    attempts        INTEGER NOT NULL,
    first_failed_at INTEGER NOT NULL,
    next_at         INTEGER NOT NULL,
    error           TEXT NOT NULL,
    PRIMARY KEY (webhook, conversation)
) STRICT, WITHOUT ROWID;

CREATE TABLE webhook_dead (
    webhook         INTEGER NOT NULL REFERENCES webhook (number),
    position        INTEGER NOT NULL,
    type            TEXT NOT NULL,
    conversation    TEXT NOT NULL,
    attempts        INTEGER NOT NULL,
    first_failed_at INTEGER NOT NULL,
    dead_at         INTEGER NOT NULL,
    error           TEXT NOT NULL,
    replayed        INTEGER NOT NULL,        -- 1: to be sent again
    PRIMARY KEY (webhook, position)
) STRICT, WITHOUT ROWID;

CREATE INDEX webhook_dead_replayed ON webhook_dead (webhook, position) WHERE replayed;

-- Grows with every change to a webhook but for progress.
CREATE TABLE webhooks_version (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    version INTEGER NOT NULL
) STRICT;

INSERT INTO webhooks_version VALUES (1, 0);
