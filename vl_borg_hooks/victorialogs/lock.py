"""The lock of a data directory: who holds it is the only one to change what is in it.

VictoriaLogs holds `flock.lock` with flock(2) LOCK_EX from start to exit (lib/fs in its source), so
holding it proves that no server runs there, in a container or not, and keeps any from starting.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import commands
from vl_borg_hooks.system.hosts import Host, SshHost
from vl_borg_hooks.victorialogs.layout import LOCK_FILE

POLL_SECONDS = 0.0005
# flock(1) --conflict-exit-code: a value that neither it nor ssh uses for anything else.
HELD_BY_ANOTHER = 99


class LockHeld(OperatorError):
    """Some process holds the lock of the data directory."""


@contextlib.contextmanager
def hold(host: Host, data_path: str, *, wait: float = 0) -> Iterator[None]:
    """Hold the lock of `data_path` on `host`; try for `wait` seconds.

    Raises LockHeld where another process still has it by then, OperatorError where it can't be
    taken at all.
    """
    if isinstance(host, SshHost):
        with _hold_over_ssh(host, data_path, wait):
            yield
        return
    descriptor = _open(data_path)
    try:
        deadline = time.monotonic() + wait
        while not _taken(descriptor):
            if time.monotonic() >= deadline:
                raise LockHeld(f"a process holds {data_path}/{LOCK_FILE}")
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)


def is_held(host: Host, data_path: str) -> bool:
    """Tell whether a process holds the lock of `data_path`, a VictoriaLogs server most likely."""
    if LOCK_FILE not in host.entries(data_path):
        return False
    try:
        with hold(host, data_path):
            return False
    except LockHeld:
        return True


def ensure_file(host: Host, data_path: str) -> None:
    """Make the lock file where no server has run yet, such that the server can open it too."""
    if LOCK_FILE in host.entries(data_path):
        return
    path = f"{data_path}/{LOCK_FILE}"
    host.make_file(path)
    owner = host.owner(data_path)
    if owner is not None:
        host.set_owner(path, owner)


def _open(data_path: str) -> int:
    """Open the lock file and return its descriptor; raises OperatorError."""
    path = f"{data_path}/{LOCK_FILE}"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise OperatorError(f"could not open {path}: {error.strerror}") from None


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _hold_over_ssh(host: SshHost, data_path: str, wait: float) -> Iterator[None]:
    """Hold the lock on another machine with flock(1) for as long as its stdin stays open.

    `cat` starts only once flock has the lock, so what we write comes back as soon as it is held;
    when we end, however we end, ssh closes its stdin, `cat` ends and the lock is free again.
    """
    path = f"{data_path}/{LOCK_FILE}"
    argv = ["flock", "--exclusive", "--conflict-exit-code", str(HELD_BY_ANOTHER)]
    argv += ["--timeout", f"{wait:g}"] if wait else ["--nonblock"]
    with commands.beside(host.argv([*argv, path, "cat"]), talks=True) as holder:
        if holder.stdin is None or holder.stdout is None or holder.stderr is None:
            raise AssertionError("one that talks has all three streams")
        try:
            with contextlib.suppress(BrokenPipeError):
                holder.stdin.write("held\n")
                holder.stdin.flush()
            if not holder.stdout.readline():
                reason = holder.stderr.read().strip()
                if holder.wait() == HELD_BY_ANOTHER:
                    raise LockHeld(f"a process on {host.name} holds {path}")
                raise OperatorError(f"could not lock {path} on {host.name}: {reason}")
            yield
            if holder.poll() is not None:
                raise OperatorError(f"the connection to {host.name} that held {path} was lost")
        finally:
            with contextlib.suppress(BrokenPipeError):
                holder.stdin.close()
