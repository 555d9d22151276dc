"""``turnlog backup``, ``turnlog restore``, ``turnlog check``."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from turnlog import instants
from turnlog.cli.keys import now_us
from turnlog.cli.settings import file_option, json_option, settings, store_option, store_to_make
from turnlog.store import connect

if TYPE_CHECKING:
    from turnlog.store.audit import Findings

_FILE = click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
_NAMES = {
    "account": "accounts",
    "conversation": "conversations",
    "conversation_change": "conversation changes",
    "message": "messages",
    "api_key": "API keys",
    "webhook": "webhooks",
}


@click.command()
@_FILE
@file_option
@store_option
@click.option("--force", is_flag=True, help="Replace FILE where it is there already.")
@json_option
def backup(path: Path, file: str | None, store: str | None, *, force: bool, as_json: bool) -> None:
    """Back an SQLite store up into FILE, while its server runs.

    Everything recorded before is in it. It is written beside FILE, checked, synced, and only then given its name.
    """
    url = settings(file, store=store).config.store
    begun = time.monotonic()
    size = asyncio.run(connect.back_up(url, path, force=force))
    seconds = time.monotonic() - begun
    if as_json:
        told = {"store": connect.shown(url), "file": str(path), "bytes": size, "seconds": round(seconds, 3)}
        click.echo(msgspec.json.encode(told).decode())
    else:
        click.echo(f"{path}: {size:,} bytes in {seconds:.1f} s, checked.")


@click.command()
@_FILE
@file_option
@store_option
@click.option("--force", is_flag=True, help="Where there is a store, keep it aside and put the backup in its place.")
@json_option
def restore(path: Path, file: str | None, store: str | None, *, force: bool, as_json: bool) -> None:
    """Put the backup FILE in the place of an SQLite store that no server runs on.

    FILE is checked wholly before anything is touched. Of an older schema, it is brought to this program's.
    """
    url = store_to_make(settings(file, store=store))
    stamp = instants.render(now_us() // instants.US_PER_S * instants.US_PER_S)
    stamp = f"before-{''.join(filter(str.isalnum, stamp.partition('.')[0]))}Z"
    restored = asyncio.run(connect.restore(url, path, stamp=stamp, force=force))
    if as_json:
        kept = None if restored.kept is None else str(restored.kept)
        told = {"store": connect.shown(url), "file": str(path), "kept": kept, "counts": restored.findings.counts}
        click.echo(msgspec.json.encode(told).decode())
        return
    click.echo(f"{connect.shown(url)} is what {path} was: {_counts(restored.findings)}.")
    if restored.kept is not None:
        click.echo(f"The store that was there is kept as {restored.kept}.")


@click.command()
@file_option
@store_option
@json_option
def check(file: str | None, store: str | None, *, as_json: bool) -> None:
    """Check a whole store, also while servers run on it: status 0 where all is well, else 1 and what is wrong.

    Of an SQLite file every page, every index and every relation; of any store the logs, whose positions have no gap.
    """
    url = settings(file, store=store).config.store
    findings = asyncio.run(connect.check_store(url))
    if as_json:
        told = {"store": connect.shown(url), "counts": findings.counts, "problems": findings.problems}
        click.echo(msgspec.json.encode(told).decode())
    elif findings.problems:
        for problem in findings.problems:
            click.echo(problem)
    else:
        click.echo(f"{connect.shown(url)} is in order: {_counts(findings)}.")
    if findings.problems:
        sys.exit(1)


def _counts(findings: Findings) -> str:
    return ", ".join(f"{count:,} {_NAMES[kind]}" for kind, count in findings.counts.items())
