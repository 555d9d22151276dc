"""Files to be imported: rows, or problems that name their line; where all is well, as Python reads them."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
import json
import tempfile
from pathlib import Path

from turnlog import instants
from turnlog.transcripts import COLUMNS, Problem, Row, read

ROLES = {"customer": "customer", "agent": "agent", "bot": "system", "system": "system"}


def _read(content: bytes) -> list[Row | Problem]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        sizes: list[int] = []
        found = [one._replace(file="F") if isinstance(one, Problem) else one for one in read(file.name, sizes.append)]
        assert sum(sizes) <= Path(file.name).stat().st_size
    return found


def _check_problem(problem: Problem) -> None:
    said = str(problem)
    assert said.startswith("F: " if problem.line is None else f"F:{problem.line}: ")
    assert problem.message
    assert problem.unreadable or problem.line is not None, said
    assert len(said) < 400, said
    assert said.isprintable() or not problem.message.isprintable()


def _expected(content: bytes) -> list[tuple[str, ...]] | None:
    """The rows of a file that has nothing wrong, as Python's own readers see them; ``None`` where they see none."""
    try:
        text = content.removeprefix(b"\xef\xbb\xbf").decode()
        lines = [line for line in text.split("\n") if line.strip()]
        if lines[0].lstrip().startswith("{"):
            objects = [json.loads(line) for line in lines]
            return [tuple(str(one[column]) for column in COLUMNS) for one in objects]
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (ValueError, KeyError, csv.Error, RecursionError, IndexError):
        return None
    rows = [row for row in rows if any(field.strip() for field in row)]  # blank lines are no rows
    header = [name.strip() for name in rows[0]]
    places = list(range(len(COLUMNS)))
    if set(COLUMNS) <= set(header):
        places, rows = [header.index(column) for column in COLUMNS], rows[1:]
    return [tuple(row[place] for place in places) for row in rows]


def check(content: bytes) -> None:
    """Never a traceback: each row or problem at its line, in order, whatever the bytes; the same from a gzip file."""
    found = _read(content)
    lines = [one.line for one in found if one.line is not None]
    last = content.count(b"\n") + 1
    assert all(line >= 1 for line in lines)
    assert all(before < after for before, after in itertools.pairwise(lines)), lines
    if not content.startswith(b"\x1f\x8b"):
        assert not lines or lines[-1] <= last
        assert _read(gzip.compress(content, 1)) == found
        assert sum(one.size for one in found if isinstance(one, Row)) <= len(content)
    for one in found:
        if isinstance(one, Problem):
            _check_problem(one)
        else:
            assert one.conversation
            assert one.message.text
            assert one.message.sender
            assert one.message.role in ROLES.values()
            instants.render(one.message.client_at)
    rows = [one for one in found if isinstance(one, Row)]
    if len(rows) == len(found) > 0 and b"\r" not in content.replace(b"\r\n", b""):
        expected = _expected(content)
        given = [
            (one.conversation, one.message.sender, one.message.role, one.message.text, one.message.client_at)
            for one in rows
        ]
        if expected is not None:
            assert given == [(a, b, ROLES[c.lower()], d, instants.parse(e)) for a, b, c, d, e in expected]


_ROW = (
    b'{"conversation_externalId":"c","sender_externalId":"s","sender_role":"bot","text":"t",'
    b'"timestamp":"2021-11-23T12:13:14Z"}\n'
)
WORDS = (b"\n", b"\r\n", b"\r", b'"', b'""', b",", b'","', b"NULL", b'"NULL"', b"\xef\xbb\xbf", b"\xff\xfe", b"\0",
         b"\x1f\x8b", b"{", b"}", b"[", b"null", b"123", b"1.5", b"true", b"\\ud800", b"\\u0000",
         *(column.encode() for column in COLUMNS),
         _ROW,
         b'c,s,agent,"t, u",2021-11-23T12:13:14Z\n', b"BOT", b"2021-11-23T12:13:14Z", b"1" * 300, b" ", b"\t",
         b"\xc3\x28", b"\xe2\x80\xa8", b"\x85", b"\x0b", b"\x0c")  # fmt: skip
