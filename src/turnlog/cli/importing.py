"""``turnlog import``."""

from __future__ import annotations

import click


@click.command("import")
def import_() -> None:
    """Import transcripts."""
