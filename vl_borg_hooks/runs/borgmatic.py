"""The borgmatic that runs us: which process it is, how to call it again, and its options."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import commands

# The script of borgmatic, as it is installed, and as Nix and Guix call what they wrap.
SCRIPTS = {"borgmatic", ".borgmatic-wrapped", ".borgmatic-real"}
MODULE = "borgmatic.commands.borgmatic"
MODULE_FILE = "/borgmatic/commands/borgmatic.py"
PYTHON = re.compile(r"(python|pypy)[0-9.]*t?")
# What of Python's own options (`python --help`) has a value.
LETTERS_WITH_VALUE = "cmWX"
OPTIONS_WITH_VALUE = {"--check-hash-based-pycs"}
# The version that goes on after an exit status of 75 of a before: hook, and how long one may take to
# print its version.
GOES_ON = "2.1.8"
VERSION_SECONDS = 30


@dataclass(frozen=True)
class Borgmatic:
    """The borgmatic that runs us.

    `command` calls that same borgmatic again, from any directory: its script, or an interpreter with
    a script or a module. `arguments` are what it was called with after that.
    """

    process: psutil.Process
    command: tuple[str, ...]
    arguments: tuple[str, ...]


def running() -> Borgmatic | None:
    """Return the nearest borgmatic among the processes above us, None if there is none.

    A process whose command line can't be read, or was replaced by a title, is passed over.
    """
    for process in _above_us():
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            command = _borgmatic(words, process)
            if command:
                return Borgmatic(process, command, tuple(words[len(command) :]))
    return None


def skips(found: Borgmatic) -> bool:
    """Say whether that borgmatic archives nothing after an exit status of 75 of a hook.

    2.1.8 goes on as if the hook had succeeded. Raises OperatorError if it does not tell its version.
    """
    told = commands.run([*found.command, "--version"], timeout=VERSION_SECONDS).stdout
    return told.strip() != GOES_ON


def extract_destination() -> Path:
    """Return the directory that the borgmatic above us has extracted to.

    borgmatic runs hooks in the directory that `--destination` is relative to. It does not pass
    `--destination` to them, but has it on its own command line. Raises OperatorError if no borgmatic
    runs us.
    """
    borgmatic = running()
    if borgmatic is None:
        raise OperatorError(
            "after-extract is for borgmatic's after: hooks, but no borgmatic runs it",
            hint="run: vl-borg-hooks restore --from DIRECTORY",
        )
    arguments = borgmatic.arguments
    destination = ""
    for index, argument in enumerate(arguments):
        if argument == "--destination" and index + 1 < len(arguments):
            destination = arguments[index + 1]
        elif argument.startswith("--destination="):
            destination = argument.removeprefix("--destination=")
    return Path(os.getcwd()) / destination


def _above_us() -> Iterator[psutil.Process]:
    """Yield our parent, its parent, and so on, as far as we can see: in a container, to its first."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process().parent()
        while process:
            yield process
            process = process.parent()


def _borgmatic(words: Sequence[str], process: psutil.Process) -> tuple[str, ...] | None:
    """Return the first of `words`, the command line of `process`, that call a borgmatic.

    None if it is none. That a word is `borgmatic` is not enough: an editor or a shell can have that.
    """
    if not words:
        return None
    program = _found(words[0], process)
    if not PYTHON.fullmatch(os.path.basename(words[0])):
        return (program,) if _is_script(program) else None
    count, module = _run_by_python(words)
    if module:
        return (program, *words[1:count]) if module == MODULE else None
    script = _from_its_directory(words[count - 1], process)
    if count > 1 and (_is_script(script) or script.endswith(MODULE_FILE)):
        return (program, *words[1 : count - 1], script)
    return None


def _run_by_python(words: Sequence[str]) -> tuple[int, str]:
    """Return how many of `words` call what a Python runs, and its module; no module for a script.

    1 if that is neither a script nor a module.
    """
    count = 1
    while count < len(words):
        word = words[count]
        count += 1
        if word in OPTIONS_WITH_VALUE:
            count += 1
        elif not word.startswith("-"):
            return count, ""
        elif not word.startswith("--"):
            # Letters in one word; what follows one with a value is that value, else the next word.
            found = re.search(f"[{LETTERS_WITH_VALUE}]", word)
            letter = found[0] if found else ""
            value = word[found.end() :] if found else ""
            if letter and not value and count < len(words):
                value = words[count]
                count += 1
            if letter == "m":
                return count, value
            if letter == "c":
                break
    return 1, ""


def _is_script(path: str) -> bool:
    """Say whether `path` is borgmatic's script, or a link to it (as with `pipx install --suffix`)."""
    return not SCRIPTS.isdisjoint(map(os.path.basename, (path, os.path.realpath(path))))


def _found(program: str, process: psutil.Process) -> str:
    """Return the path of `program`, which `process` was called as; as it is if that is not known."""
    if "/" not in program:
        with contextlib.suppress(psutil.Error):
            return shutil.which(program, path=process.environ().get("PATH")) or program
    return _from_its_directory(program, process)


def _from_its_directory(path: str, process: psutil.Process) -> str:
    """Return `path`, which `process` was called with; as it is if its directory is not known."""
    with contextlib.suppress(psutil.Error):
        return os.path.join(process.cwd(), path)
    return path
