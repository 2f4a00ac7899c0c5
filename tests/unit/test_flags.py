"""The values of VictoriaLogs' flags for times and sizes; what is not understood changes nothing."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from vl_borg_hooks.victorialogs import flags


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7d", timedelta(days=7)),
        ("36h", timedelta(hours=36)),
        ("4w", timedelta(weeks=4)),
        ("1y", timedelta(days=365)),
        ("100y", timedelta(days=36500)),
        ("1.5d", timedelta(hours=36)),
        # Months of 31 days.
        ("1", timedelta(days=31)),
        ("12", timedelta(days=372)),
        ("0.5", timedelta(days=15.5)),
    ],
)
def test_a_retention_is_understood(value: str, expected: timedelta) -> None:
    assert flags.retention(value) == expected


@pytest.mark.parametrize("value", ["1h", "23.5h", "0", "0d", "0.1d"])
def test_no_retention_is_shorter_than_a_day(value: str) -> None:
    assert flags.retention(value) == timedelta(days=1)


@pytest.mark.parametrize("value", ["", "d", "-1d", "7 d", "7d ", "seven", "7x", "9" * 400 + "y"])
def test_a_retention_that_is_not_understood_is_none_and_no_day_is_too_old(value: str) -> None:
    assert flags.retention(value) is None
    assert flags.oldest_kept_day(value) == ""


@pytest.mark.parametrize("value", ["9999y", "2562047h"])
def test_a_retention_of_all_times_has_no_oldest_day_or_one_that_nothing_is_before(
    value: str,
) -> None:
    assert flags.oldest_kept_day(value) < "19700101"


def test_the_oldest_day_is_told_in_utc_as_partitions_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Fixed(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Fixed:
            assert tz is timezone.utc
            return cls(2026, 11, 22, 0, 30, tzinfo=timezone.utc)

    monkeypatch.setattr(flags, "datetime", Fixed)
    assert flags.oldest_kept_day("7d") == "20261115"
    assert flags.oldest_kept_day("1h") == "20261121"
    assert flags.oldest_kept_day("1y") == "20251122"
    # A day that has begun within the retention is kept whole.
    assert flags.oldest_kept_day("36h") == "20261120"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("10000000", 10_000_000),
        ("1KB", 1000),
        ("1KiB", 1024),
        ("10MB", 10_000_000),
        ("10MiB", 10 << 20),
        ("2GB", 2_000_000_000),
        ("2GiB", 2 << 30),
        ("1TB", 10**12),
        ("1TiB", 1 << 40),
        ("1.5GiB", 3 << 29),
        ("80", 80),
    ],
)
def test_a_size_is_understood(value: str, expected: int) -> None:
    assert flags.size(value) == expected


@pytest.mark.parametrize("value", ["", "-1", "MB", "1 MB", "1MB ", "much", "1XB", "1iB"])
def test_a_size_that_is_not_understood_is_no_limit(value: str) -> None:
    assert flags.size(value) == 0
