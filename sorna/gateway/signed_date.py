"""Reading the date of a signed request in any of the spellings that clients have used; knows no HTTP.

The historic server gave the header to python-dateutil's free-form parser, so clients send what that accepts. We do the
same behind bounds: the text is short, what it leaves out is never filled in from today, and whatever the parser raises
is one :class:`sorna.errors.InvalidAuthentication`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from dateutil.parser import parse

from sorna.errors import InvalidAuthentication

MAX_LENGTH = 64
#: How far a request's date may be from ours, in seconds, either way.
WINDOW = 15 * 60.0

# A part of the date that the text leaves out comes from here: a date without a year then lies far outside the window,
# where dateutil's own default (today) would make "10:00" a valid date.
_NOWHEN = datetime(1, 1, 1, tzinfo=UTC).replace(tzinfo=None)
_ISO = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_HOUR = 3600
# Hours from UTC of the zones with one well-known meaning; any other name counts as UTC, as it always did.
_ZONES = {
    "UTC": 0, "GMT": 0, "Z": 0, "UT": 0, "WET": 0, "WEST": 1, "BST": 1, "CET": 1, "CEST": 2, "EET": 2, "EEST": 3, "MSK": 3,
    "WIB": 7, "HKT": 8, "SGT": 8, "PHT": 8, "AWST": 8, "KST": 9, "JST": 9, "AEST": 10, "AEDT": 11, "NZST": 12, "NZDT": 13,
    "EST": -5, "EDT": -4, "CST": -6, "CDT": -5, "MST": -7, "MDT": -6, "PST": -8, "PDT": -7, "AKST": -9, "AKDT": -8, "HST": -10,
}  # fmt: skip


def parse_date(text: str) -> datetime:
    """Read a date; what it gives is aware and keeps the zone in which it was written (no zone: UTC).

    :raises InvalidAuthentication: it is no date.
    """
    if len(text) <= MAX_LENGTH:
        try:
            parsed = (
                datetime.fromisoformat(text) if _ISO.fullmatch(text) else parse(text, default=_NOWHEN, tzinfos=_zone)
            )
        # The free-form parser has a long history of leaking what its internals raise; none of it is our fault or news.
        except (ValueError, TypeError, ArithmeticError, LookupError, AttributeError):
            pass
        else:
            return parsed.replace(tzinfo=UTC) if parsed.tzinfo is None else parsed
    raise InvalidAuthentication("Date/time sync error")


def check_date(text: str, now: float) -> datetime:
    """Read a date and see that it lies within :data:`WINDOW` of ``now`` (seconds since the epoch).

    :raises InvalidAuthentication: it is no date, or too old, or too far ahead.
    """
    parsed = parse_date(text)
    try:
        distance = abs(parsed.timestamp() - now)
    except (OverflowError, ValueError):
        distance = float("inf")
    if distance > WINDOW:
        raise InvalidAuthentication("Date/time sync error")
    return parsed


def _zone(name: str | None, offset: int | None) -> tzinfo | None:
    # Called by the parser for every date, so that the names of the zone this host happens to be in mean nothing.
    if offset is not None:
        return timezone(timedelta(seconds=offset))
    if name is None:
        return None
    return timezone(timedelta(seconds=_ZONES.get(name.upper(), 0) * _HOUR))
