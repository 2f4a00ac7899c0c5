"""The borgmatic that runs us: which process it is, and its options."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.runs.records import Holder


def calling_process() -> Holder:
    """Return the borgmatic that this hook runs under, else the process that started us.

    That process archives the staging copy, so the lease belongs to it.
    """
    borgmatic = _ancestor()
    if borgmatic is not None:
        return Holder.of(borgmatic.pid, "borgmatic")
    return Holder.of(os.getppid(), psutil.Process(os.getppid()).name())


def extract_destination() -> Path:
    """Return the directory that the borgmatic above us has extracted to.

    borgmatic runs hooks in the directory that `--destination` is relative to. It does not pass
    `--destination` to them, but has it on its own command line. Raises OperatorError if no borgmatic
    runs us.
    """
    borgmatic = _ancestor()
    if borgmatic is None:
        raise OperatorError(
            "after-extract is for borgmatic's after: hooks, but no borgmatic runs it",
            hint="run: vl-borg-hooks restore --from DIRECTORY",
        )
    arguments = borgmatic.cmdline()
    destination = ""
    for index, argument in enumerate(arguments):
        if argument == "--destination" and index + 1 < len(arguments):
            destination = arguments[index + 1]
        elif argument.startswith("--destination="):
            destination = argument.removeprefix("--destination=")
    return Path(os.getcwd()) / destination


def _ancestor() -> psutil.Process | None:
    """Return the nearest process above us that is borgmatic, None if there is none."""
    try:
        for process in psutil.Process().parents():
            # `borgmatic ...` as a script, its interpreter before it, or `python -m borgmatic`.
            if any(os.path.basename(argument) == "borgmatic" for argument in process.cmdline()[:3]):
                return process
    except psutil.Error:
        # A parent that ended meanwhile is not a borgmatic that waits for us.
        return None
    return None
