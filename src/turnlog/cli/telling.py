"""Events for people: a line each, and more only for texts of several. What was recorded never commands the terminal."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
from rich.console import Console
from rich.text import Text

MAX_TEXT_LINES = 12
MAX_TEXT_CHARS = 2000
"""Of one text; of what is longer, how much that is."""
_JOINERS = frozenset("\u200c\u200d\u200e\u200f")
"""Written in Persian, in Hebrew, in emoji; they change nothing but their neighbours."""
_COLOURS = {"customer": "green", "agent": "cyan", "system": "magenta"}

Piece = tuple[str, str]
"""A text and its style."""


def plain(text: str) -> str:
    """``text`` on one line, with nothing in it that a terminal obeys, or that turns the direction of what follows."""
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() or char in _JOINERS else _visible(char) for char in text])


def _visible(char: str) -> str:
    if char.isspace() and char not in "\n\r\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029":
        return " "
    return char.encode("unicode_escape").decode("ascii")


def _text(text: str) -> str:
    """``text`` with its lines below each other, indented, its end left out where it is long."""
    lines = text[:MAX_TEXT_CHARS].replace("\r\n", "\n").split("\n")
    shown = "\n    ".join([plain(line) for line in lines[:MAX_TEXT_LINES]])
    if len(text) > MAX_TEXT_CHARS or len(lines) > MAX_TEXT_LINES:
        shown += f" … ({len(text):,} characters)"
    return shown if len(lines) == 1 else f"\n    {shown}"


def pieces(line: bytes) -> list[Piece]:
    """What to say of an event, given as the feed gives it; also of one of a kind that is not known here."""
    try:
        event = msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return [(plain(line.decode("utf-8", "replace")), "")]
    said = [(f"{plain(_str(event, 'time'))} ", "dim"), (f" {plain(_str(event, 'externalId'))} ", "bold")]
    message, conversation = event.get("message"), event.get("conversation")
    if isinstance(message, dict):
        sender = message.get("sender") or {}
        role = plain(_str(sender, "role"))
        said.append((f" {role} {plain(_str(sender, 'externalId'))}: ", _COLOURS.get(role, "")))
        said.append((_text(_str(message, "text")), ""))
    else:
        said.append((f" {plain(_str(event, 'type').replace('.', ' '))}", "yellow"))
        if isinstance(conversation, dict):
            said.append((_conversation(conversation), ""))
    return said


def _conversation(conversation: dict[str, Any]) -> str:
    parts = []
    for role in ("customer", "agent"):
        who = conversation.get(role)
        if isinstance(who, dict):
            name = f" ({plain(_str(who, 'name'))})" if who.get("name") else ""
            parts.append(f"{role} {plain(_str(who, 'externalId'))}{name}")
    metadata = conversation.get("metadata")
    if isinstance(metadata, dict) and metadata:
        shown = plain(" ".join(f"{name}={value}" for name, value in metadata.items()))
        parts.append(shown if len(shown) <= 200 else f"{shown[:200]}…")
    return f": {', '.join(parts)}"


def _str(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""


def told(line: bytes) -> str:
    """An event as a text without colours."""
    return "".join([text for text, _ in pieces(line)])


class Terminal:
    """Standard output that is a terminal with colours."""

    def __init__(self) -> None:
        self._console = Console(
            file=sys.stdout, force_terminal=True, markup=False, emoji=False, highlight=False, soft_wrap=True
        )

    def show(self, line: bytes) -> None:
        """Show an event."""
        self._console.print(Text.assemble(*pieces(line)))
