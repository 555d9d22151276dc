-- Accounts, keys, conversations, messages and the log that orders them.
--
-- Every key begins with the account: it is what a distributed PostgreSQL would distribute on, and every statement that
-- records or reads names one (docs/decisions/0008-sharding.md). The two tables of one row are the exception; such an
-- engine keeps a copy of them everywhere.
--
-- The log: every accepted write has a position in its account, 1, 2, 3, … without a gap, in commit order. A message's
-- row is its log entry; a conversation's creation or change has an entry in conversation_change. Whoever records
-- updates the account's row in `log` first and so waits for whoever recorded before: positions become visible in order.
--
-- No foreign keys: nothing is ever deleted from a table that is referred to, and a conversation is looked up before a
-- message of it is stored, so the check per row would buy nothing.
-- Texts that are looked up are compared byte by byte (COLLATE "C"): an operating system's upgrade reorders no index.

CREATE TABLE turnlog.account (
    account integer PRIMARY KEY,
    name    text COLLATE "C" NOT NULL        -- unique: accounts are made one at a time (keys.py)
);

CREATE TABLE turnlog.log (
    account  integer PRIMARY KEY,
    position bigint NOT NULL                 -- the last one given
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000);  -- updated by every batch: room for its versions

CREATE TABLE turnlog.api_key (
    account        integer NOT NULL,
    number         bigint NOT NULL,          -- order of creation
    id             text COLLATE "C" NOT NULL,
    name           text NOT NULL,
    permissions    text NOT NULL,            -- separated by one space
    rate_per_s     double precision,
    refuse_repeats boolean NOT NULL,
    created_at     bigint NOT NULL,
    expires_at     bigint,
    revoked_at     bigint,
    PRIMARY KEY (account, id)
);

CREATE TABLE turnlog.api_secret (
    account    integer NOT NULL,
    key        text COLLATE "C" NOT NULL,    -- api_key.id
    digest     bytea NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint,
    PRIMARY KEY (account, key, digest)
);

-- Grows with every change to a key, so that a running server sees one in a single small read.
CREATE TABLE turnlog.keys_version (
    one     integer PRIMARY KEY CHECK (one = 1),
    version bigint NOT NULL
);

INSERT INTO turnlog.keys_version VALUES (1, 0);

CREATE TABLE turnlog.conversation (
    account       integer NOT NULL,
    number        bigint NOT NULL,           -- the position of its creation
    id            text COLLATE "C" NOT NULL,
    external_id   text COLLATE "C" NOT NULL,
    customer      text NOT NULL,             -- the participant's external id
    customer_name text,
    agent         text,
    agent_name    text,
    metadata      text,                      -- JSON object of strings, as it was sent
    client_at     bigint NOT NULL,
    created_at    bigint NOT NULL,
    PRIMARY KEY (account, number),
    UNIQUE (account, id),
    UNIQUE (account, external_id)
);

CREATE TABLE turnlog.conversation_change (
    account      integer NOT NULL,
    position     bigint NOT NULL,
    conversation bigint NOT NULL,
    created      boolean NOT NULL,           -- else updated
    changed_at   bigint NOT NULL,
    state        text NOT NULL,              -- the conversation after the change, JSON
    PRIMARY KEY (account, position)
);

CREATE TABLE turnlog.message (
    account      integer NOT NULL,
    role         smallint NOT NULL,          -- its place in model.ROLES
    position     bigint NOT NULL,
    conversation bigint NOT NULL,
    client_at    bigint NOT NULL,
    created_at   bigint NOT NULL,
    id           text COLLATE "C" NOT NULL,
    sender       text COLLATE "C" NOT NULL,
    text         text COLLATE "C" NOT NULL,
    PRIMARY KEY (account, position),
    UNIQUE (account, id)
);

CREATE INDEX message_listing ON turnlog.message (account, conversation, client_at, position);

CREATE TABLE turnlog.idempotency (
    account     integer NOT NULL,
    key         text COLLATE "C" NOT NULL,
    fingerprint bytea NOT NULL,
    ids         text NOT NULL,               -- of the messages recorded, separated by one space
    created_at  bigint NOT NULL,
    PRIMARY KEY (account, key)
);

CREATE INDEX idempotency_age ON turnlog.idempotency (account, created_at);

CREATE TABLE turnlog.authentication (
    account      integer NOT NULL,
    number       bigint NOT NULL,            -- 1, 2, 3, … in the account
    conversation bigint NOT NULL,
    customer     text NOT NULL,
    parts        text NOT NULL,              -- which parts were sent, separated by one space; never what they held
    stream_id    text,
    created_at   bigint NOT NULL,
    PRIMARY KEY (account, number)
);

-- Has a row while a copy into this store is not finished.
CREATE TABLE turnlog.copying (
    one        integer PRIMARY KEY CHECK (one = 1),
    source     text NOT NULL,                -- where from, without a password
    started_at bigint NOT NULL
);
