"""This machine, by system calls."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.system import commands, files, flocks, processes
from vl_borg_hooks.system.addresses import Address
from vl_borg_hooks.system.hosts import FileLocked, Owner
from vl_borg_hooks.system.processes import Beside

# How often a lock is tried: nothing reports that it is free, and VictoriaLogs waits meanwhile.
LOCK_POLL_SECONDS = 0.0005
SYSTEMD_SECONDS = 30


@final
class LocalTree:
    """A directory of this machine; only what is asked for is read."""

    def __init__(self, root: str) -> None:
        self.taken = time.time_ns()
        self._root = root

    def names(self, path: str) -> list[str]:
        """Return the names in directory `path`."""
        return os.listdir(f"{self._root}/{path}")

    def modified(self, path: str) -> int:
        """Return when `path` was last modified: nanoseconds since 1970."""
        return os.stat(f"{self._root}/{path}").st_mtime_ns

    def is_directory(self, path: str) -> bool:
        """Say whether `path` is a directory, or a link to one."""
        return os.path.isdir(f"{self._root}/{path}")

    def content(self, path: str) -> bytes:
        """Return the content of file `path`."""
        with open(f"{self._root}/{path}", "rb") as file:
            return file.read()


@dataclass(unsafe_hash=True)
class LocalHost:
    """This machine."""

    name = "this machine"

    def connected(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: this machine needs no connection."""
        return contextlib.nullcontext()

    def check(self) -> None:
        """Do nothing: Python and coreutils are all that is needed."""

    def run(
        self, argv: Sequence[str], *, ok: Collection[int] = (0,), timeout: float | None = None
    ) -> commands.Completed:
        """Run `argv`; raises CommandFailed."""
        return commands.run(argv, ok=ok, timeout=timeout)

    def begin(self, argv: Sequence[str]) -> Beside:
        """Begin to run `argv`, with its three streams as pipes; raises CommandFailed."""
        return processes.beside(argv, talks=True)

    def watch(self, process: int) -> Callable[[], int | None] | None:
        """Return what tells how `process` has ended; None if the kernel is too old."""
        return processes.watch(process)

    def run_starter(
        self, argv: Sequence[str], *, timeout: float | None = None
    ) -> commands.Completed:
        """Run `argv` outside of our systemd service and our session; raises CommandFailed.

        A VictoriaLogs in our process group would end with borgmatic, and be taken for its borg.
        """
        argv = [*processes.outside_our_service(), *argv]
        return commands.run(argv, timeout=timeout, outlives_us=True)

    def check_starter(self) -> None:
        """Raise CommandFailed if systemd does not run anything for us outside of our service."""
        outside = processes.outside_our_service()
        if not outside:
            return
        try:
            commands.run([*outside, "true"], timeout=SYSTEMD_SECONDS)
        except CommandFailed as error:
            service = processes.our_service()
            raise CommandFailed(
                f"what is started would end with {service}: {error.what}",
                hint=f"let {service} use systemd-run, or have a unit of its own run VictoriaLogs",
            ) from None

    def has_command(self, name: str) -> bool:
        """Say whether a program called `name`, or at that path, can be run."""
        return shutil.which(name) is not None

    def transport(self) -> list[str]:
        """Return nothing: this machine needs no connection."""
        return []

    def connection(self, address: Address, seconds: float) -> socket.socket:
        """Return a connection to `address`, which waits up to `seconds` each time; raises OSError."""
        return address.connect(seconds)

    def rsync_location(self, path: str) -> str:
        """Return `path` with the slash that means its content."""
        return path.rstrip("/") + "/"

    def local_path(self, path: str) -> Path | None:
        """Return `path`."""
        return Path(path)

    def is_directory(self, path: str) -> bool:
        """Say whether `path` is a directory, not a link to one."""
        return os.path.isdir(path) and not os.path.islink(path)

    def entries(self, path: str) -> list[str]:
        """Return the names in directory `path`; empty if it does not exist."""
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _file_error("read", path, error) from None

    def tree(
        self, root: str, *, depth: int, contents: Collection[str], without: Collection[str]
    ) -> LocalTree:
        """Return the directory `root`; only what is asked for is read."""
        return LocalTree(root)

    @contextlib.contextmanager
    def flock(self, path: str, wait: float = 0) -> Iterator[None]:
        """Hold flock(2) LOCK_EX on file `path`, which is not a link; try for `wait` seconds."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise _file_error("open", path, error) from None
        try:
            deadline = time.monotonic() + wait
            while not _locked(descriptor):
                if time.monotonic() >= deadline:
                    raise FileLocked(f"a process holds {path}")
                time.sleep(LOCK_POLL_SECONDS)
            yield
        finally:
            os.close(descriptor)

    def flock_holder(self, path: str) -> int | None:
        """Return the process that holds flock(2) on `path`; it is asked by /proc/locks.

        Only in a container, or without /proc/locks, is a lock that is not listed tried to be taken.
        """
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _file_error("look at", path, error) from None
        if not stat.S_ISREG(status.st_mode):
            raise OperatorError(f"{path} is not a regular file")
        with contextlib.suppress(OSError, ValueError):
            name = flocks.file_name(_device(path, status.st_dev), status.st_ino)
            # Twice: the kernel hands the list out in pages, and an entry that ends in between
            # makes it skip another.
            listed = "".join(Path("/proc/locks").read_text(encoding="ascii") for _ in range(2))
            holder = flocks.holder(listed, name)
            if holder is not None:
                return holder
            if os.readlink("/proc/self/ns/pid") == flocks.INITIAL_PID_NAMESPACE:
                return None
        return flocks.holder_by_trying(self.flock(path))

    def identity(self, path: str) -> tuple[int, int] | None:
        """Return device and inode of `path`, or of what it links to; None if it can't be seen."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def link_files(self, root: str, paths: Sequence[str], target: str) -> None:
        """Make hard links to `paths`, relative to `root`, at the same places in `target`."""
        for path in paths:
            link = f"{target}/{path}"
            try:
                os.makedirs(os.path.dirname(link), 0o700, exist_ok=True)
                _link(f"{root}/{path}", link)
            except OSError as error:
                raise _file_error("link", f"{root}/{path}", error) from None

    def make_directory(self, path: str, mode: int) -> None:
        """Create directory `path`, and with mode 0755 those of its parents that are missing."""
        # VictoriaLogs, or a later run of its user, has to see into it. Not by a chmod, which would
        # follow a link that somebody has put there meanwhile.
        umask = os.umask(0)
        try:
            _make_directory(path, mode)
        except OSError as error:
            raise _file_error("create", path, error) from None
        finally:
            os.umask(umask)

    def make_file(self, path: str) -> None:
        """Create an empty file `path`, readable by all, if `path` does not exist."""
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise _file_error("create", path, error) from None

    def rename(self, source: str, destination: str) -> None:
        """Rename within one filesystem; `destination` must not exist."""
        try:
            if os.path.lexists(destination):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
            os.rename(source, destination)
        except OSError as error:
            raise _file_error("rename", source, error) from None

    def remove_tree(self, path: str) -> None:
        """Remove `path` and all below it, without following links; no error if it is missing."""
        try:
            if self.is_directory(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _file_error("remove", path, error) from None

    def sync(self, path: str) -> None:
        """Wait until all that was written to the filesystem of `path` is on its disk."""
        self.run(["sync", "--file-system", path])

    def owner(self, path: str) -> Owner | None:
        """Return who owns `path`, or None if it is missing."""
        try:
            status = os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Owner(status.st_uid, status.st_gid)

    def set_owner(self, path: str, owner: Owner) -> None:
        """Make `owner` the owner of `path` itself."""
        if self.owner(path) == owner:
            return
        try:
            os.lchown(path, owner.user, owner.group)
        except OSError as error:
            raise _file_error("set the owner of", path, error) from None

    def user_ids(self, user: str, group: str) -> Owner | None:
        """Return the ids of `user` and `group` (by name or number), None if unknown."""
        import grp
        import pwd

        try:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
            user_id, group_id = entry.pw_uid, entry.pw_gid
        except KeyError:
            if not (user.isdigit() and group.isdigit()):
                return None
            user_id, group_id = int(user), int(group)
        if group:
            try:
                group_id = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
            except KeyError:
                return None
        return Owner(user_id, group_id)

    def effective_user(self) -> int:
        """Return the user id that we run as."""
        return os.geteuid()

    def free_bytes(self, path: str) -> int:
        """Return how many bytes may be written to the filesystem of `path`."""
        status = os.statvfs(files.nearest_existing(Path(path)))
        return status.f_bavail * status.f_frsize


@lru_cache
def _device(path: str, reported: int) -> str:
    """Return the device of the filesystem of `path`, for which stat(2) has `reported` another."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        about = Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii")
    finally:
        os.close(descriptor)
    ((_, mount),) = (line.split() for line in about.splitlines() if line.startswith("mnt_id:"))
    mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    return flocks.device_of_mount(mounts, mount)


def _locked(descriptor: int) -> bool:
    """Lock an open file if no other process has locked it; return whether we have."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _make_directory(path: str, mode: int) -> None:
    if os.path.isdir(path):
        return
    _make_directory(os.path.dirname(path), 0o755)
    os.mkdir(path, mode)


def _link(source: str, link: str) -> None:
    """Link a file, or for a directory make one with links to all that is in it."""
    if not os.path.isdir(source) or os.path.islink(source):
        os.link(source, link, follow_symlinks=False)
        return
    os.mkdir(link, 0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            _link(entry.path, f"{link}/{entry.name}")


def _file_error(action: str, path: str, error: OSError) -> OperatorError:
    """Return the failure to `action` `path` as the operator reads it."""
    return OperatorError(f"could not {action} {path}: {error.strerror}")
