"""The guard: a process that outlives us and starts VictoriaLogs if we are killed in the stop window.

It waits for the run lock, which the kernel frees when we end, and then does what `recover` does:
nothing if there is no journal, and otherwise again and again until it has done it. VictoriaLogs is
stopped only after the guard has begun to wait: a guard that is still starting could not help, and
would take the processor from a VictoriaLogs that starts. The guard reports that it waits by the
protocol of sd_notify(3).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.stop_window import launch
from vl_borg_hooks.system import commands, files, processes

ARM_SECONDS = 10
POLL_SECONDS = 0.05
LARGEST_LOG = 1 << 20
# pipe(7): what a pipe takes without being asked to take more.
PIPE_BYTES = 1 << 16
_READY = b"READY=1"


def arm(target: Target) -> None:
    """Start the guard of `target`, before VictoriaLogs is stopped, and wait until it is ready.

    For root under systemd it is a transient unit, which a KillMode=control-group that ends
    borgmatic's whole unit does not reach. Otherwise, or if systemd refuses, it is a process in its own
    session. It has our environment in both cases. What it reports goes to the journal of systemd, or
    to `guard.log` in the state directory. Raises OperatorError if there is no guard.
    """
    argv = [
        sys.executable,
        "-m",
        "vl_borg_hooks",
        "--config",
        str(target.config_path),
        "--instance",
        target.name,
        "recover",
        "--wait",
    ]
    directory = target.records.directory
    if processes.systemd_runs():
        try:
            _start_unit(target.name, argv, directory)
            return
        except CommandFailed as error:
            target.reporter.warn(f"the guard is a process and not a unit of systemd: {error.what}")
    _start_process(argv, directory / "guard.log")


def is_guard() -> bool:
    """Say whether somebody waits for us to be on guard."""
    return launch.NOTIFY in os.environ


def on_guard() -> None:
    """Report to the run that started this guard that the guard waits from now on."""
    address = os.environ[launch.NOTIFY]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        try:
            sending.sendto(_READY, _socket_address(address))
        except OSError:
            # The run that started us has ended already: the guard is needed even more.
            return


def _socket_address(address: str) -> str:
    """Return an address in sd_notify(3)'s notation, in which `@` begins an abstract one."""
    return f"\0{address[1:]}" if address.startswith("@") else address


def _start_process(argv: list[str], log: Path) -> None:
    """Start `argv` as a process in its own session, and wait until it reports that it is ready."""
    address = f"@vl-borg-hooks-{os.getpid()}-{time.monotonic_ns()}"
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving,
        _appended(log) as errors,
    ):
        receiving.bind(_socket_address(address))
        receiving.settimeout(POLL_SECONDS)
        before = os.fstat(errors.fileno()).st_size
        guard = processes.beside(
            argv, outlives_us=True, environment={launch.NOTIFY: address}, errors=errors
        )
        deadline = time.monotonic() + ARM_SECONDS
        while not _is_ready(receiving):
            if guard.poll() is not None or time.monotonic() >= deadline:
                guard.kill()
                said = log.read_bytes()[before:].decode("utf-8", "backslashreplace").split("\n")
                reason = next((f": {line}" for line in reversed(said) if line), "")
                raise OperatorError(
                    "the guard, which starts VictoriaLogs if this run is killed, did not start"
                    f"{reason}",
                    hint="to see why, run: vl-borg-hooks recover",
                )


def _is_ready(receiving: socket.socket) -> bool:
    try:
        return receiving.recv(len(_READY)) == _READY
    except TimeoutError:
        return False


def _appended(path: Path) -> IO[bytes]:
    """Open the log `path` to append to it; one that has become large begins again."""
    try:
        file = open(path, "ab", opener=files.private)  # noqa: SIM115 - for the caller
        if file.tell() > LARGEST_LOG:
            file.truncate(0)
    except OSError as error:
        raise OperatorError(f"could not write {path}: {error.strerror}") from None
    return file


def _start_unit(name: str, argv: list[str], directory: Path) -> None:
    """Start `argv` as a transient unit of systemd, and wait until it reports that it is ready.

    Raises CommandFailed.
    """
    with _our_environment(directory / "guard.environment") as pipe:
        launcher = [sys.executable, "-I", "-S", launch.__file__, str(pipe)]
        commands.run(_transient_unit(name, [*launcher, *argv]), timeout=ARM_SECONDS)


@contextlib.contextmanager
def _our_environment(path: Path) -> Iterator[Path]:
    """Offer our environment at `path`, a FIFO for us only, for as long as the block lasts.

    A pipe, so that no password is ever on a disk.
    """
    content = b"".join(b"%s=%s\0" % pair for pair in os.environb.items()) + b"\0"
    try:
        path.unlink(missing_ok=True)
        os.mkfifo(path, 0o600)
        # Of a FIFO's two ends we have both, so neither the opening nor the writing waits for a reader.
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise CommandFailed(f"could not create {path}: {error.strerror}") from None
    try:
        try:
            if len(content) > PIPE_BYTES:
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, len(content))
            os.write(descriptor, content)
        except OSError as error:
            raise CommandFailed(f"could not pass our environment on: {error.strerror}") from None
        yield path
    finally:
        os.close(descriptor)
        path.unlink(missing_ok=True)


def _transient_unit(name: str, argv: list[str]) -> list[str]:
    """Return the systemd-run call that starts `argv` as a unit, and waits until it is ready."""
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit=vl-borg-hooks-guard-{name}-{os.getpid()}",
        f"--description=starts VictoriaLogs if a run on {name} is killed",
        "--property=Type=notify",
        # systemd.service(5), COMMAND LINES: `$$` is a dollar sign and not a variable.
        *(word.replace("$", "$$") for word in argv),
    ]
