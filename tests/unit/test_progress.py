"""Progress: a line of rsync's, a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time

import pytest

from tests.support import said
from vl_borg_hooks.system import log
from vl_borg_hooks.transfer import progress
from vl_borg_hooks.transfer.progress import Parser, Point, Reporter, describe


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("         32,768   0%", Point(0)),
        ("  32768   1%    0.00kB/s    0:00:00  \r", Point(32768, 0.01)),
        ("  32768   1%    0.00kB/s    0:00:00 (xfr#1, to-chk=3/9)\r", Point(32768, 0.01)),
        ("  32768  50%    0.00kB/s    0:00:00 (xfr#1, ir-chk=3/9)\n", Point(32768, 0.5)),
        ("  0   0%    0.00kB/s    0:00:00 (xfr#0, to-chk=0/0)\n", Point(0)),
        ("100% of nothing\n", Point(0)),
    ],
)
def test_a_line_is_progress_or_it_is_not(line: str, expected: Point) -> None:
    assert Parser().feed(line) == expected


def test_what_is_there_already_counts_by_its_files() -> None:
    parser = Parser(all_new=False)
    parser.feed("  10   1%    0.00kB/s    0:00:00 (xfr#1, to-chk=3/12)\r")
    # And stays known.
    assert parser.feed("  20   1%    0.00kB/s    0:00:00  \r") == Point(20, 0.75)
    assert parser.feed("  20   1%    0.00kB/s    0:00:00 (xfr#1, to-chk=0/0)\r") == Point(20, 1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in the only element of a list."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_at_most_every_five_seconds(clock: list[float]) -> None:
    with said() as lines, Reporter("default").progress("warm pass") as report:
        for step in range(151):
            clock[0] = 1000.0 + step / 10
            report(Point(step * 1_000_000, step / 300))
    assert lines == [
        "default: warm pass: 50.0 MB copied, 10.0 MB/s, 17%, about 25 s left",
        "default: warm pass: 100.0 MB copied, 10.0 MB/s, 33%, about 20 s left",
        "default: warm pass: 150.0 MB copied, 10.0 MB/s, 50%, about 15 s left",
    ]


def test_a_large_file_among_small_ones_does_not_make_the_time_left_short(
    clock: list[float],
) -> None:
    """1,000 files of 1 kB are done at once, and then one of 10 GB: by files, all would be done."""
    with said() as lines, Reporter("default").counting("the copy", "hashed", 10**10) as add:
        for _ in range(1000):
            add(1000)
        for _ in range(100):
            clock[0] += 0.1
            add(10**7)
    assert lines[-1] == "default: the copy: 1.0 GB hashed, 100.1 MB/s, 10%, about 1 min 30 s left"


@pytest.mark.parametrize("total", [0, 5])
def test_an_empty_file_is_no_progress(clock: list[float], total: int) -> None:
    with said() as lines, Reporter("default").counting("the copy", "linked", total) as add:
        add(0)
        clock[0] += 10
        add(0)
    assert lines == ["default: the copy: 0 B linked, 0 B/s"]


def test_more_than_was_expected_has_no_time_left(clock: list[float]) -> None:
    with said() as lines, Reporter("default").counting("the copy", "hashed", 1000) as add:
        add(100)
        clock[0] += 10
        add(1900)
    assert lines == ["default: the copy: 2.0 kB hashed, 200 B/s"]


def test_without_a_terminal_a_line_a_minute_is_shown_at_verbosity_0(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(log.LEVELS[0], "vl-borg-hooks")
    with Reporter("default").counting("the copy", "hashed", 1000) as add:
        for _ in range(180):
            add(1)
            clock[0] += 1
    assert [record.getMessage() for record in caplog.records] == [
        "default: the copy: 61 B hashed, 1 B/s, 6%, about 15 min 24 s left",
        "default: the copy: 121 B hashed, 1 B/s, 12%, about 14 min 32 s left",
    ]


def test_a_pass_of_a_moment_says_nothing() -> None:
    with said() as lines, Reporter("default").progress("final pass") as report:
        report(Point(1, 1))
    assert lines == []


DRIVE = """\
import logging, sys, time
from vl_borg_hooks.system import log
from vl_borg_hooks.transfer.progress import Point, Reporter
real = time.monotonic
logging.basicConfig(level=log.LEVELS[0])
with Reporter("default").progress("warm pass") as report:
    start = real()
    report(Point(0, 0))
    time.monotonic = lambda: start + 10
    report(Point(250_000_000, 0.25))
    time.monotonic = lambda: start + 20
    report(Point(500_000_000, 0.5))
    time.monotonic = real
print("done", file=sys.stderr)
"""


@pytest.mark.timeout(60)
def test_a_terminal_gets_a_bar_with_percent_bytes_rate_and_time_left() -> None:
    ours, theirs = pty.openpty()
    # 24 rows of 140 columns; a new terminal has none of either.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 140, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "TQDM_MININTERVAL": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVE], stdout=subprocess.PIPE, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        pieces: list[bytes] = []
        # Linux ends a terminal whose other side is closed with EIO.
        while True:
            try:
                pieces.append(os.read(ours, 65536))
            except OSError:
                break
        plain, _ = process.communicate()
    os.close(ours)
    shown = b"".join(pieces).decode()
    assert process.returncode == 0
    assert plain == b""
    assert re.search(r"default: warm pass +25%\|", shown)
    last = shown[: shown.index("done")].split("\r")
    bar = next(part for part in reversed(last) if "%" in part)
    assert re.search(r"^default: warm pass +50%\|.*\| ", bar)
    assert "500.0 MB copied, 25.0 MB/s, 50%, about 20 s left" in bar
    # It goes when the pass is over, and never becomes a second line.
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("point", "elapsed", "expected"),
    [
        (Point(0), 0.0, "0 B copied, 0 B/s"),
        (Point(999), 1.0, "999 B copied, 999 B/s"),
        (Point(1500), 2.0, "1.5 kB copied, 750 B/s"),
        (Point(3_000_000, 0.25), 30.0, "3.0 MB copied, 100.0 kB/s, 25%, about 1 min 30 s left"),
        (Point(2 * 10**9, 1), 2.0, "2.0 GB copied, 1.0 GB/s, 100%"),
        (Point(10**13, 0.001), 10.0, "10.0 TB copied, 1.0 TB/s, 0%, about 2 h 46 min left"),
    ],
)
def test_a_point_in_words(point: Point, elapsed: float, expected: str) -> None:
    assert describe(point, elapsed, "copied") == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (999.7, "1.0 kB"), (1000, "1.0 kB"), (999_960, "1.0 MB")],
)
def test_bytes_in_words_never_show_a_thousand_of_a_unit(count: float, expected: str) -> None:
    assert progress.human_bytes(count) == expected
