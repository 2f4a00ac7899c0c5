"""The guard: a process that outlives us and starts VictoriaLogs when we die in the stop window.

It waits for the run lock, which the kernel frees the moment we die, and then does what `recover`
does: nothing where the journal says that nothing is owed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from vl_borg_hooks import commands
from vl_borg_hooks.context import Target
from vl_borg_hooks.errors import CommandFailed

# sd_booted(3): systemd runs the system exactly where this directory exists.
SYSTEMD_RUNS = Path("/run/systemd/system")
ARM_SECONDS = 10


def arm(target: Target) -> None:
    """Start the guard of `target`, before VictoriaLogs is stopped.

    Under systemd it is a transient unit, out of reach of a KillMode=control-group that ends
    borgmatic's whole unit; elsewhere, or where systemd refuses, a process in a session of its own.
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
            target.reporter.say(f"the guard is no unit of systemd but a process: {error.what}")
    # Not through sh: it must not wait for this one, which is to live on without us.
    subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )


def _transient_unit(name: str, argv: list[str]) -> list[str]:
    """Return the systemd-run call that starts `argv` as a unit, and waits until it was executed."""
    return [
        "systemd-run",
        "--quiet",
        "--collect",
        f"--unit=vl-borg-hooks-guard-{name}-{os.getpid()}",
        f"--description=starts VictoriaLogs should the backup of {name} be killed",
        "--property=Type=exec",
        # systemd gives units its own PATH; ours found systemctl and ssh.
        f"--setenv=PATH={os.environ.get('PATH', os.defpath)}",
        # systemd.service(5), COMMAND LINES: `$$` is a dollar sign and no variable.
        *(word.replace("$", "$$") for word in argv),
    ]
