"""Run a program and say what it cost: time, bytes read and written, memory.

Bytes are those of the whole tree of processes that it starts and waits for: if a process is waited
for, the kernel adds its counts to those of the waiting process, up to our /proc/self/io. They
are bytes that were read from a disk, and page-cache bytes that were made dirty; a filesystem's own
metadata is in neither. What a service manager was asked to do is not in the tree. As a program:
`python benchmarks/measured.py RESULT COMMAND ...`, with the result as JSON.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

# prctl(2), from linux/prctl.h.
PR_SET_CHILD_SUBREAPER = 36
# How long orphans may take to end: those that go on are servers, and no part of the run.
ORPHANS_SECONDS = 0.5
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Cost:
    """What one run cost, and what it said."""

    seconds: float
    # Of all of its processes, which wall time on a busy machine or a noisy disk does not show.
    processor_seconds: float
    bytes_read: int
    bytes_written: int
    # Of the program's own process only, at its highest.
    peak_bytes: int
    output: str


def measure(argv: Sequence[str], env: Mapping[str, str] | None = None) -> Cost:
    """Run `argv` to its end, in a measuring process; RuntimeError if it fails."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "result.json")
        done = subprocess.run(
            [sys.executable, __file__, str(result), *argv],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{argv}: exit status {done.returncode}\n{done.stdout}")
        return Cost(**json.loads(result.read_text()), output=done.stdout)


class _Peak(threading.Thread):
    """Watches the peak of a process's resident memory: the last look before its end counts.

    What wait4 says at the end would be the highest of its children, rsync, too.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._status = Path(f"/proc/{pid}/status")
        self.bytes = 0

    def run(self) -> None:
        while True:
            try:
                found = re.search(r"^VmHWM:\s+(\d+) kB", self._status.read_text(), re.MULTILINE)
            except OSError:
                return
            if found is None:  # a zombie has no memory
                return
            # Until its exec, the child is still a copy of us: a lower peak later is the program's.
            self.bytes = int(found[1]) * 1024
            # A sample: nothing tells when the peak has grown.
            time.sleep(POLL_SECONDS)


def main(result: str, *argv: str) -> int:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before, processor = _io(), _processor_seconds()
    started = time.monotonic()
    child = subprocess.Popen(argv)
    peak = _Peak(child.pid)
    peak.start()
    status = child.wait()
    seconds = time.monotonic() - started
    # Polled: there is no wait for children that has a time limit.
    deadline = time.monotonic() + ORPHANS_SECONDS
    with contextlib.suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(POLL_SECONDS)
    after = _io()
    cost = Cost(
        seconds=seconds,
        processor_seconds=_processor_seconds() - processor,
        bytes_read=after["read_bytes"] - before["read_bytes"],
        bytes_written=after["write_bytes"] - before["write_bytes"],
        peak_bytes=peak.bytes,
        output="",
    )
    content = asdict(cost)
    del content["output"]
    Path(result).write_text(json.dumps(content))
    return status


def _io() -> dict[str, int]:
    lines = Path("/proc/self/io").read_text().splitlines()
    return {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}


def _processor_seconds() -> float:
    """Return the processor time of all children that were waited for, and of their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
