"""The OpenAPI 3.1 description of the operations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from turnlog.config import Config
    from turnlog.http.operations import Operation


def document(operations: Sequence[Operation], config: Config) -> dict[str, Any]:
    """The description, ready to be encoded."""
    return {"openapi": "3.1.0", "info": {"title": "Turnlog", "version": "0"}, "paths": {}}
