"""Transcript files in the columns of ASAPP's historical upload: CSV or JSON lines, gzipped or not, as rows or problems.

Reads as a stream and knows nothing of what becomes of the rows. What a file is shows in its content, not in its name.
"""

from __future__ import annotations

import contextlib
import io
import re
import zlib
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from turnlog import instants
from turnlog.model import MAX_ID_CHARS, NewMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from turnlog.model import Role

COLUMNS = ("conversation_externalId", "sender_externalId", "sender_role", "text", "timestamp")
STANDARD_INPUT = "-"
MAX_ROW_BYTES = 8 * 1024 * 1024
"""One line of JSON, or one CSV row with every line of its quoted texts."""

_ROLES: dict[str, Role] = {"customer": "customer", "agent": "agent", "bot": "system", "system": "system"}
_BUFFER_BYTES = 64 * 1024
_SHOWN_CHARS = 60
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_NOT_IN_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
MAX_COLUMNS = 256
_COMMA = "a text with a comma goes between quotation marks"
_EXPECTED = "expected CSV or JSON lines in UTF-8, gzipped or not"


class Row(NamedTuple):
    """One message of a file. ``size`` is the number of bytes that it takes in the file."""

    conversation: str
    message: NewMessage
    line: int
    size: int


class Problem(NamedTuple):
    """A row that is none (``line`` is where it starts), or, with ``unreadable``, the end of a file before its time."""

    file: str
    line: int | None
    message: str
    unreadable: bool = False

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f':{self.line}'}: {self.message}"


class _BadRowError(Exception):
    """What is wrong with a row, and what would be right."""


_ROW_ERRORS = (_BadRowError, UnicodeDecodeError, msgspec.DecodeError, RecursionError)


class _UnreadableError(Exception):
    """Why a file cannot be read."""


class _DamagedError(_UnreadableError):
    """Why a file cannot be read any further."""


def read(file: str, on_bytes: Callable[[int], None]) -> Iterator[Row | Problem]:
    """The rows of ``file`` (``-`` is standard input) in their order, and a problem in the place of each that is none.

    Takes memory for a few rows, whatever the size of the file. ``on_bytes`` hears how many bytes were read from the
    disk. A bad row costs no other: after a quotation mark that nothing closes, reading goes on at the next line.
    """
    lines = _Lines()
    try:
        with contextlib.ExitStack() as opened:
            lines.stream = _open(file, on_bytes, opened)
            rows = _json_rows if _is_json(lines.stream.peek()) else _csv_rows
            for line, row in rows(lines):
                yield row if isinstance(row, Row) else Problem(file, line, _said(row))
    except _UnreadableError as error:
        place = lines.number + 1 if isinstance(error, _DamagedError) and lines.number else None
        yield Problem(file, place, str(error), unreadable=True)
    except OSError as error:
        yield Problem(file, None, error.strerror or str(error), unreadable=True)


# From a file to lines.


class _Source(io.RawIOBase):
    """A file that tells how much was read, and fills the buffer that it is given, so that a pipe can be looked into."""

    def __init__(self, raw: io.RawIOBase, on_bytes: Callable[[int], None]) -> None:
        self._raw = raw
        self._on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As RawIOBase.readinto, and fewer bytes than asked for only at the end."""
        view, filled = memoryview(buffer), 0
        while filled < len(view):
            count = self._raw.readinto(view[filled:])
            if not count:
                break
            filled += count
        self._on_bytes(filled)
        return filled


class _Gunzip(io.RawIOBase):
    """What a gzip file holds, all its members. Unlike gzip.GzipFile, gives all there is before it reports a cut."""

    def __init__(self, source: io.BufferedReader[Any]) -> None:
        self._source = source
        self._member = zlib.decompressobj(wbits=31)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As RawIOBase.readinto. Raises _DamagedError."""
        data = b""
        while not data:
            member = self._member
            packed = member.unused_data or member.unconsumed_tail or self._source.read(_BUFFER_BYTES)
            if member.eof:
                if not packed:
                    return 0
                self._member = member = zlib.decompressobj(wbits=31)
            try:
                data = member.decompress(packed, len(buffer))
            except zlib.error:
                raise _DamagedError("the gzip file is damaged here: what comes before it was read") from None
            if not data and not packed:
                raise _DamagedError("the gzip file is cut off here: what comes before it was read")
        buffer[: len(data)] = data
        return len(data)


def _open(file: str, on_bytes: Callable[[int], None], opened: contextlib.ExitStack) -> io.BufferedReader[Any]:
    """The content of the file, unpacked. Raises OSError, _UnreadableError; ``opened`` closes what was opened."""
    raw = opened.enter_context(io.FileIO(0, closefd=False) if file == STANDARD_INPUT else io.FileIO(file))
    stream: io.BufferedReader[Any] = opened.enter_context(io.BufferedReader(_Source(raw, on_bytes), _BUFFER_BYTES))
    if stream.peek().startswith(_GZIP):
        stream = opened.enter_context(io.BufferedReader(_Gunzip(stream), _BUFFER_BYTES))
    head = stream.peek()
    if not head.strip(b"\r\n\t " + _BOM) and len(head) < _BUFFER_BYTES:
        raise _UnreadableError(f"is empty: {_EXPECTED}")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _UnreadableError("is UTF-16: save it as UTF-8")
    if _is_binary(head):
        raise _UnreadableError(f"is not text: {_EXPECTED}")
    return stream


def _is_binary(head: bytes) -> bool:
    """Text of another encoding is left to the rows, which name what is wrong; so is a stray control character."""
    strange = len(_NOT_IN_TEXT.findall(head))
    try:
        head[: max(head.rfind(b"\n"), 0)].decode()
    except UnicodeDecodeError:
        return strange > 0
    return strange > len(head) / 10


def _is_json(head: bytes) -> bool:
    """Whether the first row, or most of those in sight, is an object: one broken row does not make another format."""
    starts = [line.lstrip()[:1] for line in head.removeprefix(_BOM).splitlines() if line.strip()]
    if starts[:1] == [b"["] and starts.count(b"{") * 2 <= len(starts):
        raise _UnreadableError("is a JSON array: expected JSON lines, one object in each line")
    return starts[:1] == [b"{"] or starts.count(b"{") * 2 > len(starts)


class _Lines:
    """The lines of a stream with their numbers, blank ones and all; lines can be given back."""

    stream: io.BufferedReader[Any]

    def __init__(self) -> None:
        self.number = 0
        self._given_back: deque[bytes] = deque()

    def next(self) -> bytes | None:
        """The next line with its end; ``None`` behind the last. Of one over the limit, one byte more than the limit."""
        if self._given_back:
            self.number += 1
            return self._given_back.popleft()
        line = self.stream.readline(MAX_ROW_BYTES + 1)
        if not line:
            return None
        if len(line) > MAX_ROW_BYTES:
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = self.stream.readline(_BUFFER_BYTES)
        self.number += 1
        return line.removeprefix(_BOM) if self.number == 1 else line

    def give_back(self, lines: Sequence[bytes]) -> None:
        """Let these lines, the last that were given, come again."""
        self._given_back.extendleft(reversed(lines))
        self.number -= len(lines)


def _numbered(lines: _Lines) -> Iterator[tuple[int, bytes]]:
    """The lines at which rows begin, each behind what the caller has taken of ``lines`` for the row before."""
    while (line := lines.next()) is not None:
        if line.strip():
            yield lines.number, line


def _check_length(line: bytes) -> None:
    if len(line) > MAX_ROW_BYTES:
        raise _BadRowError(f"the row is longer than {MAX_ROW_BYTES // 1024**2} MiB")


# JSON lines.


class _JsonRow(msgspec.Struct):
    """A line of JSON; the values are looked at where an error can name their column."""

    conversation: Any = msgspec.field(name=COLUMNS[0], default=None)
    sender: Any = msgspec.field(name=COLUMNS[1], default=None)
    role: Any = msgspec.field(name=COLUMNS[2], default=None)
    text: Any = msgspec.field(name=COLUMNS[3], default=None)
    timestamp: Any = msgspec.field(name=COLUMNS[4], default=None)


_decode_row = msgspec.json.Decoder(_JsonRow).decode


def _json_rows(lines: _Lines) -> Iterator[tuple[int, Row | Exception]]:
    for number, line in _numbered(lines):
        try:
            _check_length(line)
            found = _decode_row(line)
            ids = (_id(found.conversation, COLUMNS[0]), _id(found.sender, COLUMNS[1]))
            yield number, _row((*ids, found.role, found.text, found.timestamp), number, len(line))
        except _ROW_ERRORS as error:
            yield number, error


def _id(value: object, column: str) -> object:
    """An integer becomes its decimal string, as everywhere in the API."""
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 10**MAX_ID_CHARS:
            raise _BadRowError(f"{column} has more than {MAX_ID_CHARS} digits")
        return str(value)
    return value


# CSV.

_FIELD = re.compile(rb'(?:"((?:[^"]++|"")*+)"|([^",][^,]*+|))(,|\Z)')
_OPEN = re.compile(rb'"(?:[^"]++|"")*+\Z')


def _csv_rows(lines: _Lines) -> Iterator[tuple[int, Row | Exception]]:
    columns: Sequence[int] | None = None
    width = MAX_COLUMNS
    for number, line in _numbered(lines):
        try:
            fields, size = _csv_fields(line, lines, width)
            if columns is None:
                columns = _header(fields)
                width = len(fields) if columns else len(COLUMNS)
                if columns:
                    continue
                columns = range(width)
            _check_width(len(fields), width)
            yield number, _row([fields[place] for place in columns], number, size)
        except _ROW_ERRORS as error:
            yield number, error


def _csv_fields(line: bytes, lines: _Lines, most: int) -> tuple[list[str | None], int]:
    """The fields of the row that begins with ``line``, and its bytes.

    Where the row goes over several lines and is none, only the first is to blame: the others come again.
    """
    _check_length(line)
    if b'"' not in line:
        return [None if field == "NULL" else field for field in _without_end(line).decode().split(",")], len(line)
    row, size = [line], len(line)
    try:
        fields = _split(line, most)
        while fields is None:
            more = _continuation(lines, size)
            row.append(more)
            size += len(more)
            if b'"' in more.replace(b'""', b""):
                fields = _split(b"".join(row), most)
        if len(row) > 1 and most < MAX_COLUMNS:
            _check_width(len(fields), most)
    except _BadRowError:
        lines.give_back(row[1:])
        raise
    return [None if field is None else field.decode() for field in fields], size


def _continuation(lines: _Lines, size: int) -> bytes:
    """The next line of a row that has ``size`` bytes and is not complete."""
    line = lines.next()
    if line is not None and size + len(line) <= MAX_ROW_BYTES:
        return line
    lines.give_back([] if line is None else [line])
    raise _BadRowError("a quotation mark opens a text and none closes it: one within a text is doubled")


def _split(record: bytes, most: int) -> list[bytes | None] | None:
    """The fields of a record; ``None`` where it ends within quotation marks. The unquoted word NULL is no value."""
    record = _without_end(record)
    fields: list[bytes | None] = []
    place = 0
    while len(fields) <= most:
        match = _FIELD.match(record, place)
        if match is None:
            if _OPEN.match(record, place):
                return None
            raise _BadRowError(f"column {len(fields) + 1}: a quotation mark within a quoted text that is not doubled")
        quoted, plain, end = match.groups()
        fields.append(quoted.replace(b'""', b'"') if quoted is not None else None if plain == b"NULL" else plain)
        if not end:
            return fields
        place = match.end()
    raise _BadRowError(f"more than {most} columns ({_COMMA})")


def _without_end(line: bytes) -> bytes:
    return line[:-2] if line.endswith(b"\r\n") else line.removesuffix(b"\n")


def _header(fields: Sequence[str | None]) -> Sequence[int] | None:
    """Where the columns are, if ``fields`` is a header. Raises _UnreadableError where it is no good one."""
    names = [(field or "").strip() for field in fields]
    known = [name for name in names if name in COLUMNS]
    if not known or (len(names) == len(COLUMNS) and names[2].lower() in _ROLES):
        return None
    for column in COLUMNS:
        if known.count(column) != 1:
            raise _UnreadableError(f"the header does not name {column} once: expected {', '.join(COLUMNS)}")
    return [names.index(column) for column in COLUMNS]


def _check_width(found: int, expected: int) -> None:
    if found != expected:
        raise _BadRowError(f"{found} columns where {expected} are expected ({_COMMA})")


# From values to a row.


def _row(values: Sequence[object], line: int, size: int) -> Row:
    """Raises _BadRowError, which names the column and never shows a text."""
    conversation, sender, role, text, timestamp = values
    known = _ROLES.get(_text(role, COLUMNS[2]).lower())
    if known is None:
        raise _BadRowError(f"sender_role {_shown(role)}: expected customer, agent, bot or system")
    try:
        at = instants.parse(_text(timestamp, COLUMNS[4]))
    except instants.NotAnInstantError:
        raise _BadRowError(f"timestamp {_shown(timestamp)}: expected {instants.EXPECTED}") from None
    except instants.OutOfRangeError:
        raise _BadRowError(f"timestamp {_shown(timestamp)}: outside the years 0001 to 9999 UTC") from None
    message = NewMessage(_text(text, COLUMNS[3]), known, _text(sender, COLUMNS[1]), at)
    return Row(_text(conversation, COLUMNS[0]), message, line, size)


def _text(value: object, column: str) -> str:
    if isinstance(value, str) and value:
        return value
    problem = "missing" if value is None else "empty" if value == "" else "no string"
    raise _BadRowError(f"{column} is {problem}")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _said(error: Exception) -> str:
    """What is wrong with a row, of all that _ROW_ERRORS names."""
    if isinstance(error, UnicodeDecodeError):
        return f"is not UTF-8: byte 0x{error.object[error.start]:02x}"
    if isinstance(error, msgspec.ValidationError):
        return "is not a JSON object: expected one in each line"
    return str(error) if isinstance(error, _BadRowError) else f"is not JSON: {error}"
