"""What a disk may hold after a power cut at a given place of a trace: all that was synced, and any part of the rest.

Stricter than most file systems: every unsynced block of 512 bytes persists or not for itself, in any of the versions
written since the last sync of its file; so does a file's size; and a file's name only once its folder was synced.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from tests.faults.tracing import Change, Trace

    # Of so many unsynced versions of something, the one that persists; 0 is the synced one.
    Survives = Callable[[int], int]

BLOCK_BYTES = 512
FOLDER = 0
"""In the place of an inode."""


def forgotten(_versions: int) -> int:
    """Nothing that was not synced persists: the classical cut."""
    return 0


def torn(chance: random.Random) -> Survives:
    """Any subset, denser or thinner from one cut to the next."""
    share = chance.choice((0.05, 0.5, 0.5, 0.95, 1.0))
    return lambda versions: chance.randint(1, versions) if versions and chance.random() < share else 0


def image(trace: Trace, cut: int, survives: Survives) -> dict[str, bytes]:
    """The files after a power cut behind the first ``cut`` changes of the trace."""
    changes = trace.changes[:cut]
    synced: dict[int, int] = {}
    own: dict[int, list[tuple[int, Change]]] = {}
    for place, change in enumerate(changes):
        if change.kind in ("sync", "sync-folder"):
            synced[change.inode] = max(change.number, synced.get(change.inode, 0))
        elif change.kind in ("write", "size"):
            own.setdefault(change.inode, []).append((place, change))
    names = dict(trace.names)
    for place, change in enumerate(changes):
        if change.kind in ("link", "unlink", "rename") and (place < synced.get(FOLDER, 0) or survives(1)):
            _apply_name(names, change)
    return {
        name: _content(trace.files.get(inode, b""), own.get(inode, []), synced.get(inode, 0), survives)
        for name, inode in names.items()
    }


def _apply_name(names: dict[str, int], change: Change) -> None:
    if change.kind == "link":
        names[change.name] = change.inode
    elif change.kind == "unlink":
        names.pop(change.name, None)
    elif names.pop(change.name, None) is not None:
        names[change.data.decode()] = change.inode


def _content(first: bytes, changes: Sequence[tuple[int, Change]], synced: int, survives: Survives) -> bytes:
    live = bytearray(first)
    for place, change in changes:
        if place < synced:
            _apply(live, change)
    kept = bytearray(live)
    blocks: dict[int, list[bytes]] = {}
    sizes = [len(live)]
    for place, change in changes:
        if place < synced:
            continue
        first_block, last_block = _apply(live, change)
        for block in range(first_block, last_block):
            content = bytes(live[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES])
            blocks.setdefault(block, []).append(content.ljust(BLOCK_BYTES, b"\0"))
        sizes.append(len(live))
    size = sizes[survives(len(sizes) - 1)]
    kept.extend(bytes(max(0, max(sizes) + BLOCK_BYTES - len(kept))))
    for block, versions in blocks.items():
        version = survives(len(versions))
        if version:
            kept[block * BLOCK_BYTES : (block + 1) * BLOCK_BYTES] = versions[version - 1]
    return bytes(kept[:size])


def _apply(content: bytearray, change: Change) -> tuple[int, int]:
    """Carry the change out; the blocks that it touched, the last one not included."""
    before = len(content)
    if change.kind == "size":
        del content[change.number :]
        content.extend(bytes(change.number - len(content)))
        start, end = sorted((before, change.number))
    else:
        start, end = change.number, change.number + len(change.data)
        content.extend(bytes(max(0, start - before)))
        content[start:end] = change.data
        start = min(start, before)
    return start // BLOCK_BYTES, -(-end // BLOCK_BYTES)
