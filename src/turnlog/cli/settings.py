"""The flags that every command shares, and the settings that come of them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from turnlog import config

if TYPE_CHECKING:
    from turnlog.config import Effective

store_option = click.option(
    "--store", metavar="URL", help="The store, as sqlite:///path or postgresql://user@host/db (TURNLOG_STORE)."
)
file_option = click.option("--config", "file", metavar="FILE", help="A TOML file of settings (TURNLOG_CONFIG).")
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def store_to_make(effective: Effective) -> str:
    """The store's URL, for a command that may make the store. The default one's folder is made too, and no other."""
    if effective.origins["store"] == "default":
        config.DEFAULT_STORE_FOLDER.mkdir(mode=0o700, exist_ok=True)
    return effective.config.store


def settings(file: str | None, **flags: object) -> Effective:
    """The settings in force for this call. Raises SettingError."""
    return config.load(flags, os.environ, file)
