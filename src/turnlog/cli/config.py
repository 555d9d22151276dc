"""``turnlog config``: the settings in force, and where each came from."""

from __future__ import annotations

import click
import msgspec

from turnlog.cli.settings import file_option, json_option, settings, store_option
from turnlog.store.connect import shown


@click.command()
@file_option
@store_option
@click.option("--host", help="The address to listen on.")
@click.option("--port", type=int, help="The port to listen on.")
@json_option
def config(file: str | None, store: str | None, host: str | None, port: int | None, *, as_json: bool) -> None:
    """Show the effective settings and where each came from."""
    effective = settings(file, store=store, host=host, port=port)
    values = msgspec.structs.asdict(effective.config)
    values["store"] = shown(effective.config.store)  # what is shown gets copied: no password
    if as_json:
        view = {name: {"value": value, "origin": effective.origins[name]} for name, value in values.items()}
        click.echo(msgspec.json.format(msgspec.json.encode(view)).decode())
        return
    width = max(map(len, values))
    for name, value in values.items():
        text = msgspec.json.encode(value).decode()
        click.echo(f"{name:<{width}}  {text:<28}  ({effective.origins[name]})")
