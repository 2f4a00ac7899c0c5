"""External commands: what goes in arrives unchanged, what goes wrong is one line."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.parts.waiting import wait_until
from vl_borg_hooks.errors import CommandFailed
from vl_borg_hooks.system import commands

SHOW = "import json, sys; print(json.dumps(sys.argv[1:]))"
HOSTILE = [
    "plain",
    "two words",
    "",
    'it\'s "quoted"',
    "a\nb\n",
    "$(touch /tmp/never) `id` $HOME ${X}",
    "*?[a-z]{a,b}~",
    "-rf",
    "--",
    "a;b|c&d>e<f#g!h\\i",
    "\t \x1b[0m",
    "ünïcode \u2028",
]


def script(path: Path, content: str) -> str:
    path.write_text(content)
    path.chmod(0o755)
    return str(path)


def test_every_argument_arrives_unchanged() -> None:
    printed = commands.run([sys.executable, "-c", SHOW, *HOSTILE])
    assert json.loads(printed.stdout) == HOSTILE


def test_an_argument_that_is_no_utf8_arrives_unchanged() -> None:
    # Such as the directory that `restore --from` names.
    name = os.fsdecode(b"a\xff\xfeb")
    program = "import os, sys; print(os.fsencode(sys.argv[1]).hex())"
    printed = commands.run([sys.executable, "-c", program, name])
    assert printed.stdout.strip() == "61fffe62"


def test_output_and_exit_status_are_returned() -> None:
    completed = commands.run(["sh", "-c", "echo out; echo err >&2; exit 3"], ok=(0, 3))
    assert completed == commands.Completed(3, "out\n", "err\n")
    assert completed.last_line == "err"
    assert commands.Completed(7, " \n", "").last_line == "exit status 7"
    assert commands.Completed(7, "first\nlast\n", "").last_line == "last"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["sh", "-c", "echo first >&2; echo why >&2; exit 2"], "failed: why"),
        (["sh", "-c", "echo only out; exit 2"], "failed: only out"),
        (["sh", "-c", "exit 9"], "failed: exit status 9"),
        (["sh", "-c", "kill -KILL $$"], "failed: exit status -9"),
        (["no-such-command-of-ours"], "the command no-such-command-of-ours was not found"),
        (["/no/such/command"], "the command /no/such/command was not found"),
        (["/etc/passwd"], "the command /etc/passwd was not found"),
        (["/tmp"], "the command /tmp was not found"),
    ],
)
def test_a_failure_is_one_line_with_the_commands_own_words(argv: list[str], expected: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        commands.run(argv)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["echo no interpreter line\n", "#!/no/such/interpreter\n", "\x7fELF nonsense"]
)
def test_a_program_that_cannot_be_executed_is_a_failed_command(
    tmp_path: Path, content: str
) -> None:
    program = script(tmp_path / "program", content)
    with pytest.raises(CommandFailed) as caught:
        commands.run([program])
    assert program in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_argument_that_no_program_can_have_is_a_failed_command() -> None:
    with pytest.raises(CommandFailed):
        commands.run(["echo", "a\0b"])


@pytest.mark.timeout(30)
def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed, match=r"sleep 60 took longer than 0.3 seconds"):
        commands.run(["sleep", "60"], timeout=0.3)
    assert time.monotonic() - started < 10


@pytest.mark.timeout(60)
def test_a_limit_is_exact_and_costs_no_time() -> None:
    """sh's own limits are looked at every 0.1 s, which in the stop window would be downtime."""

    def seconds(program: str, timeout: float) -> float:
        started = time.monotonic()
        with contextlib.suppress(commands.TookTooLong):
            commands.run([program, "60"], timeout=timeout)
        return time.monotonic() - started

    # The best of several: the machine may be busy.
    assert min(seconds("true", 60) for _ in range(10)) < 0.05
    assert 0.15 <= min(seconds("sleep", 0.15) for _ in range(10)) < 0.19


@pytest.mark.timeout(60)
def test_a_command_that_does_not_end_when_told_keeps_nobody_waiting() -> None:
    started = time.monotonic()
    with pytest.raises(CommandFailed, match="took longer than"):
        commands.run(["sh", "-c", "trap '' TERM; exec sleep 20"], timeout=0.3)
    assert time.monotonic() - started < 15


@pytest.mark.timeout(30)
def test_a_server_that_a_command_leaves_running_keeps_nobody_waiting() -> None:
    started = time.monotonic()
    completed = commands.run(["sh", "-c", "sleep 20 & echo $!"])
    assert time.monotonic() - started < 10
    pid = int(completed.stdout)
    assert psutil.pid_exists(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.timeout(30)
def test_a_command_has_no_input_to_wait_for() -> None:
    assert commands.run(["cat"]).stdout == ""


def test_output_comes_as_it_is_printed(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pieces: list[str] = []

    def take(text: str) -> None:
        pieces.append(text)
        if "".join(pieces) == "50%\r":
            # Only what was seen without a line's end lets the command go on.
            fifo.write_text("go\n")

    program = f"printf '50%%\\r'; read line < '{fifo}'; echo $line; echo complaint >&2"
    completed = commands.run(["sh", "-c", program], on_output=take)
    assert "".join(pieces) == "50%\rgo\n"
    assert completed.stderr == "complaint\n"


def test_messages_of_commands_are_in_english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert commands.run(["sh", "-c", "echo $LC_ALL"]).stdout == "C\n"


def test_bytes_that_are_no_text_are_shown_and_not_fatal() -> None:
    completed = commands.run(["printf", r"a\377b"])
    assert os.fsencode(completed.stdout) == b"a\xffb"


START_AND_SAY = """\
import sys
from vl_borg_hooks.system import commands, processes, signals
signals.install()
start = {"run": commands.run, "beside": processes.beside}[sys.argv[2]]
started = start(["sh", "-c", "echo $$ > " + sys.argv[1] + "; exec sleep 60"], dies_with_us=True)
started.wait()
"""
ENDING = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("start", "number"), [*(("run", number) for number in ENDING), ("beside", signal.SIGKILL)]
)
def test_what_we_started_ends_with_us(tmp_path: Path, start: str, number: signal.Signals) -> None:
    pid_file = tmp_path / "pid"
    argv = [sys.executable, "-c", START_AND_SAY, str(pid_file), start]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as ours:
        pid = int(wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), 20, "pid"))
        child = psutil.Process(pid)
        ours.send_signal(number)
        ours.wait(10)

    def ended() -> bool:
        return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE

    wait_until(ended, 30, "the end of the command")
