"""``turnlog copy``."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Self

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from turnlog.cli.keys import now_us
from turnlog.cli.settings import json_option
from turnlog.copying import Copier, Summary
from turnlog.errors import SettingError
from turnlog.store.connect import open_source, open_target
from turnlog.store.protocol import StoreFailedError, StoreUnavailableError, StoreUncertainError

if TYPE_CHECKING:
    from turnlog.comparison import Check

_STORE_ERRORS = (StoreUnavailableError, StoreUncertainError, StoreFailedError)
_AGAIN = "What is copied stays copied: run it again for the rest."


@click.command()
@click.option("--from", "source", required=True, metavar="URL", help="The store to copy; it is only read.")
@click.option("--to", "target", required=True, metavar="URL", help="The store to copy into; made where there is none.")
@click.option(
    "--verify",
    type=click.Choice(["all", "new"]),
    default="all",
    show_default=True,
    help="Compare the whole log at the end, or what this run has copied of it.",
)
@json_option
def copy(source: str, target: str, verify: str, *, as_json: bool) -> None:
    """Copy a store into another: accounts, keys, conversations, messages, with their ids and positions.

    Run again it goes on where it stopped, and takes what the source has recorded since. A server may run on the source
    meanwhile. The target is not served before a copy into it is complete.
    """
    with _Display() as display:
        summary = asyncio.run(_copy(source, target, display, whole=verify == "all", as_json=as_json))
    _show(summary, as_json=as_json)
    for check in summary.checks:
        if check.difference is not None:
            raise SettingError(
                f"the copy is not the source: {check.kind}, {check.difference}; the target stays closed: "
                "take it away (drop the schema turnlog, or the file) and copy anew"
            )


async def _copy(source_url: str, target_url: str, display: _Display, *, whole: bool, as_json: bool) -> Summary:
    async with AsyncExitStack() as stack:
        try:
            source = await open_source(source_url)
            stack.push_async_callback(source.close)
            target = await open_target(target_url, source)
            stack.push_async_callback(target.close)
        except _STORE_ERRORS as error:
            raise SettingError(str(error)) from error
        copier = Copier(source, target, now_us, display.advance)
        try:
            return await copier.run(whole=whole)
        except _STORE_ERRORS as error:
            raise SettingError(f"the copy stopped: {error}. {_AGAIN}") from error
        except asyncio.CancelledError:
            display.close()
            _show(copier.summary, as_json=as_json)
            raise


class _Display:
    """On a terminal, a bar on standard error; elsewhere nothing."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def advance(self, phase: str, done: int, total: int | None) -> None:
        """So much of the phase is done."""
        if self._bar is not None:
            self._bar.update(self._task, description=phase, completed=done, total=total)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()


def _show(summary: Summary, *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
        return
    click.echo(
        f"accounts: {summary.accounts}, entries copied: {summary.copied:,}, there before: {summary.present:,}, "
        f"recorded in the source since: {summary.behind:,}"
    )
    for check in summary.checks:
        _show_check(check)
    if not summary.checks:
        click.echo(f"Stopped before the end. {_AGAIN}")
    elif summary.complete:
        log = "" if summary.verified == "all" else "; of the log, what this run has copied"
        click.echo(f"The copy is complete and verified{log}.")


def _show_check(check: Check) -> None:
    ours, theirs = check.source, check.target
    if check.difference is None:
        click.echo(f"  {check.kind:<20} {ours.count:>14,}  {ours.checksum}")
    else:
        click.echo(f"  {check.kind:<20} {ours.count:>14,}  {ours.checksum}  in the source")
        click.echo(f"  {'':<20} {theirs.count:>14,}  {theirs.checksum}  in the target")
