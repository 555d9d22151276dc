"""``turnlog serve``: the only place that builds a whole server out of its parts."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import socket
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import structlog
import uvloop

from turnlog import __version__, instants, logs
from turnlog.cli.keys import DEFAULT_ACCOUNT, new_key, now_us
from turnlog.cli.node import US_PER_HOUR, Node
from turnlog.cli.settings import file_option, settings, store_option, store_to_make
from turnlog.errors import SettingError
from turnlog.http.certificate import certificate
from turnlog.http.intake import Shares
from turnlog.http.server import BACKLOG, Share, make_server
from turnlog.metrics import Metrics
from turnlog.peers import Doors, Peers
from turnlog.store.connect import is_shared, open_store, shown
from turnlog.store.protocol import StoreUnavailableError
from turnlog.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from turnlog.config import Config
    from turnlog.http.certificate import Certificate
    from turnlog.http.server import Server
    from turnlog.store.protocol import Store
    from turnlog.supervisor import Worker

_GRACE_S = 5.0
"""How much longer than ``drain_timeout_s`` the stop of a worker may take."""
_OTHERS_S = 0.5
"""How long a scrape of the metrics waits for the other workers."""
_FAILED_S = 0.7
"""How long a worker whose store has failed may take to answer who waits, and to end."""
_PORT_TRIES = 50
_PORT_PAUSE_S = 0.02
"""A server that was killed holds its port until the kernel has taken it all back."""
_log = structlog.get_logger()


@click.command()
@file_option
@store_option
@click.option("--host", help="The address to listen on.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="The port to listen on; 0 takes a free one.  [default: 8080]")
@click.option("--workers", type=int, help="Processes side by side; over 1 only on PostgreSQL.  [default: 1]")
@click.option("--tls-cert", metavar="FILE", help="Speak TLS: the certificate, its chain behind it, as PEM.")
@click.option("--tls-key", metavar="FILE", help="The certificate's private key, as PEM.")
@click.option(
    "--allow-private-webhooks",
    is_flag=True,
    default=None,
    help="Deliver webhooks to private addresses and over plain http, too.",
)
@click.option("--first-key", is_flag=True, help="Where the store has no key yet, create one and print a first session.")
def serve(
    file: str | None,
    store: str | None,
    host: str | None,
    port: int | None,
    workers: int | None,
    tls_cert: str | None,
    tls_key: str | None,
    *,
    allow_private_webhooks: bool | None,
    first_key: bool,
) -> None:
    """Serve the Conversations API until SIGINT or SIGTERM."""
    effective = settings(
        file,
        store=store,
        host=host,
        port=port,
        workers=workers,
        tls_cert=tls_cert,
        tls_key=tls_key,
        allow_private_webhooks=allow_private_webhooks,
    )
    config = effective.config
    logs.configure(config.log_level, lambda: instants.render(now_us()))
    if config.workers > 1 and not is_shared(config.store):
        raise SettingError(
            f"{config.workers} workers cannot record in {shown(config.store)}, which one process keeps to itself: "
            "expected a PostgreSQL store, or 1 worker"
        )
    secure = certificate(config.tls_cert, config.tls_key)
    store_to_make(effective)
    with _bind(config) as listener:
        status = _supervise(config, listener, secure, first_key=first_key)
    _log.info("stopped", clean=not status)
    if status:
        sys.exit(status)


def _run(main: Coroutine[None, None, int]) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


def _bind(config: Config) -> socket.socket:
    """The socket to listen on, bound before all else: a port that is taken is known before the store is touched."""
    problem = f"cannot listen on {config.host} port {config.port}"
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SettingError(f"{problem}: {getattr(error, 'strerror', None) or 'not a host name'}") from error
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _take_port(listener, address)
    except OSError as error:
        listener.close()
        raise SettingError(f"{problem}: {error.strerror or error}") from error
    return listener


def _take_port(listener: socket.socket, address: Any) -> None:
    for left in reversed(range(_PORT_TRIES)):
        try:
            listener.bind(address)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not left:
                raise
            time.sleep(_PORT_PAUSE_S)
        else:
            return


class _Member(NamedTuple):
    """What a worker has of itself and the others."""

    worker: Worker
    shares: Shares
    peers: Peers
    alone: bool

    @property
    def share(self) -> Share:
        return Share(self.shares, self.worker.number)

    async def ask(self) -> dict[int, bytes | None]:
        return await self.peers.ask(_OTHERS_S)


def _supervise(config: Config, listener: socket.socket, secure: Certificate | None, *, first_key: bool) -> int:
    """Run the workers until told to stop; 0 where all of them stopped in good order."""
    # Not uvloop's loop, which may leave threads behind: none may live when the workers are forked.
    banner = asyncio.run(_prepare(config, first_key=first_key))
    listener.settimeout(0)
    listener.listen(BACKLOG)  # here, so that nobody is refused while a worker is started again
    shares = Shares(config.workers)
    alone = config.workers == 1

    def work(worker: Worker) -> int:
        if alone:  # it is the server, to whoever reads its log or kills its parent
            worker.die_with_parent()
        else:
            logs.configure(config.log_level, lambda: instants.render(now_us()), worker=worker.number)
        return _run(_serve(config, listener, _Member(worker, shares, Peers(doors, worker.number), alone), secure))

    gc.freeze()  # what is there now stays memory that parent and workers share
    with Doors(config.workers) as doors:
        return Supervisor(
            config.workers,
            work,
            on_ready=lambda: _announce(config, listener, banner),
            on_stop=listener.close,
            patience_s=config.drain_timeout_s + _GRACE_S,
            monotonic_s=time.monotonic,
        ).run()


async def _prepare(config: Config, *, first_key: bool) -> str:
    """Do once what not every worker should: migrations, the first key. What to print once all of them listen."""
    store = await _open(config, create=True)
    try:
        return await _first_session(store, first_key=first_key)
    finally:
        await store.close()


async def _open(config: Config, *, create: bool) -> Store:
    ttl_us, deadline_s = config.idempotency_hours * US_PER_HOUR, config.write_deadline_s
    return await open_store(config.store, idempotency_ttl_us=ttl_us, deadline_s=deadline_s, create=create)


async def _serve(config: Config, listener: socket.socket, member: _Member, secure: Certificate | None) -> int:
    """A worker's life, until told to stop; 0 after a clean stop, 1 where the store failed."""
    store = await _open(config, create=False)  # a store that has gone since the start is not to be made anew
    failures: list[BaseException] = []
    metrics = Metrics() if member.alone else Metrics(member.worker.number, member.ask)

    def fail(failure: BaseException) -> None:  # not before the first batch, and by then there is a server
        if not failures:
            server.stop()
            _log.error("store_failed", error=str(failure))
            # Nothing that hangs, a disk least of all, keeps the next worker from being started.
            asyncio.get_running_loop().call_later(_FAILED_S, os._exit, 1)
        failures.append(failure)

    node = Node(config, store, metrics, fail)
    await node.load_keys()
    server = make_server(node.app, config, node.ids.new, metrics, member.worker.ready, member.share, secure)
    _join(member, server, metrics)
    metrics.gauge("turnlog_open_connections", "Open connections.", lambda: server.open_connections)
    node.start()
    _tune_collector()
    stopping = asyncio.create_task(_stop_delivering(server, node))
    await server.serve(listener)
    await stopping
    await node.finish()
    return 1 if failures else 0


async def _stop_delivering(server: Server, node: Node) -> None:
    await server.until_stopping()
    await node.stop_delivering()


def _join(member: _Member, server: Server, metrics: Metrics) -> None:
    """Answer the other workers, and stop when the parent is gone."""
    loop = asyncio.get_running_loop()

    def orphaned() -> None:
        loop.remove_reader(member.worker.lifeline)
        _log.error("parent_gone")
        server.stop()

    loop.add_reader(member.worker.lifeline, orphaned)
    member.peers.answer(metrics.tell)


def _tune_collector() -> None:
    """Look for reference cycles less often: what a request leaves behind is freed by its reference counts.

    With Python's thresholds the search takes 3 % of the time of recording. What the start has made is left out of it.
    """
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _announce(config: Config, listener: socket.socket, banner: str) -> None:
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.tls_cert else "http"
    base = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    _log.info("listening", address=base, store=shown(config.store), version=__version__)
    if banner:
        click.echo(banner.replace("{base}", base))


async def _first_session(store: Store, *, first_key: bool) -> str:
    """Make the first key where that is asked for and there is none; what to print once the server listens."""
    try:
        records = await store.keys()
    except StoreUnavailableError as error:
        _log.warning("store_unavailable", error=str(error), hint="serving 503-01 until it answers")
        return ""
    if not records and first_key:
        record, secret = new_key("first", DEFAULT_ACCOUNT)
        await store.add_key(record)
        return _FIRST_SESSION.replace("{id}", record.key.id).replace("{secret}", secret)
    if all(record.key.revoked_at is not None for record in records):
        _log.warning("no_keys", hint="nobody can come in: create a key with `turnlog keys create NAME`")
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
