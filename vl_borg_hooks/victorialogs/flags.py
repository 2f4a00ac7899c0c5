"""The values of VictoriaLogs' command-line flags: times and sizes in its own notation."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, timezone

# lib/flagutil/retention_duration.go of VictoriaMetrics: a bare number is months of 31 days.
_RETENTION = re.compile(r"(\d+(?:\.\d+)?)([hdwy]?)")
_RETENTION_DAYS = {"h": 1 / 24, "d": 1, "w": 7, "y": 365, "": 31}
# lib/flagutil/bytes.go of VictoriaMetrics: how a flag gives a number of bytes.
_BYTES = re.compile(r"(\d+(?:\.\d+)?)(?:([KMGT])(i?)B)?")
_POWERS = {None: 0, "K": 1, "M": 2, "G": 3, "T": 4}


def oldest_kept_day(value: str) -> str:
    """Return the oldest partition (YYYYMMDD) that a -retentionPeriod of `value` keeps today.

    Empty if `value` can't be understood. Whole days in UTC (getMinAllowedDay in storage.go).
    """
    kept = retention(value)
    try:
        return (datetime.now(timezone.utc) - kept).strftime("%Y%m%d") if kept else ""
    except OverflowError:
        return ""


def retention(value: str) -> timedelta | None:
    """Return how long a -retentionPeriod of `value` keeps logs, None if it can't be understood."""
    found = _RETENTION.fullmatch(value)
    if not found:
        return None
    try:
        # storage.go: never less than a day.
        return max(timedelta(days=float(found[1]) * _RETENTION_DAYS[found[2]]), timedelta(days=1))
    except OverflowError:
        return None


def size(value: str) -> int:
    """Return the number of bytes in a flag of `value`, 0 if it can't be understood."""
    found = _BYTES.fullmatch(value)
    if not found:
        return 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]])
