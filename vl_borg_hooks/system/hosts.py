"""Where VictoriaLogs runs: on this machine, or on another that is reached over ssh."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.system import commands

# ssh(1), "EXIT STATUS": 255 where ssh itself failed, else the status of the remote command.
SSH_FAILED = 255
# util-linux flock(1), sshd and a login shell are all there is on the other side; no Python.
CONNECT_TIMEOUT = 10
POLL_SECONDS = 0.01


@dataclass(frozen=True)
class Owner:
    """The numeric user and group that files belong to."""

    user: int
    group: int

    def __str__(self) -> str:
        """`USER:GROUP` in numbers, as chown and rsync take it."""
        return f"{self.user}:{self.group}"


class Host(Protocol):
    """A machine with a data path: runs commands there and looks after files there."""

    @property
    def name(self) -> str:
        """How messages call this machine."""

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the argument vector that runs `argv` on this host, started from here."""

    def connected(self) -> contextlib.AbstractContextManager[None]:
        """Make ready for many commands, as long as this context lasts."""

    def run(
        self, argv: Sequence[str], *, ok: Collection[int] = (0,), timeout: float | None = None
    ) -> commands.Completed:
        """Run `argv` there; raises CommandFailed."""

    def has_command(self, name: str) -> bool:
        """Tell whether a program called `name`, or at that path, can be run there."""

    def rsync_location(self, path: str) -> str:
        """Return `path` as rsync's argument names it, with the slash that means its content."""

    def is_directory(self, path: str) -> bool:
        """Tell whether `path` is a directory, not a link to one."""

    def entries(self, path: str) -> list[str]:
        """Return the names in directory `path`; empty where there is none."""

    def make_directory(self, path: str, mode: int) -> None:
        """Create directory `path` and its parents, as far as they are missing."""

    def make_file(self, path: str) -> None:
        """Create an empty file `path`, readable by all, where there is nothing."""

    def rename(self, source: str, destination: str) -> None:
        """Rename within one filesystem; `destination` must not exist."""

    def remove_tree(self, path: str) -> None:
        """Remove `path` and all below it, following no link; no error where it is missing."""

    def owner(self, path: str) -> Owner | None:
        """Return who owns `path`, or None where it is missing."""

    def set_owner(self, path: str, owner: Owner) -> None:
        """Make `owner` the owner of `path` itself."""

    def user_ids(self, user: str, group: str) -> Owner | None:
        """Return the ids of `user` and `group` (by name or number), None where unknown there."""

    def effective_user(self) -> int:
        """Return the user id that commands run as there."""

    def free_bytes(self, path: str) -> int:
        """Return how many bytes may be written to the filesystem of `path`."""


class LocalHost:
    """This machine."""

    name = "this machine"

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return `argv` as it is."""
        return list(argv)

    def connected(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: we are there."""
        return contextlib.nullcontext()

    def run(
        self, argv: Sequence[str], *, ok: Collection[int] = (0,), timeout: float | None = None
    ) -> commands.Completed:
        """Run `argv`; raises CommandFailed."""
        return commands.run(argv, ok=ok, timeout=timeout)

    def has_command(self, name: str) -> bool:
        """Tell whether a program called `name`, or at that path, can be run."""
        return shutil.which(name) is not None

    def rsync_location(self, path: str) -> str:
        """Return `path` with the slash that means its content."""
        return path.rstrip("/") + "/"

    def is_directory(self, path: str) -> bool:
        """Tell whether `path` is a directory, not a link to one."""
        return os.path.isdir(path) and not os.path.islink(path)

    def entries(self, path: str) -> list[str]:
        """Return the names in directory `path`; empty where there is none."""
        try:
            return os.listdir(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _file_error("read", path, error) from None

    def make_directory(self, path: str, mode: int) -> None:
        """Create directory `path` and its parents, as far as they are missing."""
        try:
            os.makedirs(path, mode, exist_ok=True)
        except OSError as error:
            raise _file_error("create", path, error) from None

    def make_file(self, path: str) -> None:
        """Create an empty file `path`, readable by all, where there is nothing."""
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
        except OSError as error:
            raise _file_error("create", path, error) from None

    def rename(self, source: str, destination: str) -> None:
        """Rename within one filesystem; `destination` must not exist."""
        try:
            if os.path.lexists(destination):
                raise FileExistsError(17, "File exists", destination)
            os.rename(source, destination)
        except OSError as error:
            raise _file_error("rename", source, error) from None

    def remove_tree(self, path: str) -> None:
        """Remove `path` and all below it, following no link; no error where it is missing."""
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _file_error("remove", path, error) from None

    def owner(self, path: str) -> Owner | None:
        """Return who owns `path`, or None where it is missing."""
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
        """Return the ids of `user` and `group` (by name or number), None where unknown."""
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
        status = os.statvfs(_nearest_existing(path))
        return status.f_bavail * status.f_frsize


@dataclass
class SshHost:
    """Another machine, reached by ssh with a key and without questions."""

    destination: str
    ssh_command: tuple[str, ...] = ("ssh",)
    # The socket of a connection that is kept open; empty where each command makes its own.
    control_path: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """How messages call that machine."""
        return self.destination

    def transport(self) -> list[str]:
        """Return the ssh command with the options that keep it from asking or hanging."""
        program, *options = self.ssh_command
        shared = ["-o", f"ControlPath={self.control_path}", "-o", "ControlMaster=no"]
        return [
            program,
            *(shared if self.control_path else ()),
            "-o",
            "BatchMode=yes",
            "-o",
            f"ConnectTimeout={CONNECT_TIMEOUT}",
            "-o",
            "ServerAliveInterval=10",
            "-o",
            "ServerAliveCountMax=3",
            *options,
        ]

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Keep one connection open, for all that is run in this block to go through at once.

        Where none can be made, each command makes its own, or says why it can't.
        """
        with tempfile.TemporaryDirectory(prefix="vl-borg-hooks-") as directory:
            path = f"{directory}/ssh"
            argv = [*self.transport(), "-M", "-N", "-S", path, "--", self._address]
            with commands.beside(argv, dies_with_us=True) as master:
                deadline = time.monotonic() + CONNECT_TIMEOUT
                while master.poll() is None and time.monotonic() < deadline:
                    if os.path.exists(path):
                        self.control_path = path
                        break
                    time.sleep(POLL_SECONDS)
                try:
                    yield
                finally:
                    self.control_path = ""
                    master.terminate()

    def argv(self, argv: Sequence[str]) -> list[str]:
        """Return the local argument vector that runs `argv` there.

        sshd hands what it gets to the user's login shell as one string, whatever we do; quoting
        every argument makes that shell see exactly `argv`.
        """
        return [*self.transport(), "--", self._address, shlex.join(argv)]

    @property
    def _address(self) -> str:
        """The destination for ssh, which unlike rsync wants an IPv6 address without brackets."""
        user, at, host = self.destination.rpartition("@")
        return f"{user}{at}{host.strip('[]')}"

    def run(
        self, argv: Sequence[str], *, ok: Collection[int] = (0,), timeout: float | None = None
    ) -> commands.Completed:
        """Run `argv` there; raises CommandFailed, which tells an unreachable host apart."""
        completed = commands.run(self.argv(argv), ok=commands.ANY_STATUS, timeout=timeout)
        if completed.exit_status == SSH_FAILED:
            raise CommandFailed(
                f"{self.destination} could not be reached over ssh: {completed.last_line}",
                hint=f"try: {shlex.join([*self.ssh_command, self.destination, 'true'])}",
            )
        if completed.exit_status not in ok:
            raise CommandFailed(
                f"{shlex.join(argv)} failed on {self.destination}: {completed.last_line}"
            )
        return completed

    def rsync_location(self, path: str) -> str:
        """Return `user@host:path/`; rsync's --secluded-args keeps the path from the shell there."""
        return f"{self.destination}:{path.rstrip('/')}/"

    def has_command(self, name: str) -> bool:
        """Tell whether a program called `name`, or at that path, can be run there."""
        # The login shell's own: POSIX has `command -v` in every shell.
        return self.run(["command", "-v", name], ok=(0, 1, 127)).exit_status == 0

    def _holds(self, *test: str) -> bool:
        return self.run(["test", *test], ok=(0, 1)).exit_status == 0

    def is_directory(self, path: str) -> bool:
        """Tell whether `path` is a directory, not a link to one."""
        return self._holds("-d", path) and not self._holds("-L", path)

    def entries(self, path: str) -> list[str]:
        """Return the names in directory `path`; empty where there is none."""
        if not self._holds("-d", path):
            return []
        printed = self.run(["find", path, "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\\0"])
        return [name for name in printed.stdout.split("\0") if name]

    def make_directory(self, path: str, mode: int) -> None:
        """Create directory `path` and its parents, as far as they are missing."""
        if not self._holds("-d", path):
            self.run(["mkdir", "-p", "-m", f"{mode:o}", "--", path])

    def make_file(self, path: str) -> None:
        """Create an empty file `path`, readable by all, where there is nothing."""
        if not self._holds("-e", path):
            self.run(["touch", "--", path])

    def rename(self, source: str, destination: str) -> None:
        """Rename within one filesystem; `destination` must not exist."""
        if self._holds("-e", destination) or self._holds("-L", destination):
            raise OperatorError(f"{destination} exists on {self.name}")
        self.run(["mv", "-T", "--", source, destination])

    def remove_tree(self, path: str) -> None:
        """Remove `path` and all below it, following no link; no error where it is missing."""
        self.run(["rm", "-rf", "--", path])

    def owner(self, path: str) -> Owner | None:
        """Return who owns `path`, or None where it is missing."""
        printed = self.run(["stat", "-c", "%u %g", "--", path], ok=(0, 1))
        numbers = printed.stdout.split()
        return Owner(int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None

    def set_owner(self, path: str, owner: Owner) -> None:
        """Make `owner` the owner of `path` itself."""
        if self.owner(path) != owner:
            self.run(["chown", "-h", "--", str(owner), path])

    def user_ids(self, user: str, group: str) -> Owner | None:
        """Return the ids of `user` and `group` (by name or number), None where unknown there."""
        if user.isdigit() and group.isdigit():
            return Owner(int(user), int(group))
        entry = self.run(["getent", "passwd", user], ok=(0, 2)).stdout.split(":")
        if len(entry) < 4:
            return None
        if not group:
            return Owner(int(entry[2]), int(entry[3]))
        group_entry = self.run(["getent", "group", group], ok=(0, 2)).stdout.split(":")
        return Owner(int(entry[2]), int(group_entry[2])) if len(group_entry) > 2 else None

    def effective_user(self) -> int:
        """Return the user id that commands run as there."""
        return int(self.run(["id", "-u"]).stdout)

    def free_bytes(self, path: str) -> int:
        """Return how many bytes may be written to the filesystem of `path`."""
        while path != "/" and not self._holds("-e", path):
            path = os.path.dirname(path)
        printed = self.run(["df", "--output=avail", "--block-size=1", "--", path])
        return int(printed.stdout.split()[-1])


def to_disk(host: Host, path: str) -> None:
    """Wait until all that was written to the filesystem of `path` is on its disk.

    Raises CommandFailed.
    """
    host.run(["sync", "--file-system", path])


def _nearest_existing(path: str) -> Path:
    """Return `path` or the nearest of its parents that exists."""
    candidate = Path(path)
    while not candidate.exists() and candidate != candidate.parent:
        candidate = candidate.parent
    return candidate


def _file_error(action: str, path: str, error: OSError) -> OperatorError:
    """Return the failure to `action` `path` as the operator reads it."""
    return OperatorError(f"could not {action} {path}: {error.strerror}")
