"""Who holds flock(2) on a file, by the kernel's own list.

The lock is not taken to find out: a VictoriaLogs that starts in that moment would find it taken,
and panic. A shared lock is in its way too, and fcntl(2) does not see locks of flock(2).

/proc/locks names a file by the device of its filesystem and its inode. On btrfs and overlayfs,
stat(2) gives another device, so it is taken from the list of mounts. The list shows only locks of
processes of the reader's PID namespace and those below it: in a container, a lock that is not listed
may still be held outside (all measured on Linux 6.18).
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from vl_borg_hooks.system.hosts import FileLocked

# What readlink(1) prints of /proc/self/ns/pid outside of all containers (PROC_PID_INIT_INO in
# the kernel's linux/proc_ns.h): for a process there, /proc/locks shows all locks.
INITIAL_PID_NAMESPACE = "pid:[4026531836]"
# A holder whose process can't be named.
UNKNOWN = 0


def file_name(device: str, inode: int) -> str:
    """Return how /proc/locks names the file with `inode` on `device`, which is `MAJOR:MINOR`."""
    major, _, minor = device.strip().partition(":")
    return f"{int(major):02x}:{int(minor):02x}:{inode}"


def holder(listed: str, file: str) -> int | None:
    """Return the process that holds a lock on `file` by what /proc/locks has `listed`, or None.

    A line is `1: FLOCK  ADVISORY  WRITE 4711 fe:00:123 0 EOF`; after the number, an arrow marks one
    that only waits for the lock.
    """
    for line in listed.splitlines():
        words = line.split()
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == file:
            return max(int(words[4]), UNKNOWN)
    return None


def holder_by_trying(lock: AbstractContextManager[None]) -> int | None:
    """Take `lock` for a moment: return UNKNOWN if another process holds it, None if none does.

    Only if the list can't tell.
    """
    try:
        with lock:
            return None
    except FileLocked:
        return UNKNOWN


def device_of_mount(mounts: str, mount: str) -> str:
    """Return the device of the mount with the id `mount`, by /proc/self/mountinfo (see proc(5))."""
    for line in mounts.splitlines():
        words = line.split(maxsplit=3)
        if words[0] == mount:
            return words[2]
    return ""
