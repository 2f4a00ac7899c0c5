"""How far a pass is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vl_borg_hooks.system.log import logger

PLAIN_LINE_SECONDS = 5
# What rsync --info=progress2 prints, over and over: bytes, percent, rate, time, and in brackets
# how many of all files are still to be checked ("ir-chk" while it still looks for more).
_PROGRESS_START = re.compile(r"^\s*\d+\s+\d+%\s")
_PROGRESS = re.compile(r"^\s*(\d+)\s+\d+%\s+\S+\s+\S+(?:.*(?:to|ir)-chk=(\d+)/(\d+))?")


@dataclass(frozen=True)
class Point:
    """How far a pass is. `checked` of `total` files have been looked at; 0 of 0 is unknown."""

    bytes: int
    checked: int
    total: int


class Parser:
    """Reads rsync's output in pieces, which can end anywhere."""

    def __init__(self) -> None:
        self._rest = ""
        self._last = ""
        self._lines: list[str] = []
        self._point = Point(0, 0, 0)

    @property
    def text(self) -> str:
        """All printed text that is not progress."""
        return "\n".join([*self._lines, self._rest])

    def feed(self, text: str) -> Point:
        """Take a piece of output and return how far the pass is by now."""
        *lines, self._rest = re.split(r"[\r\n]", self._rest + text)
        for line in lines:
            # rsync prints one for every file: only the last of a piece is worth a closer look.
            if _PROGRESS_START.match(line):
                self._last = line
            else:
                self._lines.append(line)
        progress = _PROGRESS.match(self._last)
        if progress:
            copied, left, total = progress.groups()
            checked = int(total) - int(left) if total else self._point.checked
            self._point = Point(int(copied), checked, int(total or self._point.total))
        return self._point


class Reporter:
    """Logs what happens to one instance, and shows the progress of its passes, on stderr."""

    def __init__(self, instance: str) -> None:
        self._instance = instance

    def say(self, message: str) -> None:
        """Log `message` as information."""
        logger.info("%s: %s", self._instance, message)

    def warn(self, message: str) -> None:
        """Log `message` as a warning: the run goes on, but an operator should look at it."""
        logger.warning("%s: %s", self._instance, message)

    @contextlib.contextmanager
    def transfer(self, name: str) -> Iterator[Callable[[Point], None]]:
        """Show the progress of the pass `name`; call what this yields with each new point."""
        if sys.stderr.isatty():
            with _bar(f"{self._instance}: {name}") as report:
                yield report
        else:
            yield self._plain_lines(name)

    def _plain_lines(self, name: str) -> Callable[[Point], None]:
        started = last = time.monotonic()

        def report(point: Point) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < PLAIN_LINE_SECONDS:
                return
            last = now
            self.say(f"{name}: {describe(point, now - started)}")

        return report


@contextlib.contextmanager
def _bar(name: str) -> Iterator[Callable[[Point], None]]:
    """Show a bar: the share of files that were checked, bytes copied, rate, time left."""
    from tqdm import tqdm

    # A thread that redraws bars which are slow to change. rsync is forked while the bar is there.
    tqdm.monitor_interval = 0
    bar: Any
    with tqdm(
        desc=name,
        bar_format="{desc} {percentage:3.0f}%|{bar}| {postfix}",
        total=1,
        leave=False,
        file=sys.stderr,
        dynamic_ncols=True,
    ) as bar:
        started = time.monotonic()

        def report(point: Point) -> None:
            bar.total = max(point.total, 1)
            bar.n = point.checked
            # tqdm puts a comma before its postfix, which a bar with our own format does not need.
            bar.postfix = describe(point, time.monotonic() - started)
            bar.update(0)

        yield report


def describe(point: Point, elapsed: float) -> str:
    """Return bytes, rate, files and time left after `elapsed` seconds, in words."""
    rate = point.bytes / elapsed if elapsed > 0 else 0
    text = f"{human_bytes(point.bytes)} copied, {human_bytes(rate)}/s"
    if not point.total:
        return text
    text += f", {point.checked} of {point.total} files"
    if 0 < point.checked < point.total:
        left = elapsed * (point.total - point.checked) / point.checked
        text += f", about {human_seconds(left)} left"
    return text


def human_bytes(count: float) -> str:
    """Return `count` bytes in decimal units, as disk sizes and network rates are given."""
    for unit in ("B", "kB", "MB", "GB"):
        digits = 0 if unit == "B" else 1
        if round(count, digits) < 1000:
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_seconds(seconds: float) -> str:
    """Return a duration in the two largest units that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
