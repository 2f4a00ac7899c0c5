"""The borgmatic that runs us is found however it is called, and nothing else is taken for it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from vl_borg_hooks.runs import borgmatic

# What a hook of ours sees, as JSON.
HOOK = """\
import json
from vl_borg_hooks.runs.borgmatic import running
found = running()
print(json.dumps(found and [found.process.pid, found.command, found.arguments]))
"""
# Runs its hook, $HOOK, as borgmatic does: through a shell. What it prints first is its own id. The
# assignment keeps the shell from having the hook take its place.
BORGMATIC = """\
import os, subprocess, sys
print(os.getpid(), flush=True)
sys.exit(subprocess.run(os.environ["HOOK"] + "; status=$?; exit $status", shell=True).returncode)
"""
OPTIONS = ("--verbosity", "1", "create", "--stats")


class Place:
    """A directory with borgmatics in it, and the hook that they run."""

    def __init__(self, root: Path) -> None:
        self.root = root
        hook = root / "hook.py"
        hook.write_text(HOOK)
        self.hook = shlex.join([sys.executable, str(hook)])
        self.package = root / "package"

    def script(self, name: str, first_line: str = f"#!{sys.executable}") -> str:
        """Make a borgmatic called `name`; return its path."""
        path = self.root / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{first_line}\n{BORGMATIC}")
        path.chmod(0o755)
        return str(path)

    def module(self) -> Path:
        """Make a borgmatic that is a module; return its file."""
        file = self.package / "borgmatic" / "commands" / "borgmatic.py"
        file.parent.mkdir(parents=True)
        file.write_text(BORGMATIC)
        for directory in (file.parent, file.parent.parent):
            (directory / "__init__.py").touch()
        return file

    def see(
        self, argv: Sequence[str], hook: str = "", environment: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Return the id of the borgmatic that `argv` runs, and what its hook sees."""
        done = subprocess.run(
            argv,
            cwd=self.root,
            env={
                **os.environ,
                "HOOK": hook or self.hook,
                "PYTHONPATH": str(self.package),
                **(environment or {}),
            },
            capture_output=True,
            text=True,
            check=True,
        )
        pid, _, seen = done.stdout.partition("\n")
        return int(pid), json.loads(seen)

    def finds(
        self,
        argv: Sequence[str],
        command: Sequence[str],
        hook: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """AssertionError if the hook does not see the borgmatic that `argv` runs."""
        pid, seen = self.see([*argv, *OPTIONS], hook, environment)
        assert seen == [pid, list(command), list(OPTIONS)]
        # And that command calls it, from anywhere.
        again = {**os.environ, "HOOK": "true", "PYTHONPATH": str(self.package)}
        subprocess.run(command, cwd="/", env=again, check=True, capture_output=True)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["borgmatic", ".borgmatic-wrapped", ".borgmatic-real"])
def test_a_script_is_found(place: Place, name: str) -> None:
    script = place.script(name)
    place.finds([script], [sys.executable, script])
    place.finds([sys.executable, script], [sys.executable, script])


@pytest.mark.timeout(60)
def test_options_of_its_python_are_part_of_how_it_is_called(place: Place) -> None:
    # As Fedora has it.
    script = place.script("borgmatic", f"#!{sys.executable} -sB")
    place.finds([script], [sys.executable, "-sB", script])
    options = ["-W", "ignore", "-Xutf8", "-bB", "--check-hash-based-pycs", "default"]
    place.finds([sys.executable, *options, script], [sys.executable, *options, script])


@pytest.mark.timeout(60)
def test_a_script_whose_python_is_searched_for_is_called_with_the_one_that_was_found(
    place: Place,
) -> None:
    script = place.script("borgmatic", "#!/usr/bin/env python3")
    found = place.root / "pythons" / "python3"
    found.parent.mkdir()
    found.symlink_to(sys.executable)
    path = {"PATH": f"{found.parent}:{os.environ['PATH']}"}
    place.finds([script], [str(found), script], environment=path)


@pytest.mark.timeout(60)
def test_a_script_that_is_named_from_a_directory_can_be_called_from_another(place: Place) -> None:
    script = place.script("borgmatic")
    place.finds(["bin/borgmatic"], [sys.executable, script])
    elsewhere = f"cd /; {place.hook}"
    place.finds([sys.executable, "bin/borgmatic"], [sys.executable, script], elsewhere)


@pytest.mark.timeout(60)
def test_a_link_with_a_suffix_is_found(place: Place) -> None:
    # As `pipx install --suffix=@1.9` makes it.
    script = place.script("borgmatic")
    link = place.root / "borgmatic@1.9"
    link.symlink_to(script)
    place.finds([str(link)], [sys.executable, str(link)])


@pytest.mark.timeout(60)
def test_a_module_is_found(place: Place) -> None:
    place.module()
    for words in (["-m", borgmatic.MODULE], [f"-m{borgmatic.MODULE}"], ["-Bm", borgmatic.MODULE]):
        command = [sys.executable, *words]
        place.finds(command, command)


@pytest.mark.timeout(60)
def test_the_file_of_the_module_is_found(place: Place) -> None:
    command = [sys.executable, str(place.module())]
    place.finds(command, command)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "between",
    [
        "timeout 60",
        "env A=b",
        "nice",
        "setpriv --no-new-privs",
        "sh -c '\"$@\"; exit $?' borgmatic",
        "timeout 60 sh -c '\"$@\"; exit $?' sh timeout 60",
        pytest.param(
            "sudo -n -E",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="sudo asks others for a password"),
        ),
    ],
)
def test_what_is_between_it_and_us_or_above_it_does_not_hide_it(place: Place, between: str) -> None:
    script = place.script("borgmatic")
    command = [sys.executable, script]
    place.finds([script], command, f"{between} {place.hook}")
    if not between.startswith("sudo"):
        # That sets PATH and more.
        place.finds([*shlex.split(between), script], command)


@pytest.mark.timeout(60)
def test_the_nearest_is_the_one_that_runs_us(place: Place) -> None:
    outer = place.script("borgmatic")
    inner = place.script(".borgmatic-wrapped")
    pid, seen = place.see(
        [outer, "first"], f"HOOK={shlex.quote(place.hook)} {inner} second | tail -n 1"
    )
    assert seen[0] != pid
    assert seen[1:] == [[sys.executable, inner], ["second"]]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "argv",
    [
        ["sh", "-c", "echo $$; HOOK; exit $?", "borgmatic"],
        ["sh", "-c", "echo $$; HOOK; exit $? # borgmatic create"],
        ["sh", "WRAPPER"],
        ["WRAPPER"],
        ["PYTHON", "EDITOR", "borgmatic"],
        ["PYTHON", "EDITOR", "/usr/bin/borgmatic"],
        ["PYTHON", "EDITOR", "-m", "borgmatic.commands.borgmatic"],
        ["PYTHON", "EDITOR", "/etc/borgmatic"],
        ["PYTHON", "-c", "CODE", "borgmatic"],
        ["PYTHON", "-Bc", "CODE", "/usr/bin/borgmatic"],
        ["PYTHON", "-m", "borgmatic_exporter"],
    ],
)
def test_a_word_alone_makes_no_borgmatic(place: Place, argv: list[str]) -> None:
    # A script of an operator, an editor, another package.
    (place.root / "borgmatic").write_text(f"echo $$; {place.hook}; exit $?")
    wrapper = place.root / "bin" / "borgmatic"
    wrapper.parent.mkdir()
    wrapper.write_text(f"#!/bin/sh\necho $$; {place.hook}; exit $?")
    wrapper.chmod(0o755)
    editor = place.root / "vim"
    editor.write_text(BORGMATIC)
    place.package.mkdir()
    (place.package / "borgmatic_exporter.py").write_text(BORGMATIC)
    words = {
        "PYTHON": sys.executable,
        "WRAPPER": str(wrapper),
        "EDITOR": str(editor),
        "CODE": BORGMATIC,
    }
    argv = [words.get(word, word.replace("HOOK", place.hook)) for word in argv]
    _, seen = place.see(argv)
    assert seen is None


@pytest.mark.timeout(60)
def test_a_process_that_has_another_title_is_passed_over(place: Place) -> None:
    # What setproctitle(3) does: one word is left.
    script = place.script("borgmatic")
    titled = place.root / "titled"
    titled.write_text(
        "import ctypes, os, subprocess, sys\n"
        "print(os.getpid(), flush=True)\n"
        "words = open('/proc/self/cmdline', 'rb').read()\n"
        "fields = open('/proc/self/stat').read().rpartition(')')[2].split()\n"
        "start, end = int(fields[45]), int(fields[46])\n"
        "title = b'borgmatic: creating'.ljust(end - start, b'\\0')\n"
        "ctypes.memmove(start, title, end - start)\n"
        "subprocess.run(os.environ['HOOK'], shell=True, check=True)\n"
    )
    _, seen = place.see([sys.executable, str(titled), script])
    assert seen is None
    # The borgmatic above it is still found.
    hook = f"{shlex.join([sys.executable, str(titled), script])} | tail -n 1"
    pid, seen = place.see([script], f"HOOK={shlex.quote(place.hook)} {hook}")
    assert seen[0] == pid


def test_a_process_that_can_not_be_read_is_passed_over(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    # /proc that is mounted with hidepid, or one that has just ended.
    def refused(process: psutil.Process) -> list[str]:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "cmdline", refused)
    assert borgmatic.running() is None


@pytest.mark.timeout(60)
def test_the_first_process_of_a_container_can_be_it(place: Place) -> None:
    script = place.script("borgmatic")
    namespace = ["unshare", "--fork", "--pid", "--mount-proc"]
    if os.geteuid() != 0:
        namespace.append("--map-root-user")
    place.finds([*namespace, script], [sys.executable, script])
