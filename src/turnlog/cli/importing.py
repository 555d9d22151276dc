"""``turnlog import``."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from turnlog.cli.keys import DEFAULT_ACCOUNT, now_us
from turnlog.cli.settings import file_option, json_option, settings, store_option
from turnlog.ids import Ulids
from turnlog.importing import Importer
from turnlog.targets.http import http_target
from turnlog.targets.store import store_target
from turnlog.transcripts import STANDARD_INPUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    from turnlog.importing import Summary
    from turnlog.targets.protocol import Target
    from turnlog.transcripts import Problem

MAX_NAMED = 100
"""Bad rows named one by one; of the rest, the number."""


@click.command("import")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@store_option
@click.option("--account", metavar="A", help=f"Whose conversations they become.  [default: {DEFAULT_ACCOUNT}]")
@click.option("--url", metavar="URL", help="A running server to import through, as http://HOST:PORT (TURNLOG_URL).")
@file_option
@json_option
def import_(
    files: tuple[str, ...], store: str | None, account: str | None, url: str | None, file: str | None, *, as_json: bool
) -> None:
    """Record the messages of transcript FILEs (CSV or JSON lines, also gzipped; - is standard input).

    The columns are conversation_externalId, sender_externalId, sender_role, text and timestamp. What is recorded
    already is not recorded again. With --url, a key of the server is taken from TURNLOG_API_ID and TURNLOG_API_SECRET.
    """
    if url is not None and (store is not None or account is not None):
        raise click.UsageError("--url goes without --store and --account: the server and the key decide on these")
    if url is None and store is None and account is None:
        url = os.environ.get("TURNLOG_URL") or None
    ids = Ulids(now_us, secrets.randbits)
    with _target(url, store, account, file, ids) as target, _Display(files) as display:
        importer = Importer(target, ids, display.problem)
        complete = False
        try:
            with importer, _leaving_at_once_when_asked_twice():
                for name in files:
                    importer.take(name, display.advance)
            complete = True
        finally:
            display.close()
            _show(importer.summary, as_json=as_json, complete=complete)
    if importer.summary.bad or importer.summary.unreadable:
        sys.exit(1)


def _target(
    url: str | None, store: str | None, account: str | None, file: str | None, ids: Ulids
) -> AbstractContextManager[Target]:
    if url is None:
        config = settings(file, store=store).config
        return store_target(config, DEFAULT_ACCOUNT if account is None else account, ids, now_us)
    return http_target(url, os.environ.get("TURNLOG_API_ID", ""), os.environ.get("TURNLOG_API_SECRET", ""))


@contextlib.contextmanager
def _leaving_at_once_when_asked_twice() -> Iterator[None]:
    """After an interrupt the importer waits for what is under way; whoever asks again need not. Nothing is lost."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(130))
        raise


class _Display:
    """Standard error: bad rows, and on a terminal a bar. ``problem`` may be called from any thread, one at a time."""

    def __init__(self, files: Sequence[str]) -> None:
        self._named = 0
        self._unnamed = 0
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("importing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=_total_bytes(files))

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, count: int) -> None:
        """So many more bytes were read."""
        if self._bar is not None:
            self._bar.advance(self._task, count)

    def problem(self, problem: Problem) -> None:
        """Name a bad row, if not too many were named already, or a file, always."""
        if not problem.unreadable and self._named == MAX_NAMED:
            self._unnamed += 1
        else:
            self._named += not problem.unreadable
            self._say(f"turnlog: {problem}")

    def _say(self, line: str) -> None:
        if self._bar is None:
            click.echo(line, err=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, emoji=False, soft_wrap=True)

    def close(self) -> None:
        """Take the bar away and say how many bad rows were not named; once."""
        if self._bar is not None:
            self._bar.stop()
        if self._unnamed:
            self._say(f"turnlog: … and {self._unnamed} more bad rows")
            self._unnamed = 0


def _total_bytes(files: Sequence[str]) -> int | None:
    """``None`` where one of them is a stream, or cannot be looked at."""
    total = 0
    for file in files:
        path = Path(file)
        if file == STANDARD_INPUT or not path.is_file():
            return None
        total += path.stat().st_size
    return total


def _show(summary: Summary, *, as_json: bool, complete: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(msgspec.structs.asdict(summary) | {"complete": complete}).decode())
        return
    unreadable = f", not readable to the end: {summary.unreadable}" if summary.unreadable else ""
    click.echo(
        f"files: {summary.files}{unreadable}, rows: {summary.rows}, recorded: {summary.recorded}, "
        f"already there: {summary.present}, bad: {summary.bad}"
    )
    if not complete:
        click.echo("Stopped before the end. What is recorded stays recorded: run it again for the rest.")
