"""Timestamps, read slowly: character by character as the contract has them, with a calendar of its own."""

from __future__ import annotations

from turnlog import instants

_LEAP_SECONDS = {
    "06-30": (1972, 1981, 1982, 1983, 1985, 1992, 1993, 1994, 1997, 2012, 2015),
    "12-31": (1972, 1973, 1974, 1975, 1976, 1977, 1978, 1979, 1987, 1989, 1990, 1995, 1998, 2005, 2008, 2016),
}
"""The days that had 86,401 seconds (IERS, Bulletin C), with their years."""
DIGITS = "0123456789"


class RefusedError(Exception):
    """The contract does not accept it; ``code`` is the error's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class _Text:
    """What is left of a text."""

    def __init__(self, text: str) -> None:
        self.left = text

    def one_of(self, wanted: str) -> str:
        if not self.left or self.left[0] not in wanted:
            raise RefusedError("400-03")
        found, self.left = self.left[0], self.left[1:]
        return found

    def number(self, digits: int) -> int:
        return int("".join(self.one_of(DIGITS) for _ in range(digits)))


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def _days_of(year: int, month: int) -> int:
    return (31, 29 if _is_leap(year) else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)[month - 1]


def _days_before(year: int, month: int, day: int) -> int:
    """Since 1970-01-01, by counting."""
    whole_years = 365 * (year - 1970) + sum(_is_leap(y) for y in range(1970, year))
    if year < 1970:
        whole_years = 365 * (year - 1970) - sum(_is_leap(y) for y in range(year, 1970))
    return whole_years + sum(_days_of(year, m) for m in range(1, month)) + day - 1


_LEAP_MINUTES = {
    _days_before(year, int(day[:2]), int(day[3:])) * 1440 + 1439
    for day, years in _LEAP_SECONDS.items()
    for year in years
}


def expected(given: str) -> int:
    """Microseconds since 1970. Raises RefusedError."""
    text = _Text(given)
    year = text.number(4)
    text.one_of("-")
    month = text.number(2)
    text.one_of("-")
    day = text.number(2)
    text.one_of("Tt")
    hour = text.number(2)
    text.one_of(":")
    minute = text.number(2)
    text.one_of(":")
    second = text.number(2)
    micros = _fraction(text)
    offset_minutes = _zone(text)
    if not 1 <= month <= 12 or not 1 <= day <= _days_of(year, month) or hour > 23 or minute > 59 or second > 60:
        raise RefusedError("400-03")
    minutes = _days_before(year, month, day) * 1440 + hour * 60 + minute - offset_minutes
    if second == 60:
        if minutes not in _LEAP_MINUTES:
            raise RefusedError("400-03")
        second, micros = 59, 999_999
    instant = (minutes * 60 + second) * 1_000_000 + micros
    if not _days_before(1, 1, 1) * 86_400_000_000 <= instant < (_days_before(9999, 12, 31) + 1) * 86_400_000_000:
        raise RefusedError("422-01")
    return instant


def _fraction(text: _Text) -> int:
    if not text.left.startswith("."):
        return 0
    text.one_of(".")
    digits = text.one_of(DIGITS)
    while text.left and text.left[0] in DIGITS and len(digits) < 15:
        digits += text.one_of(DIGITS)
    return int((digits + "000000")[:6])


def _zone(text: _Text) -> int:
    """Minutes east of UTC."""
    if not text.left:
        return 0
    sign = text.one_of("Zz+-")
    east = 0
    if sign in "+-":
        hours = text.number(2)
        text.one_of(":")
        minutes = text.number(2)
        if hours > 23 or minutes > 59:
            raise RefusedError("400-03")
        east = (hours * 60 + minutes) * (1 if sign == "+" else -1)
    if text.left:
        raise RefusedError("400-03")
    return east


def check(content: bytes) -> None:
    """S08. What the contract accepts is read as it says, the rest is refused; out and in again is the same."""
    text = content.decode("utf-8", "replace")
    found: int | str
    wanted: int | str
    try:
        wanted = expected(text)
    except RefusedError as refused:
        wanted = refused.code
    try:
        found = instants.parse(text)
    except instants.NotAnInstantError:
        found = "400-03"
    except instants.OutOfRangeError:
        found = "422-01"
    assert found == wanted, (text, found, wanted)
    if isinstance(found, int):
        written = instants.render(found)
        assert instants.parse(written) == expected(written) == found
        assert written.endswith("Z")
        assert len(written) == (27 if found % 1000 else 24), written


WORDS = (b"T", b"t", b"Z", b"z", b"+00:00", b"-23:59", b"+05:30", b"23:59:60", b".000001", b".999999999999999",
         b"0001-", b"9999-12-31", b"0000-02-29", b"2016-12-31", b"24:00:00", "\u0663".encode(), b",5",
         b"W01")  # fmt: skip
