"""Reads on PostgreSQL that go out together: each caller gets its own answer, and its own error."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from turnlog.ids import Place
from turnlog.model import ApiKey, NewConversation, NewMessage, Participant
from turnlog.store.connect import open_store
from turnlog.store.postgres import PostgresStore, gather, reads
from turnlog.store.postgres.gather import MOST_CALLERS, MOST_ROWS, Gatherer
from turnlog.store.protocol import AppendMessages, KeyRecord, PutConversation, StoreUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from tests.postgres import Cluster
    from turnlog.store.protocol import Store

    Ask = Callable[[Store], Coroutine[Any, Any, object]]

pytestmark = pytest.mark.postgresql_only("this store alone gathers its reads")

LONG = "ß" * 100_000
"""Some of these are more than a page's share of a statement."""


@asynccontextmanager
async def _opened(url: str) -> AsyncIterator[PostgresStore]:
    store = await open_store(url, idempotency_ttl_us=1)
    assert isinstance(store, PostgresStore)
    try:
        yield store
    finally:
        await store.close()


async def _fill(store: Store) -> None:
    """Two accounts with the same ids in them and different texts, some times equal; one page that is long."""
    for account in ("a", "b"):
        await store.add_key(KeyRecord(ApiKey(f"key-{account}", "tests", account, ("read",), 1), ()))
        for n in range(5):
            new = NewConversation(f"external-{n}", Participant(f"jane-{account}"), 1)
            messages = [NewMessage(f"{account} {n} {m}", "agent", "bob", m // 4) for m in range(3 * n)]
            if n == 4:
                messages += [NewMessage(f"{m}{LONG}", "customer", "jane", m % 2) for m in range(20)]
            put = PutConversation(account, new, f"C{n}", 1)
            await store.append(
                [put, AppendMessages(account, f"C{n}", messages, [f"M{n}-{m}" for m in range(len(messages))], 1)]
            )


def _ask(method: str, *arguments: Any, **options: Any) -> Ask:
    return lambda store: getattr(store, method)(*arguments, **options)


def _asks() -> list[Ask]:
    """Hundreds of reads of every kind, many of what is not there."""
    asks = []
    for account in ("a", "b", "nobody"):
        asks += [_ask("last_position", account)] * 20
        for n in range(6):
            asks += [_ask("conversation", account, f"C{n}")]
            asks += [_ask("conversation_by_external_id", account, f"external-{n}")]
            for max_chars in (1, 300_001, None):
                asks += [_ask("messages", account, f"C{n}", after=None, limit=1000, max_chars=max_chars)]
            asks += [_ask("messages", account, f"C{n}", after=None, limit=7, up_to=25)]
            for m in range(6):
                asks += [_ask("message", account, f"C{n}", f"M{n}-{m}"), _ask("message", account, f"C{n}", f"M3-{m}")]
                asks += [_ask("messages", account, f"C{n}", after=Place(m // 4, 3 * m), limit=m)]
    return asks


def test_hundreds_of_reads_at_once_get_what_each_gets_by_itself(new_store: Callable[[], str]) -> None:
    """With nothing known at first and then with all known; of what is asked for at once, most goes out together."""
    url = new_store()
    asks = _asks()
    random.Random(1).shuffle(asks)  # noqa: S311 - any order will do

    async def scenario() -> None:
        async with _opened(url) as store:
            await _fill(store)
            alone = [await ask(store) for ask in asks]
        async with _opened(url) as store:
            statements: list[int] = []
            read = store._gatherer._read

            def counted(kind: Any, wanted: Sequence[Any]) -> Coroutine[Any, Any, Sequence[Any]]:
                statements.append(len(wanted))
                return read(kind, wanted)

            store._gatherer._read = counted
            for _ in range(2):
                statements.clear()
                together = await asyncio.gather(*(ask(store) for ask in asks))
                assert together == alone
                assert max(statements) <= MOST_CALLERS
                assert len(statements) < len(asks) / 5
        assert sum(answer is None for answer in alone) > 100
        assert sum(answer is not None for answer in alone) > 100

    asyncio.run(scenario())


def test_pages_at_one_instant_meet_without_gap(new_store: Callable[[], str]) -> None:
    url = new_store()

    async def walk(store: Store, size: int) -> list[str]:
        texts: list[str] = []
        after = None
        while page := await store.messages("a", "C4", after=after, limit=size):
            texts += [message.text for message in page]
            after = Place(page[-1].client_at, page[-1].position)
        return texts

    async def scenario() -> None:
        async with _opened(url) as store:
            await _fill(store)
            short = [(m // 4, m, f"a 4 {m}") for m in range(12)]
            wanted = [text for *_, text in sorted(short + [(m % 2, 12 + m, f"{m}{LONG}") for m in range(20)])]
            for texts in await asyncio.gather(*(walk(store, size) for size in (1, 2, 3, 5, 31, 32, 33) * 3)):
                assert texts == wanted

    asyncio.run(scenario())


@asynccontextmanager
async def _held_up(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Nobody reads a message meanwhile. Gives a connection of somebody who looks on."""
    holder, witness = await asyncpg.connect(url), await asyncpg.connect(url)
    try:
        async with holder.transaction():
            await holder.execute("LOCK TABLE turnlog.message IN ACCESS EXCLUSIVE MODE")
            yield witness
    finally:
        await holder.close()
        await witness.close()


async def _stuck(witness: asyncpg.Connection) -> set[int]:
    """Waits until sessions wait for what is held up; which they are."""
    waiting = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    async with asyncio.timeout(30):
        while True:
            if rows := await witness.fetch(waiting):
                return {row[0] for row in rows}


def _message_reads(store: Store, count: int) -> list[asyncio.Task[object]]:
    return [asyncio.ensure_future(store.message("a", "C3", f"M3-{n % 9}")) for n in range(count)]


def _check_texts(answers: Sequence[Any]) -> None:
    assert [answer.text for answer in answers] == [f"a 3 {n % 9}" for n in range(len(answers))]


def test_a_cancelled_caller_does_not_disturb_the_others(new_store: Callable[[], str]) -> None:
    """Neither one whose statement is under way nor one that waits."""
    url = new_store()

    async def scenario() -> None:
        async with _opened(url) as store:
            await _fill(store)
            async with _held_up(url) as witness:
                tasks = _message_reads(store, 300)
                await _stuck(witness)
                for gone in (tasks[9], tasks[290]):
                    gone.cancel()
                await asyncio.wait([tasks[9], tasks[290]])
            answers = await asyncio.gather(*tasks, return_exceptions=True)
            assert [n for n, answer in enumerate(answers) if isinstance(answer, asyncio.CancelledError)] == [9, 290]
            kept = [n for n in range(300) if n not in (9, 290)]
            assert [getattr(answers[n], "text", None) for n in kept] == [f"a 3 {n % 9}" for n in kept]

    asyncio.run(scenario())


def test_reads_whose_session_is_ended_are_carried_out_on_another(new_store: Callable[[], str]) -> None:
    url = new_store()

    async def scenario() -> None:
        async with _opened(url) as store:
            await _fill(store)
            async with _held_up(url) as witness:
                tasks = _message_reads(store, 200)
                ended = await _stuck(witness)
                for pid in ended:
                    assert await witness.fetchval("SELECT pg_terminate_backend($1, 10000)", pid)
            _check_texts(await asyncio.gather(*tasks))

    asyncio.run(scenario())


def test_an_error_reaches_every_caller_as_its_own(cluster: Cluster) -> None:
    """No server: each is refused. When it is back, all are answered."""
    url = cluster.create_database()

    async def scenario() -> None:
        async with _opened(url) as store:
            await _fill(store)
            _check_texts(await asyncio.gather(*_message_reads(store, 30)))
            await asyncio.to_thread(cluster.stop)
            errors = await asyncio.gather(*(ask(store) for ask in _asks()), return_exceptions=True)
            assert all(isinstance(error, StoreUnavailableError) for error in errors)
            assert len({id(error) for error in errors}) == len(errors)
            await asyncio.to_thread(cluster.start)
            async with asyncio.timeout(30):
                while True:
                    try:
                        _check_texts(await asyncio.gather(*_message_reads(store, 200)))
                    except StoreUnavailableError:
                        await asyncio.sleep(0.01)  # refused without an attempt, for a moment
                    else:
                        return

    asyncio.run(scenario())


def test_an_error_about_one_caller_reaches_that_one_only(new_store: Callable[[], str]) -> None:
    """What the driver or the database cannot take: it is no reason to refuse those who came together with it."""
    url = new_store()

    async def scenario() -> None:
        async with _opened(url) as store:
            await _fill(store)
            good = _message_reads(store, 20)
            bad = [
                asyncio.ensure_future(store.message("a", "C3", "\0")),
                asyncio.ensure_future(store.conversation("a", "\ud800")),
                asyncio.ensure_future(store.messages("a", "C3", after=None, limit=5, up_to=2**64)),
            ]
            others = [
                asyncio.ensure_future(store.conversation("a", "C3")),
                asyncio.ensure_future(store.messages("a", "C3", after=None, limit=5)),
            ]
            good += _message_reads(store, 20)[2:]
            errors = await asyncio.gather(*bad, return_exceptions=True)
            assert all(isinstance(error, Exception) for error in errors)
            assert not any(isinstance(error, StoreUnavailableError) for error in errors)
            assert None not in await asyncio.gather(*others)
            found = await asyncio.gather(*good)
            _check_texts(found[:20])

    asyncio.run(scenario())


def test_whoever_is_under_way_when_the_store_closes_is_told(new_store: Callable[[], str]) -> None:
    url = new_store()

    async def scenario() -> None:
        async with _opened(url) as store:
            await _fill(store)
            async with _held_up(url) as witness:
                tasks = _message_reads(store, 300)
                await _stuck(witness)
                await store.close()
                assert all(task.done() for task in tasks)
                assert all(isinstance(task.exception(), StoreUnavailableError) for task in tasks)

    asyncio.run(scenario())


# Without a task.


def _driven(coroutine: Coroutine[Any, Any, object]) -> asyncio.Future[object]:
    """What the coroutine comes to, run by callbacks of the loop alone."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[object] = loop.create_future()

    def step(_: object = None) -> None:
        assert asyncio.current_task() is None
        try:
            waited = coroutine.send(None)
        except StopIteration as end:
            outcome.set_result(end.value)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what it came to
            outcome.set_exception(error)
        else:
            waited._asyncio_future_blocking = False
            waited.add_done_callback(step)

    loop.call_soon(step)
    return outcome


def test_reading_needs_no_task(cluster: Cluster) -> None:
    url = cluster.create_database()
    asks = [*_asks(), _ask("check"), _ask("health")]

    async def scenario() -> None:
        async with _opened(url) as store:
            await _fill(store)
            expected = [await ask(store) for ask in asks]
            assert await asyncio.gather(*(_driven(ask(store)) for ask in asks)) == expected
            left = store.message("a", "C3", "M3-0")
            left.send(None)
            left.close()  # and its caller may end at any time
            await asyncio.to_thread(cluster.stop)
            errors = await asyncio.gather(*(_driven(ask(store)) for ask in asks), return_exceptions=True)
            assert all(isinstance(error, StoreUnavailableError) for error in errors)

    asyncio.run(scenario())


# First come, first served.


class _Reader:
    """Stands for the database: tells what went out in one statement, which ends when the test says so."""

    def __init__(self) -> None:
        self.sent: list[tuple[Any, list[Any]]] = []
        self.began = asyncio.Semaphore(0)
        self.turn = asyncio.Semaphore(0)

    async def __call__(self, kind: Any, wanted: Sequence[Any]) -> Sequence[Any]:
        self.sent.append((kind, list(wanted)))
        self.began.release()
        await self.turn.acquire()
        return [f"{one}!" for one in wanted]


def test_the_oldest_go_first_and_a_statement_is_bounded() -> None:
    async def scenario() -> None:
        reader = _Reader()
        gatherer = Gatherer(reader, size=1, patience_s=30)
        kinds: dict[str, Any] = {"few": reads.messages, "many": reads.pages}

        def ask(kind: str, name: object, rows: int = 1) -> asyncio.Task[Any]:
            return asyncio.ensure_future(gatherer.ask(kinds[kind], name, rows))

        tasks = [ask("few", "first")]
        await reader.began.acquire()
        assert reader.sent == [(reads.messages, ["first"])], "one that is by itself does not wait for others"
        tasks += [ask("few", 0), ask("many", "a", MOST_ROWS - 1), ask("many", "b", 1), ask("many", "c", 1)]
        tasks += [ask("few", n) for n in range(1, MOST_CALLERS + 1)]
        tasks += [ask("many", "d", 5 * MOST_ROWS)]
        for _ in range(9):
            reader.turn.release()
        answers = await asyncio.gather(*tasks)
        assert reader.sent[1:] == [
            (reads.messages, list(range(MOST_CALLERS))),
            (reads.pages, ["a", "b"]),
            (reads.pages, ["c"]),
            (reads.messages, [MOST_CALLERS]),
            (reads.pages, ["d"]),
        ]
        assert answers[:3] == ["first!", "0!", "a!"]
        await gatherer.close()

    asyncio.run(scenario())


def test_whoever_waits_too_long_is_refused_and_the_next_one_is_served() -> None:
    async def scenario() -> None:
        reader = _Reader()
        gatherer = Gatherer(reader, size=2, patience_s=0.01)
        kind: Any = reads.messages
        under_way = []
        for n in range(2):
            under_way.append(asyncio.ensure_future(gatherer.ask(kind, n)))
            await reader.began.acquire()
        late = await asyncio.gather(*(gatherer.ask(kind, n) for n in range(200)), return_exceptions=True)
        assert all(isinstance(error, StoreUnavailableError) for error in late)
        for _ in range(3):
            reader.turn.release()
        assert await asyncio.gather(*under_way) == ["0!", "1!"]
        assert await gatherer.ask(kind, "next") == "next!"
        await gatherer.close()

    asyncio.run(scenario())


def test_what_is_too_much_for_company_is_asked_for_alone() -> None:
    async def scenario() -> None:
        sent: list[list[int]] = []

        async def read(_: object, wanted: Sequence[int]) -> Sequence[object]:
            sent.append(list(wanted))
            return [gather.ALONE if n % 2 and len(wanted) > 1 else n for n in wanted]

        gatherer = Gatherer(read, size=1, patience_s=30)
        kind: Any = reads.pages
        assert await asyncio.gather(*(gatherer.ask(kind, n) for n in range(5))) == [0, 1, 2, 3, 4]
        assert sent == [[0, 1, 2, 3, 4], [1], [3]]
        await gatherer.close()

    asyncio.run(scenario())
