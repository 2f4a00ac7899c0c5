"""Processes that run beside us, or after us; what we wait for is run by commands."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

# prctl(2) PR_SET_PDEATHSIG, from linux/prctl.h.
PR_SET_PDEATHSIG = 1

# A process that runs beside us.
Beside: TypeAlias = "subprocess.Popen[str]"


def beside(
    argv: Sequence[str],
    *,
    talks: bool = False,
    dies_with_us: bool = False,
    outlives_us: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Beside:
    """Start `argv` to run beside us; with `talks`, its three streams are pipes, else nothing.

    `dies_with_us` makes the kernel end it if we are killed; only for while we have no other thread.
    `outlives_us` gives it its own session, so that what ends us does not end it.
    `environment` is added to ours. Raises OSError if it can't be started.
    """
    # Not by sh. It gives each command threads that watch it until it ends. They wake up every second,
    # ten times a second if the command can be written to, and an answer comes as a call in such a
    # thread. These commands run as long as we do, or longer, also while VictoriaLogs is stopped. They
    # must cost nothing in that time, and we have to wait for the answer of one.
    streams = subprocess.PIPE if talks else subprocess.DEVNULL
    return subprocess.Popen(
        argv,
        stdin=streams,
        stdout=streams,
        stderr=streams,
        text=True,
        errors="backslashreplace",
        env={**os.environ, **(environment or {})},
        cwd="/" if outlives_us else None,
        start_new_session=outlives_us,
        preexec_fn=die_with_parent() if dies_with_us else None,  # noqa: PLW1509 - see above
    )


def output(process: Beside, seconds: float) -> str:
    """Return what `process`, which `talks`, prints until it ends; nothing if it does not in time."""
    with process:
        try:
            return process.communicate(timeout=seconds)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return ""


def make_idle(pid: int) -> None:
    """Give process or thread `pid` the lowest priority; if the kernel refuses, it keeps its own."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        process.ionice(psutil.IOPRIO_CLASS_IDLE)
        process.nice(19)


def die_with_parent() -> Callable[[], None]:
    """Return what a child calls between fork and exec, so that the kernel ends it with its parent."""
    import ctypes

    # Loaded before the fork: between fork and exec only async-signal-safe work is safe.
    return partial(ctypes.CDLL(None).prctl, PR_SET_PDEATHSIG, signal.SIGTERM)
