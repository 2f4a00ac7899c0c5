"""The guard: a process that outlives us and starts VictoriaLogs if we are killed in the stop window.

It waits for the run lock, which the kernel frees when we end, and then does what `recover` does:
nothing if there is no journal. VictoriaLogs is stopped only after the guard has begun to wait: a
guard that is still starting could not help, and would take the processor from a VictoriaLogs that
starts. The guard reports that it waits by the protocol of sd_notify(3).
"""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.system import commands, processes

# sd_booted(3): systemd runs the system if, and only if, this directory exists.
SYSTEMD_RUNS = Path("/run/systemd/system")
ARM_SECONDS = 10
POLL_SECONDS = 0.05
_NOTIFY = "NOTIFY_SOCKET"
_READY = b"READY=1"


def arm(target: Target) -> None:
    """Start the guard of `target`, before VictoriaLogs is stopped, and wait until it is ready.

    For root under systemd it is a transient unit, which a KillMode=control-group that ends
    borgmatic's whole unit does not reach. Otherwise, or if systemd refuses, it is a process in its own
    session. Raises OperatorError if there is no guard.
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
    if SYSTEMD_RUNS.is_dir() and os.geteuid() == 0:
        try:
            commands.run(_transient_unit(target.name, argv), timeout=ARM_SECONDS)
            return
        except CommandFailed as error:
            target.reporter.warn(f"the guard is a process and not a unit of systemd: {error.what}")
    _start_process(argv)


def on_guard() -> None:
    """Report to the run that started this guard that the guard waits from now on."""
    address = os.environ.get(_NOTIFY)
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sending:
        try:
            sending.sendto(_READY, _socket_address(address))
        except OSError:
            # The run that started us has ended already: the guard is needed even more.
            return


def _socket_address(address: str) -> str:
    """Return an address in sd_notify(3)'s notation, in which `@` begins an abstract one."""
    return f"\0{address[1:]}" if address.startswith("@") else address


def _start_process(argv: list[str]) -> None:
    """Start `argv` as a process in its own session, and wait until it reports that it is ready."""
    address = f"@vl-borg-hooks-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(_socket_address(address))
        receiving.settimeout(POLL_SECONDS)
        guard = processes.beside(argv, outlives_us=True, environment={_NOTIFY: address})
        deadline = time.monotonic() + ARM_SECONDS
        while not _is_ready(receiving):
            if guard.poll() is not None or time.monotonic() >= deadline:
                guard.kill()
                raise OperatorError(
                    "the guard, which starts VictoriaLogs if this run is killed, did not start",
                    hint="to see why, run: vl-borg-hooks recover",
                )


def _is_ready(receiving: socket.socket) -> bool:
    try:
        return receiving.recv(len(_READY)) == _READY
    except TimeoutError:
        return False


def _transient_unit(name: str, argv: list[str]) -> list[str]:
    """Return the systemd-run call that starts `argv` as a unit, and waits until it is ready."""
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit=vl-borg-hooks-guard-{name}-{os.getpid()}",
        f"--description=starts VictoriaLogs if a run on {name} is killed",
        "--property=Type=notify",
        # systemd gives units its own PATH; with ours, systemctl and ssh are found.
        f"--setenv=PATH={os.environ.get('PATH', os.defpath)}",
        # systemd.service(5), COMMAND LINES: `$$` is a dollar sign and not a variable.
        *(word.replace("$", "$$") for word in argv),
    ]
