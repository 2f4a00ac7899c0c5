"""The lock of a data directory: only the process that holds it changes what is in it.

VictoriaLogs holds `flock.lock` with flock(2) LOCK_EX from start to exit (lib/fs in its source), so
if we hold it, no server runs there, in a container or not, and none can start.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from vl_borg_hooks.system.hosts import FileLocked, Host
from vl_borg_hooks.victorialogs.layout import LOCK_FILE

# Some process holds the lock of the data directory.
LockHeld = FileLocked


def hold(host: Host, data_path: str, *, wait: float = 0) -> AbstractContextManager[None]:
    """Hold the lock of `data_path` on `host`; try for `wait` seconds.

    Raises LockHeld if another process still has it by then, OperatorError if it can't be taken at
    all.
    """
    return host.flock(f"{data_path}/{LOCK_FILE}", wait)


def holder(host: Host, data_path: str) -> int | None:
    """Return the process that holds the lock of `data_path`, a VictoriaLogs server most likely.

    None if no process does, 0 if its number is not known. Raises OperatorError if it can't be found
    out.
    """
    return host.flock_holder(f"{data_path}/{LOCK_FILE}")


def is_held(host: Host, data_path: str) -> bool:
    """Say whether a process holds the lock of `data_path`; raises OperatorError."""
    return holder(host, data_path) is not None


def ensure_file(host: Host, data_path: str) -> None:
    """Make the lock file if no server has run yet, so that the server can open it too."""
    if LOCK_FILE in host.entries(data_path):
        return
    path = f"{data_path}/{LOCK_FILE}"
    host.make_file(path)
    owner = host.owner(data_path)
    if owner is not None:
        host.set_owner(path, owner)
