"""The log: on stderr, or in the two streams that a borgmatic above us logs."""

from __future__ import annotations

import logging
import os
import stat
import sys
from functools import partial
from typing import TextIO

logger = logging.getLogger("vl-borg-hooks")
# The level of what came of a run, between a warning and the story of how.
RESULT = (logging.INFO + logging.WARNING) // 2
# By verbosity: nothing, errors, warnings and results, the story, every command.
LEVELS = {
    -2: logging.CRITICAL + 1,
    -1: logging.ERROR,
    0: RESULT,
    1: logging.INFO,
    2: logging.DEBUG,
}


class _Formatter(logging.Formatter):
    """Names the level of a warning only: the text of an error says what it is."""

    def format(self, record: logging.LogRecord) -> str:
        level = "warning: " if record.levelno == logging.WARNING else ""
        return f"{record.name}: {level}{super().format(record)}"


class _BorgmaticFormatter(logging.Formatter):
    """Begins a warning with the word that makes borgmatic log a line of stderr as a warning."""

    def format(self, record: logging.LogRecord) -> str:
        level = "warning: " if record.levelno == logging.WARNING else ""
        return f"{level}{record.name}: {super().format(record)}"


def set_up(verbosity: int) -> None:
    """Log what `verbosity` shows: see LEVELS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    _log_to([handler], LEVELS[verbosity])


def set_up_for_borgmatic(verbosity: int | None, *, information: TextIO, warnings: TextIO) -> None:
    """Log errors to stderr, and what is less to where a borgmatic above us takes it for what it is.

    `verbosity` as for `set_up`; None is only warnings and errors.
    """
    handlers: list[logging.Handler] = []
    for stream, levels in (
        (information, range(logging.WARNING)),
        (warnings, range(logging.WARNING, logging.ERROR)),
        (sys.stderr, range(logging.ERROR, sys.maxsize)),
    ):
        handler = logging.StreamHandler(stream)
        handler.setFormatter(_BorgmaticFormatter())
        handler.addFilter(partial(_is_of, levels))
        handlers.append(handler)
    _log_to(handlers, logging.WARNING if verbosity is None else LEVELS[verbosity])


def add_time_in_a_file() -> None:
    """Begin each line with the time if stderr is a file, which doesn't know when a line came."""
    if stat.S_ISREG(os.fstat(sys.stderr.fileno()).st_mode):
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_Formatter("%(asctime)s %(message)s"))


def _is_of(levels: range, record: logging.LogRecord) -> bool:
    return record.levelno in levels


def _log_to(handlers: list[logging.Handler], level: int) -> None:
    logging.basicConfig(handlers=handlers, level=level)
    # sh logs every command that it starts as information; we need that only for debugging.
    logging.getLogger("sh").setLevel(logging.DEBUG if level <= logging.DEBUG else logging.WARNING)
