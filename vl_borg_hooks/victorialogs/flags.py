"""The values of VictoriaLogs' command-line flags: times and sizes in its own notation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone

# strconv.ParseFloat of Go, without hexadecimal numbers, infinities and NaN.
_FLOAT = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
# lib/flagutil/duration.go of VictoriaMetrics: months of 31 days, with an M or without any unit.
_MONTHS = re.compile(rf"{_FLOAT}M?", re.ASCII)
_MONTH = timedelta(days=31)
# scanSingleDuration in metricsql's lexer.go: a duration is a sum of these.
_DURATION = re.compile(r"(-?\d+(?:\.\d*)?|-\.\d+)(ms|[smhdwy])", re.ASCII)
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
    "y": timedelta(days=365),
}
# lib/flagutil/bytes.go of VictoriaMetrics, which does not tell capitals from small letters.
_BYTES = re.compile(rf"({_FLOAT})(?:([kmgt])(i?)b)?", re.ASCII | re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class KeptDays:
    """The partitions that a server keeps today, by name (YYYYMMDD): from the first to the last."""

    oldest: str
    newest: str

    def __contains__(self, day: str) -> bool:
        """Say whether the server keeps partition `day`."""
        return self.oldest <= day <= self.newest


def kept_days(retention_period: str, future_retention: str) -> KeptDays | None:
    """Return what a server with these -retentionPeriod and -futureRetention keeps today.

    None if the first can't be understood. Whole days in UTC (getMinAllowedDay and getMaxAllowedDay
    in storage.go); neither of the two is ever less than a day there.
    """
    past = duration(retention_period)
    if past is None:
        return None
    future = duration(future_retention) or timedelta(days=1)
    now = datetime.now(timezone.utc)
    return KeptDays(
        _day(now, -max(past, timedelta(days=1))), _day(now, max(future, timedelta(days=1)))
    )


def _day(now: datetime, distance: timedelta) -> str:
    """Return the partition of `now` plus `distance`, or the first or last that there can be."""
    try:
        day = now + distance
    except OverflowError:
        return "99999999" if distance > timedelta() else "00000000"
    # Not strftime, whose %Y has no leading zeros.
    return f"{day.year:04}{day.month:02}{day.day:02}"


def duration(value: str) -> timedelta | None:
    """Return the time in a flag such as -retentionPeriod, None if `value` is not understood."""
    try:
        found = _months(value) if _MONTHS.fullmatch(value) else _sum(value.lower())
    except OverflowError:
        return None
    return None if found is None or found < timedelta() else found


def _months(value: str) -> timedelta:
    return float(value.removesuffix("M")) * _MONTH


def _sum(value: str) -> timedelta | None:
    """Return the sum of durations in `value`; after a negative one, all are (DurationValue)."""
    # Minutes at the end could be meant for months: VictoriaLogs refuses them.
    if not value or value.endswith("m"):
        return None
    total, sign, end = timedelta(), 1, 0
    while end < len(value):
        found = _DURATION.match(value, end)
        if not found:
            return None
        number = float(found[1])
        sign = -1 if number < 0 else sign
        total += sign * abs(number) * _UNITS[found[2]]
        end = found.end()
    return total


def size(value: str) -> int:
    """Return the number of bytes in a flag of `value`, 0 if it can't be understood."""
    found = _BYTES.fullmatch(value)
    if not found:
        return 0
    power = _POWERS[(found[2] or "").lower()]
    try:
        return max(int(float(found[1]) * (1024 if found[3] else 1000) ** power), 0)
    except OverflowError:
        return 0
