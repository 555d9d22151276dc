"""``turnlog serve``: the only place that builds a whole server out of its parts."""

from __future__ import annotations

import asyncio
import gc
import secrets
import socket
import sys
import time
from typing import TYPE_CHECKING

import click
import structlog
import uvloop

from turnlog import __version__, instants, logs
from turnlog.cli.keys import DEFAULT_ACCOUNT, new_key, now_us
from turnlog.cli.settings import file_option, settings, store_option, store_to_make
from turnlog.errors import SettingError
from turnlog.http.app import App
from turnlog.http.bodies import BodyReader
from turnlog.http.operations import OPERATIONS, Context
from turnlog.http.public import public_operations
from turnlog.http.server import make_server, open_connections
from turnlog.ids import Ulids
from turnlog.keyring import Keyring
from turnlog.metrics import Metrics
from turnlog.service import Service
from turnlog.store.connect import open_store
from turnlog.store.protocol import StoreUnavailableError
from turnlog.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable

    from turnlog.config import Config
    from turnlog.store.protocol import Store

_WATCH_INTERVAL_S = 0.25
_US_PER_HOUR = 3600 * instants.US_PER_S
_log = structlog.get_logger()


@click.command()
@file_option
@store_option
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="The port to listen on; 0 takes a free one.  [default: 8080]")
@click.option("--first-key", is_flag=True, help="Where the store has no key yet, create one and print a first session.")
def serve(file: str | None, store: str | None, host: str | None, port: int | None, *, first_key: bool) -> None:
    """Serve the Conversations API until SIGINT or SIGTERM."""
    effective = settings(file, store=store, host=host, port=port)
    config = effective.config
    logs.configure(config.log_level, lambda: instants.render(now_us()))
    store_to_make(effective)
    with _listen(config) as listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(_serve(config, listener, first_key=first_key))
    if status:
        sys.exit(status)


def _listen(config: Config) -> socket.socket:
    """The listening socket, bound before anything else: a port that is taken is known before the store is touched."""
    problem = f"cannot listen on {config.host} port {config.port}"
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingError(f"{problem}: {getattr(error, 'strerror', None) or 'not a host name'}") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise SettingError(f"{problem}: {error.strerror or error}") from error
    return listener


async def _serve(config: Config, listener: socket.socket, *, first_key: bool) -> int:
    """Run until told to stop; 0 after a clean stop, 1 where the store failed."""
    ttl_us = config.idempotency_hours * _US_PER_HOUR
    store = await open_store(config.store, idempotency_ttl_us=ttl_us)
    failures: list[BaseException] = []
    metrics = Metrics()
    ids = Ulids(now_us, secrets.randbits)

    def fail(failure: BaseException) -> None:  # not before the first batch, and by then there is a server
        if not failures:
            server.should_exit = True
            _log.error("store_failed", error=str(failure))
        failures.append(failure)

    writer = Writer(
        store,
        max_rows=config.max_queued_messages,
        max_chars=config.max_queued_characters,
        deadline_s=config.write_deadline_s,
        monotonic_s=time.monotonic,
        on_batch=metrics.batch,
        on_failure=fail,
    )
    keyring = Keyring(now_us, time.monotonic)
    banner = await _prepare_keys(store, keyring, first_key=first_key)
    service = Service(store, writer, ids, now_us, refuse_repeats=config.refuse_repeats)
    public = public_operations(OPERATIONS, config, metrics, store.health, service.is_healthy)
    context = Context(service, BodyReader(lenient=config.lenient))
    app = App((*OPERATIONS, *public), context, keyring, metrics, config, ids)
    server = make_server(app, config, ids.new, metrics, lambda: _announce(config, listener, banner))
    metrics.gauge("turnlog_queue_rows", "Messages waiting for a transaction.", lambda: writer.queued_rows)
    metrics.gauge("turnlog_open_connections", "Open connections.", lambda: open_connections(server))
    background = [
        asyncio.create_task(keyring.follow(store, asyncio.sleep)),
        asyncio.create_task(service.forget_idempotency(ttl_us, asyncio.sleep)),
        asyncio.create_task(_watch(store, fail)),
    ]
    _tune_collector()
    await server.serve(sockets=[listener])
    for task in background:
        task.cancel()
    await asyncio.gather(*background, return_exceptions=True)
    await writer.drain()
    await store.close()
    _log.info("stopped", clean=not failures)
    return 1 if failures else 0


async def _watch(store: Store, fail: Callable[[BaseException], None]) -> None:
    """A store may also fail between two batches, at a checkpoint: then too, nothing more is recorded."""
    while True:
        await asyncio.sleep(_WATCH_INTERVAL_S)
        if store.failure is not None:
            fail(store.failure)


def _tune_collector() -> None:
    """Look for reference cycles less often: what a request leaves behind is freed by its reference counts.

    With Python's thresholds the search takes 3 % of the time of recording. What the start has made is left out of it.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _announce(config: Config, listener: socket.socket, banner: str) -> None:
    host, port = listener.getsockname()[:2]
    base = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    _log.info("listening", address=base, store=config.store, version=__version__)
    if banner:
        click.echo(banner.replace("{base}", base))


async def _prepare_keys(store: Store, keyring: Keyring, *, first_key: bool) -> str:
    """Load the keys; what to print once the server listens."""
    try:
        records = await store.keys()
    except StoreUnavailableError as error:
        _log.warning("store_unavailable", error=str(error), hint="serving 503-01 until it answers")
        return ""
    if not records and first_key:
        record, secret = new_key("first", DEFAULT_ACCOUNT)
        await store.add_key(record)
        await keyring.refresh(store)
        return _FIRST_SESSION.replace("{id}", record.key.id).replace("{secret}", secret)
    if all(record.key.revoked_at is not None for record in records):
        _log.warning("no_keys", hint="nobody can come in: create a key with `turnlog keys create NAME`")
    await keyring.refresh(store)
    return _KEPT if first_key else ""


_KEPT = """\
Turnlog is listening on {base}, with the keys that the store has; their secrets are not shown again.
For another key: .venv/bin/turnlog keys create NAME      API: {base}/docs      stop: Ctrl-C"""

_FIRST_SESSION = """\
Turnlog is listening on {base}. This is its first key; the secret is shown only now:

  asapp-api-id:     {id}
  asapp-api-secret: {secret}

Try it: a conversation, a message, the list.

curl -sS -w '\\n' {base}/conversation/v1/conversations \\
  -H 'asapp-api-id: {id}' -H 'asapp-api-secret: {secret}' \\
  -H 'content-type: application/json' \\
  -d '{"id": "DEMO1", "externalId": "demo-1", "customer": {"externalId": "jane"}, "timestamp": "2026-01-31T12:00:00Z"}'
curl -sS -w '\\n' {base}/conversation/v1/conversations/DEMO1/messages \\
  -H 'asapp-api-id: {id}' -H 'asapp-api-secret: {secret}' \\
  -H 'content-type: application/json' -H 'idempotency-key: demo-1-hello' \\
  -d '{"text": "Hello!", "sender": {"role": "customer", "externalId": "jane"}, "timestamp": "2026-01-31T12:00:01Z"}'
curl -sS -w '\\n' {base}/conversation/v1/conversations/DEMO1/messages \\
  -H 'asapp-api-id: {id}' -H 'asapp-api-secret: {secret}'

API: {base}/docs      stop: Ctrl-C"""
