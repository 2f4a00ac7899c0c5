"""A machine with a data path, this one or another.

What differs between the two is behind the methods of `Host`, and nowhere else: no code outside this
package asks which of the two a host is.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.addresses import Address
from vl_borg_hooks.system.commands import Completed
from vl_borg_hooks.system.processes import Beside


class FileLocked(OperatorError):
    """Another process holds the lock of a file."""


@dataclass(frozen=True)
class Owner:
    """The numeric user and group that files belong to."""

    user: int
    group: int

    def __str__(self) -> str:
        """`USER:GROUP` in numbers, as chown and rsync take it."""
        return f"{self.user}:{self.group}"


class Tree(Protocol):
    """A directory as it is now, or was a moment ago. Paths are relative to it, "" is the directory.

    Every method raises OSError, which is FileNotFoundError if there is no such file or directory.
    """

    @property
    def taken(self) -> int:
        """When the tree was taken: nanoseconds since 1970 by the clock that stamps its files.

        0 if that clock is not ours. What is asked for later may be newer, but is never older.
        """

    def names(self, path: str) -> list[str]:
        """Return the names in directory `path`."""

    def modified(self, path: str) -> int:
        """Return when `path` was last modified: nanoseconds since 1970."""

    def is_directory(self, path: str) -> bool:
        """Say whether `path` is a directory, or a link to one."""

    def content(self, path: str) -> bytes:
        """Return the content of file `path`."""


class Host(Protocol):
    """A machine with a data path: runs commands there and looks after files there.

    Every method may raise OperatorError.
    """

    @property
    def name(self) -> str:
        """The name of this machine in messages."""

    def connected(self) -> AbstractContextManager[None]:
        """Prepare for many commands, for as long as this context lasts."""

    def check(self) -> None:
        """Raise OperatorError if the host lacks what the other methods need."""

    def run(
        self, argv: Sequence[str], *, ok: Collection[int] = (0,), timeout: float | None = None
    ) -> Completed:
        """Run `argv` there; raises CommandFailed."""

    def begin(self, argv: Sequence[str]) -> Beside:
        """Begin to run `argv` there, with its three streams as pipes; raises CommandFailed."""

    def watch(self, process: int) -> Callable[[], int | None] | None:
        """Return what tells how `process` there has ended; None if nothing can.

        That returns its exit status, the negative number of the signal that killed it, or None if it
        is not known.
        """

    def run_starter(self, argv: Sequence[str], *, timeout: float | None = None) -> Completed:
        """Run `argv` there, which starts something that has to outlive us; raises CommandFailed."""

    def check_starter(self) -> None:
        """Raise OperatorError if what `run_starter` starts would end with us."""

    def has_command(self, name: str) -> bool:
        """Say whether a program called `name`, or at that path, can be run there."""

    def transport(self) -> list[str]:
        """Return the command that reaches the host, without its address; empty for this machine."""

    def connection(self, address: Address, seconds: float) -> socket.socket:
        """Return a connection to `address` as seen from there, which waits up to `seconds` each time.

        For another machine, only in `connected`. Raises OSError if nobody listens there.
        """

    def rsync_location(self, path: str) -> str:
        """Return `path` as rsync's argument names it, with the slash that means its content."""

    def local_path(self, path: str) -> Path | None:
        """Return `path` if it is on this machine, else None."""

    def is_directory(self, path: str) -> bool:
        """Say whether `path` is a directory, not a link to one."""

    def entries(self, path: str) -> list[str]:
        """Return the names in directory `path`; empty if it does not exist."""

    def tree(
        self, root: str, *, depth: int, contents: Collection[str], without: Collection[str]
    ) -> Tree:
        """Return the directory `root`, which can then be asked for what is in it.

        It has what is at most `depth` levels below `root`, and the content of files with a name in
        `contents`. It has nothing of what has a name in `without`.
        """

    def flock(self, path: str, wait: float = 0) -> AbstractContextManager[None]:
        """Hold flock(2) LOCK_EX on file `path`, which must exist; try for `wait` seconds.

        Raises FileLocked if another process still holds it by then, OperatorError if it can't be
        locked at all, or if the lock was lost before the end of the block.
        """

    def flock_holder(self, path: str) -> int | None:
        """Return the process that holds flock(2) on file `path`; None if no process does.

        0 for a process that can't be named. The lock is not taken, if all locks can be seen:
        a process that tries to take it at the same time is not disturbed.
        """

    def identity(self, path: str) -> tuple[int, int] | None:
        """Return device and inode of `path`, or of what it links to; None if it can't be seen."""

    def link_files(self, root: str, paths: Sequence[str], target: str) -> None:
        """Make hard links to `paths`, relative to `root`, at the same places in `target`.

        For a directory in `paths`, to all that is in it. Both are on one filesystem.
        """

    def make_directory(self, path: str, mode: int) -> None:
        """Create directory `path`, and with mode 0755 those of its parents that are missing.

        What the umask is makes no difference.
        """

    def make_file(self, path: str) -> None:
        """Create an empty file `path`, readable by all, if `path` does not exist."""

    def rename(self, source: str, destination: str) -> None:
        """Rename within one filesystem; `destination` must not exist."""

    def remove_tree(self, path: str) -> None:
        """Remove `path` and all below it, without following links; no error if it is missing."""

    def sync(self, path: str) -> None:
        """Wait until all that was written to the filesystem of `path` is on its disk."""

    def owner(self, path: str) -> Owner | None:
        """Return who owns `path`, or None if it is missing."""

    def set_owner(self, path: str, owner: Owner) -> None:
        """Make `owner` the owner of `path` itself."""

    def user_ids(self, user: str, group: str) -> Owner | None:
        """Return the ids of `user` and `group` (by name or number), None if unknown there."""

    def effective_user(self) -> int:
        """Return the user id that commands run as there."""

    def free_bytes(self, path: str) -> int:
        """Return how many bytes may be written to the filesystem of `path`."""
