"""How far a pass is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from vl_borg_hooks.system.log import RESULT, logger

# How often a plain line comes at verbosity 1, and at verbosity 0.
PLAIN_LINE_SECONDS = 5
RARE_LINE_SECONDS = 60
# A bar is not drawn more often than this.
BAR_SECONDS = 0.1
# What rsync --info=progress2 prints, over and over: bytes, percent, rate, time, and in brackets
# how many of all files are still to be checked ("ir-chk" while it still looks for more).
_PROGRESS_START = re.compile(r"^\s*\d+\s+\d+%\s")
_PROGRESS = re.compile(r"^\s*(\d+)\s+(\d+)%\s+\S+\s+\S+(?:.*(?:to|ir)-chk=(\d+)/(\d+))?")


@dataclass(frozen=True)
class Point:
    """How far something is: the `bytes` that are done, and which `share` of all, from 0 to 1.

    The share is 0 as long as it is not known.
    """

    bytes: int
    share: float = 0


class Parser:
    """Reads rsync's output in pieces, which can end anywhere.

    With `all_new`, all that is in rsync's list has to be copied: then its percentage is that of the
    bytes. Otherwise it does not count what is there already, and the share is that of the files.
    """

    def __init__(self, *, all_new: bool = True) -> None:
        self._all_new = all_new
        self._rest = ""
        self._last = ""
        self._lines: list[str] = []
        self._point = Point(0)

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
            copied, percent, left, total = progress.groups()
            share = self._point.share
            if self._all_new:
                share = int(percent) / 100
            elif total:
                share = 1 - int(left) / max(int(total), 1)
            self._point = Point(int(copied), share)
        return self._point


class Reporter:
    """Logs what happens to one instance, and shows how far it is, on stderr."""

    def __init__(self, instance: str) -> None:
        self._instance = instance

    def say(self, message: str) -> None:
        """Log `message` as a part of the story: shown from verbosity 1 on."""
        logger.info("%s: %s", self._instance, message)

    def result(self, message: str) -> None:
        """Log `message` as what came of the run: shown from verbosity 0 on."""
        logger.log(RESULT, "%s: %s", self._instance, message)

    def warn(self, message: str) -> None:
        """Log `message` as a warning: the run goes on, but an operator should look at it."""
        logger.warning("%s: %s", self._instance, message)

    @contextlib.contextmanager
    def progress(self, name: str, done: str = "copied") -> Iterator[Callable[[Point], None]]:
        """Show how far `name` is; call what this yields with each new point.

        `done` is what has happened to the bytes of a point.
        """
        if sys.stderr.isatty() and logger.isEnabledFor(RESULT):
            with _bar(f"{self._instance}: {name}", done) as report:
                yield report
        else:
            yield self._plain_lines(name, done)

    @contextlib.contextmanager
    def counting(self, name: str, done: str, total: int = 0) -> Iterator[Callable[[int], None]]:
        """Show how far `name` is; call what this yields with the bytes that were done since.

        `total` is about how many there will be, 0 if that is not known.
        """
        count = 0
        with self.progress(name, done) as report:

            def add(size: int) -> None:
                nonlocal count
                count += size
                # What can't be shown is no error of what is done.
                with contextlib.suppress(OSError):
                    report(Point(count, count / total if 0 < count <= total else 0))

            yield add

    def _plain_lines(self, name: str, done: str) -> Callable[[Point], None]:
        # From the first point on: until then, rsync makes its list.
        started = last = last_result = 0.0

        def report(point: Point) -> None:
            nonlocal started, last, last_result
            now = time.monotonic()
            if not started:
                started = last = last_result = now
            if now - last < PLAIN_LINE_SECONDS:
                return
            last = now
            text = f"{name}: {describe(point, now - started, done)}"
            if now - last_result < RARE_LINE_SECONDS:
                self.say(text)
            else:
                last_result = now
                self.result(text)

        return report


@contextlib.contextmanager
def _bar(name: str, done: str) -> Iterator[Callable[[Point], None]]:
    """Show a bar: the share that is done, bytes, rate, time left."""
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
        started = last = 0.0

        def report(point: Point) -> None:
            nonlocal started, last
            now = time.monotonic()
            started = started or now
            if now - last < BAR_SECONDS:
                return
            last = now
            bar.n = point.share
            # tqdm puts a comma before its postfix, which a bar with our own format does not need.
            bar.postfix = describe(point, now - started, done)
            bar.refresh()

        yield report


def describe(point: Point, elapsed: float, done: str) -> str:
    """Return bytes, rate, share and time left after `elapsed` seconds, in words."""
    rate = point.bytes / elapsed if elapsed > 0 else 0
    text = f"{human_bytes(point.bytes)} {done}, {human_bytes(rate)}/s"
    if not point.share:
        return text
    text += f", {point.share:.0%}"
    if point.share < 1:
        left = elapsed * (1 - point.share) / point.share
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
