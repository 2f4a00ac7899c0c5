"""What a run of the tests has left on the machine: processes, mounts, loop devices."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

# In the environment of all that the tests start.
MARK = "VL_BORG_HOOKS_TESTS"


def left_behind(mark: str, directory: Path) -> list[str]:
    """What is there of processes with this `mark`, and of mounts and loop devices in `directory`."""
    return [*_processes(mark), *_mounts(directory), *_loop_devices(directory)]


def _processes(mark: str) -> Iterator[str]:
    for process in psutil.process_iter(["pid", "cmdline"]):
        try:
            marked = process.environ().get(MARK) == mark
        except psutil.Error:  # it has ended since, or belongs to another user
            continue
        if marked and process.pid != os.getpid():
            yield f"process {process.pid}: {' '.join(process.info['cmdline'] or [])}"


def _mounts(directory: Path) -> Iterator[str]:
    for partition in psutil.disk_partitions(all=True):
        if Path(partition.mountpoint).is_relative_to(directory):
            yield f"mount {partition.mountpoint}"


def _loop_devices(directory: Path) -> Iterator[str]:
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            backing = file.read_text().strip()
        except OSError:  # it has been detached since
            continue
        if Path(backing).is_relative_to(directory):
            yield f"loop device {file.parts[3]} of {backing}"
