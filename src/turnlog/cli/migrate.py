"""``turnlog migrate``."""

from __future__ import annotations

import asyncio

import click
import msgspec

from turnlog.cli.settings import file_option, json_option, settings, store_option
from turnlog.store.connect import migrate_store, shown


@click.command()
@file_option
@store_option
@json_option
def migrate(file: str | None, store: str | None, *, as_json: bool) -> None:
    """Bring the store to this program's schema, as a start of the server does too.

    In an empty PostgreSQL database it makes the tables; an SQLite file that is not there it does not make.
    """
    url = settings(file, store=store).config.store
    before, after = asyncio.run(migrate_store(url))
    if as_json:
        click.echo(msgspec.json.encode({"store": shown(url), "from": before, "to": after}).decode())
    elif before == after:
        click.echo(f"{shown(url)} has schema {after} already: nothing to do.")
    else:
        click.echo(f"{shown(url)} was brought from schema {before} to schema {after}.")
