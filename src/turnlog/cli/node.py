"""One server put together out of its parts: all but the listening socket, which cli/serve.py gives it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from typing import TYPE_CHECKING

from turnlog import instants
from turnlog.cli.keys import now_us
from turnlog.cli.sender import LateSender
from turnlog.deliveries.claims import Deliveries
from turnlog.deliveries.means import Means
from turnlog.feed import Feed
from turnlog.http.app import App
from turnlog.http.bodies import BodyReader
from turnlog.http.events import event_json
from turnlog.http.operations import Context
from turnlog.http.public import public_operations
from turnlog.http.streams import Streams
from turnlog.http.table import TABLE
from turnlog.ids import Ulids
from turnlog.keyring import Keyring
from turnlog.pace import Pace
from turnlog.service import Service
from turnlog.store.protocol import StoreUnavailableError
from turnlog.webhooks import Webhooks
from turnlog.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from turnlog.config import Config
    from turnlog.metrics import Metrics
    from turnlog.store.protocol import Store

US_PER_HOUR = 3600 * instants.US_PER_S
_WATCH_INTERVAL_S = 0.25
_QUEUE_PATIENCE_S = 0.1
"""How long what is queued may wait while more is let in: with the transactions before and behind, half a second."""
_DELIVERY_S = 0.0003
"""What a request to a webhook's receiver takes of the event loop's time."""


class Node:
    """The parts of one server. ``fail`` hears that the store must not be used any more, once or more often."""

    def __init__(self, config: Config, store: Store, metrics: Metrics, fail: Callable[[BaseException], None]) -> None:
        self._config = config
        self._store = store
        self._metrics = metrics
        self._fail = fail
        self.ids = Ulids(now_us, secrets.randbits)
        self._pace = Pace(time.monotonic)
        self._writer = Writer(
            store,
            max_rows=config.max_queued_messages,
            max_chars=config.max_queued_characters,
            deadline_s=config.write_deadline_s,
            patience_s=_QUEUE_PATIENCE_S,
            monotonic_s=time.monotonic,
            on_batch=self._recorded,
            on_failure=fail,
        )
        self._service = Service(store, self._writer, self.ids, now_us, refuse_repeats=config.refuse_repeats)
        self._keyring = Keyring(now_us, time.monotonic, config.workers)
        self._feed = Feed(store)
        self._keyring.on_change = self._feed.wake_all
        self._streams = Streams(self._feed, self._pace, self._keyring, config.max_streams, config.stream_comment_s)
        private = config.allow_private_webhooks
        self._sender = LateSender(now_us, allow_private=private)
        self._webhooks = Webhooks(
            store, self._feed, self._sender, self.ids, now_us, secrets.randbits, allow_private=private
        )
        self._deliveries = self._make_deliveries()
        self.app = self._make_app()
        self._background: list[asyncio.Task[None]] = []
        metrics.gauge("turnlog_queue_rows", "Messages waiting for a transaction.", lambda: self._writer.queued_rows)
        metrics.gauge(
            "turnlog_integrity_rounds", "How often every page of the file has been checked.", lambda: store.scrubbed
        )
        metrics.gauge("turnlog_open_streams", "Open streams of the change feed.", lambda: len(self._streams))

    def _make_deliveries(self) -> Deliveries:
        means = Means(
            store=self._store,
            feed=self._feed,
            sender=self._sender,
            render=event_json,
            owner=self.ids.new(),
            now_us=now_us,
            monotonic_s=time.monotonic,
            sleep=asyncio.sleep,
            random=random.random,
            turn=self._turn_to_deliver,
            on_attempt=self._metrics.attempt,
        )
        deliveries = Deliveries(means)
        self._metrics.gauges(
            "turnlog_webhook_lag", "Events of the log behind a webhook's cursor.", "webhook", deliveries.lags
        )
        return deliveries

    async def _turn_to_deliver(self) -> None:
        await self._pace.turn()
        self._pace.spent(_DELIVERY_S)

    def _make_app(self) -> App:
        config, metrics, service = self._config, self._metrics, self._service
        public = public_operations(TABLE, config, metrics, self._store.health, service.is_healthy)
        context = Context(service, BodyReader(lenient=config.lenient), self._feed, self._streams, self._webhooks)
        return App((*TABLE, *public), context, self._keyring, metrics, config, self.ids)

    def _recorded(self, rows: int, seconds: float) -> None:
        self._metrics.batch(rows, seconds)
        self._pace.recorded()

    async def load_keys(self) -> None:
        """The keys as they are now; where the store does not answer, they come once it does."""
        with contextlib.suppress(StoreUnavailableError):
            await self._keyring.refresh(self._store)

    def start(self) -> None:
        """Begin what goes on beside requests."""
        config = self._config
        ttl_us = config.idempotency_hours * US_PER_HOUR
        works: tuple[Coroutine[None, None, None], ...] = (
            self._keyring.follow(self._store, asyncio.sleep),
            self._service.forget_idempotency(ttl_us, asyncio.sleep),
            self._watch(),
            self._store.follow(self._feed.moved),
            self._deliveries.run(),
            self._streams.watch(asyncio.sleep),
            self._store.scrub(config.integrity_interval_s, asyncio.sleep),
        )
        self._background = [asyncio.create_task(work) for work in works]

    async def _watch(self) -> None:
        """A store may also fail between two batches, at a checkpoint: then too, nothing more is recorded."""
        while True:
            await asyncio.sleep(_WATCH_INTERVAL_S)
            if self._store.failure is not None:
                self._fail(self._store.failure)

    async def stop_delivering(self) -> None:
        """Deliver nothing more; what is under way has a little time. While the last requests are still answered."""
        await self._deliveries.stop()

    async def finish(self) -> None:
        """End what goes on beside requests, record what is queued, let go of the store."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._sender.close()
        await self._writer.drain()
        await self._store.close()
