"""The one table of operations: what an API key can ask for. Routes, permissions, OpenAPI, metrics and tests follow."""

from __future__ import annotations

from turnlog.http.changes import CHANGES
from turnlog.http.operations import OPERATIONS
from turnlog.http.webhook_operations import WEBHOOK_OPERATIONS

TABLE = (*OPERATIONS, *CHANGES, *WEBHOOK_OPERATIONS)
"""The contract's nine and health; then Turnlog's own."""
