"""From a request's target to the operations at that path: a tree of path segments, decoded once, after splitting."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from turnlog.http.operations import Operation

_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ID = re.compile(r"[A-Z0-9]{1,255}", re.ASCII)


_REMEMBERED_PATHS = 8192


class Resource:
    """A path with the operations that it offers; ``public`` where nothing here needs a key."""

    def __init__(self) -> None:
        self.by_method: dict[str, Operation] = {}
        self.names: tuple[str, ...] = ()
        self.public = True

    @property
    def allow(self) -> str:
        """The value of ``Allow``."""
        offered = {*self.by_method, "OPTIONS"}
        if "GET" in offered:
            offered.add("HEAD")
        return ", ".join(sorted(offered))

    def operation(self, method: str) -> Operation | None:
        """The operation that ``method`` means here."""
        return self.by_method.get("GET" if method == "HEAD" else method)


class _Node:
    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.resource: Resource | None = None


class Match(NamedTuple):
    """A resource, and what stands in the places of its path's parameters; shared, so not to be changed."""

    resource: Resource
    path: dict[str, str]


class Router:
    """Finds the resource of a path: literal segments go before parameters, an id of a wrong shape matches nothing."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        self._root = _Node()
        for operation in operations:
            self._add(operation)
        self._known: dict[bytes, Match] = {}

    def _add(self, operation: Operation) -> None:
        node, names = self._root, []
        for segment in operation.path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                if node.parameter is None:
                    node.parameter = _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        if node.resource is None:
            node.resource = Resource()
        node.resource.names = tuple(names)
        node.resource.by_method[operation.method] = operation
        node.resource.public &= operation.public

    def match(self, raw_path: bytes) -> Match | None:
        """The resource at ``raw_path``, as it came in the request line, without its query.

        A conversation is spoken to many times while it lasts, so its paths are taken apart once.
        """
        known = self._known.get(raw_path)
        if known is None:
            known = self._find(raw_path)
            if known is not None:
                if len(self._known) >= _REMEMBERED_PATHS:
                    self._known.clear()
                self._known[raw_path] = known
        return known

    def _find(self, raw_path: bytes) -> Match | None:
        path = raw_path.decode("latin-1")
        segments = path.split("/")
        if "%" in path:
            if _BROKEN_ESCAPE.search(path):
                return None
            segments = [unquote_to_bytes(segment).decode("latin-1") for segment in segments]
        if segments[0]:
            return None
        node, values = self._root, []
        for segment in segments[1:]:
            following = node.literals.get(segment)
            if following is None:
                following = node.parameter
                if following is None or not _ID.fullmatch(segment):
                    return None
                values.append(segment)
            node = following
        if node.resource is None:
            return None
        return Match(node.resource, dict(zip(node.resource.names, values, strict=True)))
