"""The lease belongs to who archives: a borgmatic, a script, a shell, or nobody that can be seen."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.parts.waiting import wait_until
from vl_borg_hooks.runs import caller
from vl_borg_hooks.system import processes

pytestmark = pytest.mark.timeout(60)

# What a hook of ours sees, as JSON.
HOOK = """\
import dataclasses, json
from vl_borg_hooks.runs.caller import calling_process
print(json.dumps(dataclasses.asdict(calling_process())))
"""
# A script that calls hooks: it prints its id, and then what they see.
SHELL_SCRIPT = "echo $$; {hook}; {hook}; exit $?\n"
PYTHON_SCRIPT = """\
import os, subprocess
print(os.getpid(), flush=True)
for _ in range(2):
    subprocess.run({hook!r} + "; exit $?", shell=True, check=True)
"""


class Place:
    def __init__(self, root: Path) -> None:
        self.root = root
        hook = root / "hook.py"
        hook.write_text(HOOK)
        self.argv = [sys.executable, str(hook)]
        self.hook = shlex.join(self.argv)

    def script(self, text: str, hook: str = "") -> str:
        path = self.root / "backup"
        path.write_text(text.format(hook=hook or self.hook))
        return str(path)

    def run(self, argv: Sequence[str], **options: Any) -> list[Any]:
        """Run `argv` in a session of its own, as cron does; return what it prints, each a JSON."""
        done = subprocess.run(
            argv, capture_output=True, text=True, check=True, start_new_session=True, **options
        )
        return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def between(place: Place) -> list[str]:
    """What may be between a script and our hook."""
    found = [
        place.hook,
        f"sh -c {shlex.quote(place.hook + '; exit $?')}",
        f"timeout 60 {place.hook}",
        f"env A=b nice {place.hook}",
    ]
    return [*found, f"sudo -n {place.hook}"] if os.geteuid() == 0 else found


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("script", [SHELL_SCRIPT, PYTHON_SCRIPT])
def test_a_script_is_the_holder_whatever_is_between_it_and_us(
    place: Place, script: str, which: int
) -> None:
    ways = between(place)
    if which >= len(ways):
        pytest.skip("sudo asks others than root for a password")
    program = "sh" if script is SHELL_SCRIPT else sys.executable
    pid, first, second = place.run([program, place.script(script, ways[which])])
    assert (first["pid"], first["service"], first["is_limited"]) == (pid, "", False)
    # So the second call is the same caller's.
    assert (second["pid"], second["created"]) == (pid, first["created"])


def test_of_a_script_that_runs_another_the_outer_is_the_holder(place: Place) -> None:
    # Which of the two goes on to archive can't be seen: it is the one that lives longer.
    inner = place.script(SHELL_SCRIPT)
    outer, _, first, _ = place.run(["sh", "-c", f"echo $$; sh {inner}; exit $?"])
    assert first["pid"] == outer


def test_a_cron_job_of_one_line_is_the_holder(place: Place) -> None:
    pid, found = place.run(["sh", "-c", f"echo $$; {place.hook} && true"])
    assert found["pid"] == pid


def test_by_hand_the_shell_is_the_holder_for_a_limited_time(place: Place) -> None:
    text = f"echo $$\n{place.hook}\ntimeout 60 {place.hook}\n"
    for shell in (["sh"], ["bash", "--norc"], ["bash", "-i"]):
        pid, first, second = place.run(shell, input=text, env={**os.environ, "PS1": ""})
        assert (first["pid"], first["is_limited"]) == (pid, True)
        assert (second["pid"], second["is_limited"]) == (pid, True)


def test_a_script_that_is_called_by_hand_is_the_holder(place: Place) -> None:
    pid, first, _ = place.run(["sh"], input=f"sh {place.script(SHELL_SCRIPT)}\n")
    assert (first["pid"], first["is_limited"]) == (pid, False)


@pytest.mark.parametrize("wrapper", [[], ["timeout", "60"]])
def test_from_afar_nobody_is_known(place: Place, wrapper: list[str]) -> None:
    # As sshd and systemd start a command.
    (found,) = place.run([*wrapper, *place.argv])
    assert (found["pid"], found["service"], found["is_limited"]) == (0, "", True)


def test_a_borgmatic_is_the_holder_with_a_shell_that_has_ended_in_between(place: Place) -> None:
    borgmatic = place.root / "borgmatic"
    borgmatic.write_text(f"#!{sys.executable}\n" + PYTHON_SCRIPT.format(hook=place.hook))
    borgmatic.chmod(0o755)
    # Called by a script, which is not the holder.
    pid, first, second = place.run(["sh", "-c", f"{borgmatic}; exit $?"])
    assert (first["pid"], first["command"], first["is_limited"]) == (pid, "borgmatic", False)
    assert second["pid"] == pid


def test_a_person_is_told_by_a_shell_with_no_command(place: Place) -> None:
    for argv, expected in (
        (["sh"], True),
        (["bash", "--norc", "-i"], True),
        (["bash", "-ic", "read line; exit 0"], False),
        (["sh", "-c", "read line; exit 0"], False),
        (["sh", place.script("read line; exit 0\n")], False),
        ([sys.executable, "-"], False),
    ):
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        ) as process:
            seen = psutil.Process(process.pid)
            wait_until(lambda seen=seen, argv=argv: seen.cmdline() == argv, 30, str(argv))  # type: ignore[misc]
            found = processes.look(process.pid)
            assert found
            assert caller._is_for_a_person(found) is expected, argv
            process.kill()
