"""Turnlog: a durable, self-hosted server of ASAPP's Conversations API."""

__version__ = "0.1.0"
