"""The statements that record. Each names one account, and all that it touches is that account's."""

RECORD = """
    WITH head AS (
        UPDATE turnlog.log SET position = position + $2::bigint WHERE account = $1
        RETURNING position - $2::bigint AS last
    )
    INSERT INTO turnlog.message
        (account, position, conversation, id, role, sender, client_at, created_at, text)
    SELECT $1, head.last + new.n, new.conversation, new.id, new.role, new.sender, new.client_at, new.created_at,
        new.text
    FROM head, unnest($3::bigint[], $4::text[], $5::smallint[], $6::text[], $7::bigint[], $8::bigint[], $9::text[])
        WITH ORDINALITY AS new (conversation, id, role, sender, client_at, created_at, text, n)
"""
"""Messages and the positions for them, in one statement that is its own transaction."""

# The keys are stored behind the lock, as the messages are: they come from `head`.
RECORD_WITH_KEYS = RECORD.replace(
    ")\n    INSERT",
    """), keys AS (
        INSERT INTO turnlog.idempotency (account, key, fingerprint, ids, created_at)
        SELECT $1, new.key, new.fingerprint, new.ids, new.created_at
        FROM head, unnest($10::text[], $11::bytea[], $12::text[], $13::bigint[])
            AS new (key, fingerprint, ids, created_at)
    )
    INSERT""",
    1,
)

LOCK = "SELECT position FROM turnlog.log WHERE account = $1 FOR UPDATE"
MOVE_HEAD = "UPDATE turnlog.log SET position = $2 WHERE account = $1"
INSERT_MESSAGES = """
    INSERT INTO turnlog.message (account, position, conversation, id, role, sender, client_at, created_at, text)
    SELECT $1, new.* FROM unnest($2::bigint[], $3::bigint[], $4::text[], $5::smallint[], $6::text[], $7::bigint[],
        $8::bigint[], $9::text[]) AS new
"""
# The clock of the database, which is one for all nodes: a node whose clock runs ahead must not end a key's time.
_NOW_US = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
SELECT_KEYS = f"""
    SELECT key, fingerprint, ids, created_at, created_at > {_NOW_US} - $3 AS lives
    FROM turnlog.idempotency WHERE account = $1 AND key = ANY($2)
"""  # noqa: S608
INSERT_KEYS = """
    INSERT INTO turnlog.idempotency AS stored (account, key, fingerprint, ids, created_at)
    SELECT $1, new.* FROM unnest($2::text[], $3::bytea[], $4::text[], $5::bigint[]) AS new
    ON CONFLICT (account, key) DO UPDATE
        SET fingerprint = excluded.fingerprint, ids = excluded.ids, created_at = excluded.created_at
"""
FIND_REPEATS = """
    SELECT wanted.n, found.id
    FROM unnest($2::bigint[], $3::bigint[], $4::smallint[], $5::text[], $6::text[])
        WITH ORDINALITY AS wanted (conversation, client_at, role, sender, text, n)
    CROSS JOIN LATERAL (
        SELECT id FROM turnlog.message AS m
        WHERE m.account = $1 AND m.conversation = wanted.conversation AND m.client_at = wanted.client_at
            AND m.role = wanted.role AND m.sender = wanted.sender AND m.text = wanted.text
        ORDER BY m.position LIMIT 1
    ) AS found
"""
FIND_IDS = "SELECT id FROM turnlog.message WHERE account = $1 AND id = ANY($2)"
INSERT_CONVERSATION = """
    INSERT INTO turnlog.conversation (account, number, id, external_id, customer, customer_name, agent, agent_name,
        metadata, client_at, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
"""
UPDATE_CONVERSATION = """
    UPDATE turnlog.conversation SET customer = $3, customer_name = $4, agent = $5, agent_name = $6, metadata = $7
    WHERE account = $1 AND number = $2
"""
INSERT_CHANGE = """
    INSERT INTO turnlog.conversation_change (account, position, conversation, created, changed_at, state)
    VALUES ($1, $2, $3, $4, $5, $6)
"""
INSERT_AUTHENTICATION = """
    INSERT INTO turnlog.authentication (account, number, conversation, customer, parts, stream_id, created_at)
    SELECT $1, coalesce((SELECT max(number) FROM turnlog.authentication WHERE account = $1), 0) + 1, $2, $3, $4, $5, $6
"""
# What a batch recorded before its connection was lost is not far from the end, whatever others recorded since.
FIND_CHANGES = """
    SELECT conversation, changed_at, state FROM turnlog.conversation_change
    WHERE account = $1 AND position > $4 - 1000000 AND conversation = ANY($2) AND changed_at = ANY($3)
    ORDER BY position
"""
FIND_AUTHENTICATIONS = """
    SELECT conversation, customer, parts, stream_id, created_at FROM turnlog.authentication
    WHERE account = $1 AND created_at = ANY($2)
        AND number > (SELECT max(number) - 1000000 FROM turnlog.authentication WHERE account = $1)
"""
FIND_OLD_KEYS = f"""
    SELECT old.account, old.key FROM turnlog.account AS a CROSS JOIN LATERAL (
        SELECT account, key, created_at FROM turnlog.idempotency AS i
        WHERE i.account = a.account AND i.created_at < least($1, {_NOW_US} - $3)
        ORDER BY i.created_at LIMIT $2
    ) AS old ORDER BY old.created_at LIMIT $2
"""  # noqa: S608
FORGET_KEYS = f"""
    DELETE FROM turnlog.idempotency
    WHERE account = $1 AND key = ANY($2) AND created_at < least($3, {_NOW_US} - $4)
"""  # noqa: S608
