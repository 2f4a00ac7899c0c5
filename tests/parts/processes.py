"""Child processes that never outlive the tests."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

# The kernel kills the child when the thread that started it ends, however it ends. So these are
# started from the main thread, or from one that outlives them.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


def spawn(argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `argv` with its output appended to `log`; the pid is that of the program itself.

    OSError if util-linux is missing.
    """
    with log.open("ab") as output:
        return subprocess.Popen(
            [*DIES_WITH_US, *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
