-- What the change feed and webhooks need beside the log: its name, a conversation's changes, and who is subscribed.

CREATE TABLE turnlog.log_name (
    one  integer PRIMARY KEY CHECK (one = 1),
    name text COLLATE "C" NOT NULL           -- tells this log's cursors from every other's; the same in copies
);

INSERT INTO turnlog.log_name VALUES (1, replace(gen_random_uuid()::text, '-', ''));

CREATE INDEX conversation_change_conversation ON turnlog.conversation_change (account, conversation, position);

CREATE TABLE turnlog.webhook (
    account       integer NOT NULL,
    id            text COLLATE "C" NOT NULL,
    number        bigint NOT NULL,           -- order of creation
    settings      text NOT NULL,             -- model.Webhook, JSON; holds the secrets, which a signature needs
    position      bigint NOT NULL,           -- its cursor: all before it is delivered, dead, or blocked
    retry_from_at bigint NOT NULL,
    hold_until    bigint NOT NULL DEFAULT 0,  -- its receiver asked for nothing to be sent before
    revision      bigint NOT NULL,           -- grows with every new owner, and every change not from its worker
    owner         text,                      -- the process that works for it
    owned_until   timestamptz,               -- by the database's clock
    PRIMARY KEY (account, id)
) WITH (fillfactor = 50);  -- updated by every claim and by all progress: room for its versions

CREATE TABLE turnlog.webhook_blocked (
    account         integer NOT NULL,
    webhook         text COLLATE "C" NOT NULL,
    conversation    text COLLATE "C" NOT NULL,   -- its id
    position        bigint NOT NULL,         -- of its first event that was not delivered
    attempts        integer NOT NULL,
    first_failed_at bigint NOT NULL,
    next_at         bigint NOT NULL,
    error           text NOT NULL,
    PRIMARY KEY (account, webhook, conversation)
);

CREATE TABLE turnlog.webhook_dead (
    account         integer NOT NULL,
    webhook         text COLLATE "C" NOT NULL,
    position        bigint NOT NULL,
    type            text NOT NULL,
    conversation    text NOT NULL,
    attempts        integer NOT NULL,
    first_failed_at bigint NOT NULL,
    dead_at         bigint NOT NULL,
    error           text NOT NULL,
    replayed        boolean NOT NULL,        -- to be sent again
    PRIMARY KEY (account, webhook, position)
);

CREATE INDEX webhook_dead_replayed ON turnlog.webhook_dead (account, webhook, position) WHERE replayed;

-- Grows with every change to a webhook but for progress.
CREATE TABLE turnlog.webhooks_version (
    one     integer PRIMARY KEY CHECK (one = 1),
    version bigint NOT NULL
);

INSERT INTO turnlog.webhooks_version VALUES (1, 0);
