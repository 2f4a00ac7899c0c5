"""Another machine, reached over ssh.

That machine needs sshd, a login shell, GNU's find, grep and coreutils, and flock(1) and findmnt(8) of
util-linux, but no Python.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import socket
import stat
import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.system import commands, flocks, processes
from vl_borg_hooks.system.addresses import Address, unix_connection
from vl_borg_hooks.system.hosts import FileLocked, Owner
from vl_borg_hooks.system.processes import Beside

# ssh(1), "EXIT STATUS": 255 if ssh itself failed, else the status of the remote command.
SSH_FAILED = 255
# flock(1) --conflict-exit-code: a value that neither it nor ssh uses for anything else.
HELD_BY_ANOTHER = 99
# What find prints after the list of locks, if that could be read to its end.
ALL_LISTED = "all locks are listed"
CONNECT_TIMEOUT = 10
# How the directories of open connections begin, in the directory for temporary files: then comes the
# process id of the run. A socket's path may have 107 bytes, which rules out the state directory.
SOCKETS = "vl-borg-hooks-ssh-"
POLL_SECONDS = 0.01


@final
class SshTree:
    """A directory of another machine, as `tree` has fetched it."""

    # The times are of another machine's clock.
    taken = 0

    def __init__(self, root: str, printed: str) -> None:
        """Take what find printed about `root`, and the grep that it started: pairs that end with NUL.

        find prints a relative path, and its type with a time; grep an absolute path and the content.
        """
        self._names: dict[str, list[str]] = defaultdict(list)
        self._directories: set[str] = set()
        self._modified: dict[str, int] = {}
        self._contents: dict[str, list[str]] = defaultdict(list)
        above = len(root.rstrip("/")) + 1
        fields = iter(printed.split("\0"))
        # zip drops what has no partner: only the empty text after the last NUL.
        for path, value in zip(fields, fields, strict=False):
            if path.startswith("/"):
                # Content with NULs comes in pieces, each with its path.
                self._contents[path[above:]].append(value)
            else:
                self._modified[path] = _nanoseconds(value[1:])
                if value[0] == "d":
                    self._directories.add(path)
                parent, _, name = path.rpartition("/")
                self._names[parent].append(name)

    def names(self, path: str) -> list[str]:
        """Return the names in directory `path`."""
        if path:
            self.modified(path)
        return self._names.get(path, [])

    def modified(self, path: str) -> int:
        """Return when `path` was last modified: nanoseconds since 1970."""
        try:
            return self._modified[path]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path) from None

    def is_directory(self, path: str) -> bool:
        """Say whether `path` is a directory, or a link to one."""
        return path in self._directories

    def content(self, path: str) -> bytes:
        """Return the content of file `path`."""
        self.modified(path)
        return "\0".join(self._contents.get(path, [])).encode("utf-8", "surrogateescape")


@dataclass(unsafe_hash=True)
class SshHost:
    """Another machine, reached by ssh with a key and without prompts."""

    destination: str
    ssh_command: tuple[str, ...] = ("ssh",)
    # The socket of a connection that is kept open; empty if each command makes its own.
    control_path: str = field(default="", compare=False)
    # Where its sockets are; empty outside of `connected`.
    _sockets: str = field(default="", compare=False, repr=False)
    _master: Beside | None = field(default=None, compare=False, repr=False)
    # The socket here that is forwarded to an address there.
    _forwarded: dict[Address, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The name of that machine in messages."""
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
        """Keep one connection open, which all commands in this block use without a wait.

        If it can't be made, each command makes its own, or reports why it can't.
        """
        _remove_left_sockets()
        with tempfile.TemporaryDirectory(
            prefix=f"{SOCKETS}{os.getpid()}-", ignore_cleanup_errors=True
        ) as self._sockets:
            try:
                self._connect()
                yield
            finally:
                self._disconnect()
                self._sockets = ""

    def _connect(self) -> None:
        """Make the connection that is kept open; `control_path` stays empty if that fails."""
        path = f"{self._sockets}/ssh"
        argv = [*self.transport(), "-M", "-N", "-S", path, "--", self._address]
        self._master = processes.beside(argv, dies_with_us=True)
        deadline = time.monotonic() + CONNECT_TIMEOUT
        while self._master.poll() is None and time.monotonic() < deadline:
            if os.path.exists(path):
                self.control_path = path
                return
            time.sleep(POLL_SECONDS)

    def _disconnect(self) -> None:
        """End the connection that is kept open, with all that it forwards."""
        self.control_path = ""
        self._forwarded.clear()
        if self._master:
            self._master.terminate()
            self._master.wait()
            self._master = None
        # One that was killed has left them.
        for left in os.listdir(self._sockets):
            os.unlink(f"{self._sockets}/{left}")

    def connection(self, address: Address, seconds: float) -> socket.socket:
        """Return a connection to `address` as seen from there, which waits up to `seconds` each time.

        Only in `connected`: through a socket that the connection which is kept open forwards. If that
        was lost, it is made anew. ssh accepts us before it asks there: if nobody listens, the
        connection ends at once. Raises OperatorError if that machine can't be reached.
        """
        if address in self._forwarded:
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                return unix_connection(self._forwarded[address], seconds)
            self._disconnect()
        return unix_connection(self._forward(address), seconds)

    def _forward(self, address: Address) -> str:
        """Return a new socket here that leads to `address` there; raises OperatorError."""
        if not self._sockets:
            raise OperatorError(
                f"no connection to {self.name} is kept open to reach {address.target}"
            )
        if not self.control_path:
            self._disconnect()
            self._connect()
        if not self.control_path:
            self.check()
            raise OperatorError(f"no connection to {self.name} could be kept open")
        path = f"{self._sockets}/{len(self._forwarded)}"
        program, *options = self.transport()
        # The first one counts: a config for automatic logins may say yes.
        argv = [program, "-o", "ClearAllForwardings=no", *options, "-O", "forward"]
        argv += ["-L", f"{path}:{address.target}", "--", self._address]
        completed = commands.run(argv, ok=commands.ANY_STATUS)
        if completed.exit_status:
            raise CommandFailed(
                f"ssh could not forward {address.target} of {self.name}: {completed.last_line}"
            )
        self._forwarded[address] = path
        return path

    def check(self) -> None:
        """Raise OperatorError if the host can't be reached, or has no flock(1)."""
        self.run(["flock", "--version"])

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
        """Run `argv` there; raises CommandFailed, with another message if the host is unreachable."""
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

    def begin(self, argv: Sequence[str]) -> Beside:
        """Begin to run `argv` there, with its three streams as pipes; raises CommandFailed."""
        return processes.beside(self.argv(argv), talks=True)

    def watch(self, process: int) -> None:
        """Return None: it would take a program there that watches."""
        return

    def run_starter(
        self, argv: Sequence[str], *, timeout: float | None = None
    ) -> commands.Completed:
        """Run `argv` there: what it leaves running is in sshd's session, and not in our service."""
        return self.run(argv, timeout=timeout)

    def check_starter(self) -> None:
        """Do nothing: see `run_starter`."""

    def has_command(self, name: str) -> bool:
        """Say whether a program called `name`, or at that path, can be run there."""
        # The login shell's own: POSIX has `command -v` in every shell.
        return self.run(["command", "-v", name], ok=(0, 1, 127)).exit_status == 0

    def rsync_location(self, path: str) -> str:
        """Return `user@host:path/`; rsync's --secluded-args keeps the path from the shell there."""
        return f"{self.destination}:{path.rstrip('/')}/"

    def local_path(self, path: str) -> Path | None:
        """Return None: nothing of that machine is on this one."""
        return None

    def _holds(self, *test: str) -> bool:
        return self.run(["test", *test], ok=(0, 1)).exit_status == 0

    def is_directory(self, path: str) -> bool:
        """Say whether `path` is a directory, not a link to one."""
        return self._holds("-d", path) and not self._holds("-L", path)

    def entries(self, path: str) -> list[str]:
        """Return the names in directory `path`, or in the one that it links to; empty if missing."""
        if not self._holds("-d", path):
            return []
        depth = ("-mindepth", "1", "-maxdepth", "1")
        printed = self.run(["find", "-H", path, *depth, "-printf", "%f\\0"])
        return [name for name in printed.stdout.split("\0") if name]

    def tree(
        self, root: str, *, depth: int, contents: Collection[str], without: Collection[str]
    ) -> SshTree:
        """Fetch the directory `root` in one round trip.

        find starts one grep for many files, and the output of one never comes into the middle of
        the other's. An empty pattern makes grep print each file whole, with its path.
        """
        printed = self.run(
            [
                *("find", "-H", root, "-mindepth", "1", "-maxdepth", str(depth)),
                *(*_called(without), "-prune", "-o", "-printf", "%P\\0%Y%T@\\0"),
                *(*_called(contents), "-exec", "grep", "-azZH", "-e", "", "--", "{}", "+"),
            ]
        )
        return SshTree(root, printed.stdout)

    @contextlib.contextmanager
    def flock(self, path: str, wait: float = 0) -> Iterator[None]:
        """Hold flock(2) LOCK_EX on file `path`, with flock(1), for as long as its stdin is open.

        `cat` starts only when flock has the lock, so what we write comes back as soon as it is
        held. When we end, in whatever way, ssh closes its stdin, `cat` ends and the lock is free.
        flock(1) would create a file that is missing, and follow a link.
        """
        if not self._holds("-f", path, "-a", "!", "-L", path):
            raise OperatorError(f"could not lock {path} on {self.name}: it is not a regular file")
        argv = ["flock", "--exclusive", "--conflict-exit-code", str(HELD_BY_ANOTHER)]
        argv += ["--timeout", f"{wait:g}"] if wait else ["--nonblock"]
        with processes.beside(self.argv([*argv, path, "cat"]), talks=True) as holder:
            if holder.stdin is None or holder.stdout is None or holder.stderr is None:
                raise AssertionError("a command that talks has all three streams")
            try:
                with contextlib.suppress(BrokenPipeError):
                    holder.stdin.write("held\n")
                    holder.stdin.flush()
                if not holder.stdout.readline():
                    reason = holder.stderr.read().strip()
                    if holder.wait() == HELD_BY_ANOTHER:
                        raise FileLocked(f"a process on {self.name} holds {path}")
                    raise OperatorError(f"could not lock {path} on {self.name}: {reason}")
                yield
                if holder.poll() is not None:
                    raise OperatorError(f"the connection to {self.name} that held {path} was lost")
            finally:
                with contextlib.suppress(BrokenPipeError):
                    holder.stdin.close()

    def flock_holder(self, path: str) -> int | None:
        """Return the process that holds flock(2) on `path`; it is asked by /proc/locks there.

        All in one round trip: find starts one program after another, as long as they succeed. If it
        stops early, or that machine is a container, the lock is tried to be taken.
        """
        asked = [
            *("find", path, "-maxdepth", "0", "-type", "f", "-printf", "%i\\n"),
            *("-exec", "findmnt", "-n", "-o", "MAJ:MIN", "-T", "{}", ";"),
            *("-exec", "readlink", "/proc/self/ns/pid", ";"),
            *("-exec", "cat", "/proc/locks", "/proc/locks", ";", "-printf", f"{ALL_LISTED}\\n"),
        ]
        inode, *rest = self.run(asked, ok=(0, 1)).stdout.split("\n")
        if not inode:
            if self._holds("-e", path, "-o", "-L", path):
                raise OperatorError(f"{path} on {self.name} is not a regular file")
            return None
        with contextlib.suppress(ValueError):
            device, namespace, *listed = rest
            holder = flocks.holder("\n".join(listed), flocks.file_name(device, int(inode)))
            if holder is not None:
                return holder
            if namespace == flocks.INITIAL_PID_NAMESPACE and ALL_LISTED in listed:
                return None
        return flocks.holder_by_trying(self.flock(path))

    def identity(self, path: str) -> tuple[int, int] | None:
        """Return device and inode of `path`, or of what it links to; None if it can't be seen."""
        printed = self.run(["stat", "-L", "-c", "%d %i", "--", path], ok=(0, 1)).stdout.split()
        return (int(printed[0]), int(printed[1])) if len(printed) == 2 else None

    def link_files(self, root: str, paths: Sequence[str], target: str) -> None:
        """Make hard links to `paths`, relative to `root`, at the same places in `target`."""
        if paths:
            argv = ["env", "-C", root, "cp", "--archive", "--link", "--parents"]
            self.run([*argv, f"--target-directory={target}", "--", *paths])

    def make_directory(self, path: str, mode: int) -> None:
        """Create directory `path`, and with mode 0755 those of its parents that are missing."""
        # Not by mkdir -p: its parents have modes of the umask.
        if not self._holds("-d", path):
            self.run(["install", "-d", "-m", f"{mode:o}", "--", path])

    def make_file(self, path: str) -> None:
        """Create an empty file `path`, readable by all, if `path` does not exist."""
        if not self._holds("-e", path):
            self.run(["touch", "--", path])

    def rename(self, source: str, destination: str) -> None:
        """Rename within one filesystem; `destination` must not exist."""
        if self._holds("-e", destination) or self._holds("-L", destination):
            raise OperatorError(f"{destination} exists on {self.name}")
        self.run(["mv", "-T", "--", source, destination])

    def remove_tree(self, path: str) -> None:
        """Remove `path` and all below it, without following links; no error if it is missing."""
        self.run(["rm", "-rf", "--", path])

    def sync(self, path: str) -> None:
        """Wait until all that was written to the filesystem of `path` is on its disk."""
        self.run(["sync", "--file-system", path])

    def owner(self, path: str) -> Owner | None:
        """Return who owns `path`, or None if it is missing."""
        printed = self.run(["stat", "-c", "%u %g", "--", path], ok=(0, 1))
        numbers = printed.stdout.split()
        return Owner(int(numbers[0]), int(numbers[1])) if len(numbers) == 2 else None

    def set_owner(self, path: str, owner: Owner) -> None:
        """Make `owner` the owner of `path` itself."""
        if self.owner(path) != owner:
            self.run(["chown", "-h", "--", str(owner), path])

    def user_ids(self, user: str, group: str) -> Owner | None:
        """Return the ids of `user` and `group` (by name or number), None if unknown there."""
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


def _remove_left_sockets() -> None:
    """Remove what runs that were killed have left of their connections."""
    for path in Path(tempfile.gettempdir()).glob(f"{SOCKETS}*"):
        run = path.name.removeprefix(SOCKETS).partition("-")[0]
        # Anybody can put something there, a FIFO too, which rmtree would wait for.
        if not _is_our_directory(path):
            continue
        if run.isdecimal() and processes.look(int(run)) is None:
            shutil.rmtree(path, ignore_errors=True)


def _is_our_directory(path: Path) -> bool:
    """Say whether `path` is a directory of this user: in a sticky /tmp, nobody else can exchange it."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid()


def _called(names: Iterable[str]) -> list[str]:
    """Return the find(1) expression that matches any of `names`."""
    return ["(", "-false", *(word for name in names for word in ("-o", "-name", name)), ")"]


def _nanoseconds(text: str) -> int:
    """Return a time that find printed, exact to the last digit: it is compared with the kernel's."""
    seconds, _, fraction = text.partition(".")
    return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))
