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
from vl_borg_hooks.transfer import progress
from vl_borg_hooks.transfer.progress import Parser, Point, Reporter, describe


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("         32,768   0%", Point(0, 0, 0)),
        ("  32768   1%    0.00kB/s    0:00:00  \r", Point(32768, 0, 0)),
        ("  32768   1%    0.00kB/s    0:00:00 (xfr#1, to-chk=3/9)\r", Point(32768, 6, 9)),
        ("  32768   1%    0.00kB/s    0:00:00 (xfr#1, ir-chk=3/9)\n", Point(32768, 6, 9)),
        ("  0   0%    0.00kB/s    0:00:00 (xfr#0, to-chk=0/0)\n", Point(0, 0, 0)),
        ("100% of nothing\n", Point(0, 0, 0)),
    ],
)
def test_a_line_is_progress_or_it_is_not(line: str, expected: Point) -> None:
    assert Parser().feed(line) == expected


def test_what_is_known_of_the_files_stays_known() -> None:
    parser = Parser()
    parser.feed("  10   1%    0.00kB/s    0:00:00 (xfr#1, to-chk=3/9)\r")
    assert parser.feed("  20   1%    0.00kB/s    0:00:00  \r") == Point(20, 6, 9)


def test_plain_lines_come_at_most_every_five_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    with said() as lines, Reporter("default").transfer("warm pass") as report:
        for step in range(151):
            now = 1000.0 + step / 10
            report(Point(step * 1_000_000, step, 300))
    assert lines == [
        "default: warm pass: 50.0 MB copied, 10.0 MB/s, 50 of 300 files, about 25 s left",
        "default: warm pass: 100.0 MB copied, 10.0 MB/s, 100 of 300 files, about 20 s left",
        "default: warm pass: 150.0 MB copied, 10.0 MB/s, 150 of 300 files, about 15 s left",
    ]


def test_a_pass_of_a_moment_says_nothing() -> None:
    with said() as lines, Reporter("default").transfer("final pass") as report:
        report(Point(1, 1, 1))
    assert lines == []


DRIVE = """\
import sys, time
from vl_borg_hooks.transfer.progress import Point, Reporter
real = time.monotonic
with Reporter("default").transfer("warm pass") as report:
    start = real()
    time.monotonic = lambda: start + 10
    report(Point(250_000_000, 25, 100))
    time.monotonic = lambda: start + 20
    report(Point(500_000_000, 50, 100))
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
    assert "500.0 MB copied, 25.0 MB/s, 50 of 100 files, about 20 s left" in bar
    # It goes when the pass is over, and never becomes a second line.
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("point", "elapsed", "expected"),
    [
        (Point(0, 0, 0), 0.0, "0 B copied, 0 B/s"),
        (Point(999, 0, 0), 1.0, "999 B copied, 999 B/s"),
        (Point(1500, 0, 9), 2.0, "1.5 kB copied, 750 B/s, 0 of 9 files"),
        (
            Point(3_000_000, 1, 4),
            30.0,
            "3.0 MB copied, 100.0 kB/s, 1 of 4 files, about 1 min 30 s left",
        ),
        (Point(2 * 10**9, 4, 4), 2.0, "2.0 GB copied, 1.0 GB/s, 4 of 4 files"),
        (
            Point(10**13, 1, 1001),
            10.0,
            "10.0 TB copied, 1.0 TB/s, 1 of 1001 files, about 2 h 46 min left",
        ),
    ],
)
def test_a_point_in_words(point: Point, elapsed: float, expected: str) -> None:
    assert describe(point, elapsed) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [(0, "0 B"), (999, "999 B"), (999.7, "1.0 kB"), (1000, "1.0 kB"), (999_960, "1.0 MB")],
)
def test_bytes_in_words_never_show_a_thousand_of_a_unit(count: float, expected: str) -> None:
    assert progress.human_bytes(count) == expected
