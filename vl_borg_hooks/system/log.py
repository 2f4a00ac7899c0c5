"""The log: on stderr, which borgmatic puts in its own log."""

from __future__ import annotations

import logging
import os
import stat
import sys

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


def set_up(verbosity: int) -> None:
    """Log what `verbosity` shows: see LEVELS."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    logging.basicConfig(handlers=[handler], level=LEVELS[verbosity])
    # sh logs every command that it starts as information; we need that only for debugging.
    logging.getLogger("sh").setLevel(logging.DEBUG if verbosity > 1 else logging.WARNING)


def add_time_in_a_file() -> None:
    """Begin each line with the time if stderr is a file, which doesn't know when a line came."""
    if stat.S_ISREG(os.fstat(sys.stderr.fileno()).st_mode):
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_Formatter("%(asctime)s %(message)s"))
