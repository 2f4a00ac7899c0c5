"""The values of VictoriaLogs' flags for times and sizes; what is not understood changes nothing."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from vl_borg_hooks.victorialogs import flags


# Each as lib/flagutil of VictoriaMetrics v1.148.8 has read it, in a Go program (milliseconds).
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("7d", 604_800_000),
        ("36h", 129_600_000),
        ("4w", 2_419_200_000),
        ("1y", 31_536_000_000),
        ("100y", 3_153_600_000_000),
        ("1.5d", 129_600_000),
        ("86400s", 86_400_000),
        ("1w2d", 777_600_000),
        ("1d1h30m5s", 91_805_000),
        ("60000ms5d", 432_060_000),
        ("2d-5h10s", 154_790_000),
        # Minutes, though with a capital.
        ("1M2d", 172_860_000),
        ("1Y", 31_536_000_000),
        ("2.3W", 1_391_040_000),
        ("1.d", 86_400_000),
        # Months of 31 days.
        ("1M", 2_678_400_000),
        ("0.5M", 1_339_200_000),
        ("1", 2_678_400_000),
        ("12", 32_140_800_000),
        (".5", 1_339_200_000),
        ("1e1", 26_784_000_000),
        ("1E1M", 26_784_000_000),
        ("0", 0),
    ],
)
def test_a_duration_is_read_as_victorialogs_reads_it(value: str, expected: int) -> None:
    assert flags.duration(value) == timedelta(milliseconds=expected)


NOT_UNDERSTOOD = ["", "d", "-1d", "-1", "7 d", "7d ", "seven", "7x", "1d2", "1w1M"]


@pytest.mark.parametrize(
    "value", [*NOT_UNDERSTOOD, "1m", "1h30m", "2M3", "\uff11d", "9" * 400 + "y"]
)
def test_a_duration_that_is_not_understood_is_none_and_nothing_is_known_of_days(
    value: str,
) -> None:
    assert flags.duration(value) is None
    assert flags.kept_days(value, "2d") is None


@pytest.fixture
def half_past_midnight(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Fixed:
            assert tz is timezone.utc
            return cls(2026, 11, 22, 0, 30, tzinfo=timezone.utc)

    monkeypatch.setattr(flags, "datetime", Fixed)


@pytest.mark.usefixtures("half_past_midnight")
@pytest.mark.parametrize(
    ("value", "oldest"),
    [
        ("7d", "20261115"),
        ("1y", "20251122"),
        # A day that has begun within the retention is kept whole.
        ("36h", "20261120"),
        # No server keeps less than a day.
        ("1h", "20261121"),
        ("0", "20261121"),
        # There is no day before it, also with years of fewer than four digits.
        ("2000y", "00280321"),
        ("9999y", "00000000"),
    ],
)
def test_the_oldest_day_is_told_in_utc_as_partitions_are_named(value: str, oldest: str) -> None:
    kept = flags.kept_days(value, "2d")
    assert kept
    assert kept.oldest == oldest
    assert oldest in kept
    assert str(int(oldest) - 1).zfill(8) not in kept


@pytest.mark.usefixtures("half_past_midnight")
@pytest.mark.parametrize(
    ("future", "newest"),
    [("2d", "20261124"), ("0", "20261123"), ("", "20261123"), ("9999y", "99999999")],
)
def test_days_of_the_future_are_not_kept(future: str, newest: str) -> None:
    kept = flags.kept_days("7d", future)
    assert kept
    assert kept.newest == newest
    assert newest in kept
    assert str(int(newest) + 1) not in kept


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
        ("1e9", 10**9),
        ("1E3kb", 10**6),
        (".5GB", 500_000_000),
        ("1gib", 1 << 30),
        ("1Kib", 1024),
        ("+5", 5),
    ],
)
def test_a_size_is_understood(value: str, expected: int) -> None:
    assert flags.size(value) == expected


@pytest.mark.parametrize(
    "value", ["", "-1", "MB", "1 MB", "1MB ", "much", "1XB", "1iB", "1K", "1e999"]
)
def test_a_size_that_is_not_understood_is_no_limit(value: str) -> None:
    assert flags.size(value) == 0
