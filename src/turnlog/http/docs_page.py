"""The page at /docs."""

from __future__ import annotations

from typing import Any

HEADERS = ((b"content-security-policy", b"default-src 'none'; style-src 'unsafe-inline'"),)


def render(document: dict[str, Any]) -> bytes:
    """The page for an OpenAPI document."""
    return b"<!doctype html>"
