"""What a command says, and where: less, and in other streams, if a borgmatic logs it."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from typing import TYPE_CHECKING, TextIO

from vl_borg_hooks.system import log

if TYPE_CHECKING:
    from vl_borg_hooks.runs.borgmatic import Borgmatic

STDOUT, STDERR = 1, 2


def set_up_log(verbosity: int | None, *, is_answer: bool = False) -> int:
    """Set the log up for a command that was called with `verbosity`, None without; return what holds.

    A borgmatic that logs what we say has a verbosity of its own, which counts if we were given none. A
    good run is silent below its verbosity 1; with `is_answer`, what is said is what an operator has
    asked for, which borgmatic shows from 0 on. Warnings are left to it at any verbosity of its own.
    """
    borgmatic = _that_logs_us()
    if borgmatic is None:
        given = 0 if verbosity is None else verbosity
        log.set_up(given)
        return given
    from vl_borg_hooks.runs.verbosity import is_json
    from vl_borg_hooks.runs.verbosity import verbosity as verbosity_of

    information, warnings = sys.stdout, sys.stderr
    its = verbosity_of(borgmatic)
    if is_json(borgmatic):
        information = warnings = _beside_json(borgmatic)
        if verbosity is None and its < 0:
            verbosity = -1
    elif verbosity is None and its >= (0 if is_answer else 1):
        verbosity = min(its, max(log.LEVELS))
    log.set_up_for_borgmatic(verbosity, information=information, warnings=warnings)
    return verbosity or 0


def _beside_json(borgmatic: Borgmatic) -> TextIO:
    """Return what does not end up in the JSON that `borgmatic` prints.

    borgmatic has one pipe for both of our streams until 2.0, and prints what 2.0 gets on its stdout.
    So what is no error goes to where it would print a warning itself.
    """
    if os.fstat(STDOUT).st_ino == os.fstat(STDERR).st_ino:
        with contextlib.suppress(OSError):
            return open(f"/proc/{borgmatic.process.pid}/fd/{STDERR}", "a")
    return sys.stderr


def _that_logs_us() -> Borgmatic | None:
    """Return the borgmatic that has our stderr, None if that leads elsewhere, as the guard's does."""
    if not stat.S_ISFIFO(os.fstat(STDERR).st_mode):
        return None
    from vl_borg_hooks.runs.borgmatic import running

    return running()
