"""``turnlog tail``."""

from __future__ import annotations

import asyncio
import os
import random
import select
import stat
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

import click

from turnlog.cli.keys import DEFAULT_ACCOUNT
from turnlog.cli.settings import file_option, settings, store_option
from turnlog.cli.telling import Terminal, plain, told
from turnlog.feed import BEGINNING, NOW
from turnlog.following.protocol import SHOWN_LINES, Wanted
from turnlog.following.server import follow_server
from turnlog.following.store import follow_store
from turnlog.model import EVENT_TYPES, EventType, LogFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnlog.following.protocol import Event

_INTERRUPTED = 130


@click.command()
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(min=0),
    metavar="N",
    help=f"Begin with the last N events; of a store only.  [default: {SHOWN_LINES}]",
)
@click.option("--after", metavar="CURSOR", help=f"Begin behind a cursor or an event's id, or at {NOW} or {BEGINNING}.")
@click.option("--follow/--no-follow", default=True, help="Wait for what comes; or end at the end of the log.")
@click.option("--types", metavar="T,…", help=f"Only events of these types: {', '.join(EVENT_TYPES)}.")
@click.option("--conversation-id", metavar="ID", help="Only events of the conversation with this id.")
@click.option("--external-id", metavar="ID", help="Only events of the conversation with this external id.")
@store_option
@click.option("--account", metavar="A", help=f"Whose log it is.  [default: {DEFAULT_ACCOUNT}]")
@click.option("--url", metavar="URL", help="A running server to follow instead, as http://HOST:PORT.")
@file_option
@click.option("--json", "as_json", is_flag=True, help="Print each event as a line of JSON, as the change feed has it.")
def tail(
    lines: int | None,
    after: str | None,
    types: str | None,
    conversation_id: str | None,
    external_id: str | None,
    *,
    store: str | None,
    account: str | None,
    url: str | None,
    file: str | None,
    follow: bool,
    as_json: bool,
) -> None:
    """Show what is recorded, as it comes: the last events of a store, then every new one, until Ctrl-C.

    With --url, through a running server: then a key with the permission feed is taken from TURNLOG_API_ID and
    TURNLOG_API_SECRET, and it begins with what comes next. At its end it says what to go on with: --after CURSOR.
    """
    if url is not None and (store is not None or account is not None):
        raise click.UsageError("--url goes without --store and --account: the server and the key decide on these")
    if lines is not None and after is not None:
        raise click.UsageError("--lines goes without --after: both say where to begin")
    if lines is not None and url is not None:
        raise click.UsageError("--lines is for stores: with --url, begin with --after")
    wanted = Wanted(
        after,
        SHOWN_LINES if lines is None else lines,
        LogFilter(_types(types), conversation_id, external_id),
        follow,
    )
    output = _Output(as_json=as_json)
    if follow:
        output.leave_with_its_reader()
    try:
        if url is not None:
            key = os.environ.get("TURNLOG_API_ID", ""), os.environ.get("TURNLOG_API_SECRET", "")
            follow_server(url, key, wanted, output.take, _say, random=random.random)
        else:
            at = settings(file, store=store).config.store
            asyncio.run(follow_store(at, account or DEFAULT_ACCOUNT, wanted, output.take, _say))
    except BrokenPipeError:
        _leave(0)  # whoever read this has seen enough
    except KeyboardInterrupt:
        output.tell_place()
        sys.exit(_INTERRUPTED)
    except BaseException:
        output.tell_place()
        raise
    output.tell_place()


def _types(text: str | None) -> frozenset[EventType] | None:
    if text is None:
        return None
    named = {one: one for one in EVENT_TYPES}
    try:
        return frozenset(named[one.strip()] for one in text.split(","))  # type: ignore[index]
    except KeyError as error:
        raise click.UsageError(f"--types: no type {error}: expected some of {', '.join(EVENT_TYPES)}") from None


def _say(line: str) -> None:
    click.echo(f"turnlog: {plain(line)}", err=True)


def _leave(status: int) -> NoReturn:
    # At once: what is left in a buffer has nowhere to go, and a reader has nothing to lose.
    os._exit(status)


class _Output:
    """Standard output: for people, in colours on a terminal, or for programs; and the place to go on from."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._cursor: str | None = None
        plainly = as_json or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
        self._terminal = Terminal() if sys.stdout.isatty() and not plainly else None

    def take(self, events: Sequence[Event], cursor: str) -> None:
        """Show the events, so that whoever reads has them when this returns."""
        if events and self._terminal is not None:
            for event in events:
                self._terminal.show(event.line)
                self._cursor = event.id
        elif events:
            if self._as_json:
                content = b"".join([event.line + b"\n" for event in events])
            else:
                content = "".join([f"{told(event.line)}\n" for event in events]).encode("utf-8", "backslashreplace")
            sys.stdout.buffer.write(content)
            sys.stdout.buffer.flush()
        self._cursor = cursor

    def tell_place(self) -> None:
        """Where to go on, for people: a program has the id of the last event."""
        if self._cursor is not None and not self._as_json:
            click.echo(f"turnlog: to go on from here: --after {self._cursor}", err=True)

    def leave_with_its_reader(self) -> None:
        """End the process when nobody reads any more, without waiting for an event to find that out with."""
        kind = os.fstat(sys.stdout.fileno()).st_mode
        if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
            threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        poll.poll()
        _leave(0)
