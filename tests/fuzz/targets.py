"""Everything that takes in other people's bytes."""

from __future__ import annotations

from tests.fuzz import bodies, connections, cursors, events, imports, parameters, timestamps, urls
from tests.fuzz.engine import Target
from turnlog import addresses, ids, instants, sending, transcripts
from turnlog.following import server
from turnlog.http import bodies as http_bodies
from turnlog.http import exchanges, heads, protocol, requests, webhook_bodies
from turnlog.http import parameters as http_parameters
from turnlog.targets import remote

TARGETS = (
    Target("bodies", bodies.check, (http_bodies, webhook_bodies, instants), bodies.WORDS),
    Target("connections", connections.check, (protocol, heads, exchanges, requests), connections.WORDS),
    Target("cursors", cursors.check, (ids,), cursors.WORDS),
    Target("events", events.check, (server,), events.WORDS),
    Target("idempotency_keys", parameters.check_idempotency_key, (http_parameters,), parameters.KEY_WORDS),
    Target("imports", imports.check, (transcripts, instants), imports.WORDS),
    Target("queries", parameters.check_query, (http_parameters,), parameters.QUERY_WORDS),
    Target("retry_after", parameters.check_retry_after, (sending, remote), parameters.RETRY_WORDS),
    Target("timestamps", timestamps.check, (instants,), timestamps.WORDS),
    Target("urls", urls.check, (addresses,), urls.WORDS),
)
