"""Who archives the staging copy, and so has its lease: the borgmatic that runs us, or another caller."""

from __future__ import annotations

import os
import re
from contextlib import suppress

import psutil

from vl_borg_hooks.runs import borgmatic
from vl_borg_hooks.runs.holder import Holder
from vl_borg_hooks.system import processes
from vl_borg_hooks.system.processes import Process

# These have nothing to do but to wait for what they run, and may run it in a session of its own.
ONLY_WAIT = {"sudo", "doas", "su", "runuser", "timeout"}
SHELLS = {"sh", "ash", "bash", "dash", "fish", "ksh", "mksh", "tcsh", "csh", "zsh"}


def calling_process() -> Holder:
    """Return who archives the staging copy after a call of ours.

    That is the borgmatic that runs us; else the systemd service that runs us or our script, whose next
    process may be the one that archives; else the outermost script above us in our session, which
    includes a cron job. Else somebody called us by hand, or from afar: then it is that shell, or
    nobody that we know, and only for a limited time.
    """
    found = borgmatic.running()
    if found is not None:
        return Holder.of(found.process.pid, "borgmatic")
    above, beyond = _above_us()
    shell = beyond if beyond and _is_for_a_person(beyond) else None
    if shell is None:
        directory = processes.service_directory()
        # What is above us in the same service, like the daemon of cron, is not the service manager.
        if directory and not (beyond and processes.is_in(beyond.pid, directory)):
            return Holder.of_service(directory)
    while above and above[-1].name in ONLY_WAIT:
        above.pop()
    if above:
        return Holder.of(above[-1].pid, above[-1].name)
    return Holder.of(shell.pid, shell.name, is_limited=True) if shell else Holder.unknown()


def _above_us() -> tuple[list[Process], Process | None]:
    """Return the processes above us in our session, the nearest first, and the one that comes next.

    The session of a person's shell ends before that shell. What only waits goes on with the session
    that it was called in.
    """
    found: list[Process] = []
    us = processes.look(os.getpid())
    session = us.session if us else 0
    process = processes.look(os.getppid())
    while process and process.pid > 1 and not _is_for_a_person(process):
        if process.session != session:
            if process.name not in ONLY_WAIT:
                break
            session = process.session
        found.append(process)
        process = processes.look(process.parent)
    return found, process


def _is_for_a_person(process: Process) -> bool:
    """Say whether a process is a shell that was given neither a command nor a script."""
    with suppress(psutil.Error):
        program, *words = psutil.Process(process.pid).cmdline() or [""]
        if os.path.basename(program).lstrip("-") in SHELLS:
            # One with `c` is followed by a command, and a word that is no option is a script.
            return all(re.fullmatch("-[^-c]*|--.*", word) for word in words)
    return False
