"""RFC 3339 in, RFC 3339 out. An instant is an ``int``: microseconds since 1970-01-01 UTC, leap seconds not counted.

Not ``datetime``: its parser takes week dates and basic format, and its arithmetic overflows at the years 1 and 9999.
"""

from __future__ import annotations

import re
from datetime import date
from functools import lru_cache

US_PER_S = 1_000_000
_S_PER_DAY = 86_400
_EPOCH_DAY = date(1970, 1, 1).toordinal()
EARLIEST = (1 - _EPOCH_DAY) * _S_PER_DAY * US_PER_S
"""0001-01-01T00:00:00Z."""
LATEST = (date(9999, 12, 31).toordinal() + 1 - _EPOCH_DAY) * _S_PER_DAY * US_PER_S - 1
"""9999-12-31T23:59:59.999999Z."""

EXPECTED = "an RFC 3339 timestamp such as 2021-11-23T12:13:14.555Z"

_SHAPE = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:\.(\d{1,15}))?(?:[Zz]|([+-])(\d\d):(\d\d))?", re.ASCII
)

# The days at whose end, in UTC, a leap second was inserted (IERS Bulletin C; none since 2016).
_LEAP_SECOND_DAYS = frozenset(
    date(year, month, day).toordinal()
    for month, day, years in (
        (6, 30, (1972, 1981, 1982, 1983, 1985, 1992, 1993, 1994, 1997, 2012, 2015)),
        (12, 31, (*range(1972, 1980), 1987, 1989, 1990, 1995, 1998, 2005, 2008, 2016)),
    )
    for year in years
)


class NotAnInstantError(ValueError):
    """The text is no RFC 3339 timestamp."""


class OutOfRangeError(ValueError):
    """The text is an RFC 3339 timestamp outside the years 0001 to 9999 UTC."""


def parse(text: str) -> int:
    """The instant that ``text`` names, cut to the microsecond; without a zone, UTC is assumed.

    A real leap second is the last microsecond before it. Raises NotAnInstantError, OutOfRangeError.
    """
    # The forms that most clients send, 2021-11-23T12:13:14.555Z and 2021-11-23T12:13:14Z: their minute was seen before.
    length = len(text)
    if length == 24 and text[19] == "." and text[23] == "Z":
        digits = text[17:19] + text[20:23]
    elif length == 20 and text[19] == "Z":
        digits = text[17:19] + "000"
    else:
        return _parse(text)
    if digits.isdecimal() and digits.isascii() and digits < "60":
        return _minute_start(text[:17]) + int(digits) * 1000
    return _parse(text)


@lru_cache(maxsize=4096)
def _minute_start(text: str) -> int:
    """The instant at which the minute ``2021-11-23T12:13:`` starts."""
    return _parse(text + "00Z")


def _parse(text: str) -> int:
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise NotAnInstantError(text)
    year, month, day, hour, minute, second, fraction, sign, zone_hours, zone_minutes = match.groups()
    h, m, s = int(hour), int(minute), int(second)
    if h > 23 or m > 59 or s > 60:
        raise NotAnInstantError(text)
    offset_s = 0
    if sign is not None:
        offset_s = _offset_s(sign, int(zone_hours), int(zone_minutes), text)
    leap = s == 60
    day_number = _day_number(int(year), int(month), int(day), text)
    seconds = (day_number - _EPOCH_DAY) * _S_PER_DAY + h * 3600 + m * 60 + s - offset_s
    if leap:
        return _before_leap_second(seconds, text)
    micros = int(fraction[:6].ljust(6, "0")) if fraction else 0
    instant = seconds * US_PER_S + micros
    if not EARLIEST <= instant <= LATEST:
        raise OutOfRangeError(text)
    return instant


def _offset_s(sign: str, hours: int, minutes: int, text: str) -> int:
    if hours > 23 or minutes > 59:
        raise NotAnInstantError(text)
    seconds = hours * 3600 + minutes * 60
    return -seconds if sign == "-" else seconds


def _day_number(year: int, month: int, day: int, text: str) -> int:
    try:
        if year == 0:
            # The calendar of year 0 is that of any leap year 400 years on; ``date`` does not go there.
            return date(400, month, day).toordinal() - 146_097
        return date(year, month, day).toordinal()
    except ValueError:
        raise NotAnInstantError(text) from None


def _before_leap_second(seconds: int, text: str) -> int:
    day, rest = divmod(seconds, _S_PER_DAY)
    if rest != 0 or day - 1 + _EPOCH_DAY not in _LEAP_SECOND_DAYS:
        raise NotAnInstantError(text)
    return seconds * US_PER_S - 1


@lru_cache(maxsize=4096)
def _minute_text(minute: int) -> str:
    day, rest = divmod(minute, 1440)
    return f"{date.fromordinal(day + _EPOCH_DAY).isoformat()}T{rest // 60:02}:{rest % 60:02}:"


_SECONDS = [f"{second:02}." for second in range(60)]
_MILLISECONDS = [f"{millisecond:03}Z" for millisecond in range(1000)]


@lru_cache(maxsize=16_384)
def render(instant: int) -> str:
    """``instant`` in UTC with ``Z``; three fraction digits, six where the microseconds are not zero.

    A listing of twenty messages has forty of them: half its time went here, hence the tables and the memory.
    """
    minute, rest = divmod(instant, 60 * US_PER_S)
    milliseconds, micros = divmod(rest, 1000)
    second, millisecond = divmod(milliseconds, 1000)
    if micros:
        return f"{_minute_text(minute)}{_SECONDS[second]}{rest % US_PER_S:06}Z"
    return _minute_text(minute) + _SECONDS[second] + _MILLISECONDS[millisecond]
