"""Signals that end us: at once if that is safe, afterwards if it is not, never lost."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.signals import Interrupted, failure

# Says where it is, and waits there for a line: the signal comes before the line.
CHILD = """\
import sys, time
from vl_borg_hooks.system import signals
def say(text):
    print(text, flush=True)
def wait(text):
    say(text)
    sys.stdin.readline()
signals.install()
try:
    {body}
    say("end")
except signals.Interrupted as error:
    say(f"interrupted: {{error.error.what}}")
"""

OUTSIDE = 'wait("ready"); say("went on")'
HELD = """
    with signals.held_back():
        wait("ready")
        say("went on")
    say("after the block")
"""
NESTED = """
    with signals.held_back():
        with signals.held_back():
            wait("ready")
        say("went on")
    say("after the block")
"""
FAILING = """
    try:
        with signals.held_back():
            wait("ready")
            raise KeyError
    except KeyError:
        say("went on")
    with signals.held_back():
        pass
"""


@contextmanager
def child(body: str) -> Iterator[subprocess.Popen[str]]:
    pipe = subprocess.PIPE
    argv = [sys.executable, "-u", "-c", CHILD.format(body=body.strip())]
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True) as process:
        yield process
        process.kill()


ENDING = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (OUTSIDE, []),
        (HELD, ["went on"]),
        (NESTED, ["went on"]),
        (FAILING, ["went on"]),
    ],
    ids=["outside", "held back", "held back twice", "held back and failing"],
)
def test_a_signal_interrupts_where_that_is_safe(
    number: signal.Signals, body: str, expected: list[str]
) -> None:
    with child(body) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        # A second one changes nothing while they are held back.
        if expected:
            process.send_signal(number)
        output, _ = process.communicate("go on\n", timeout=30)
        assert output.splitlines() == [*expected, f"interrupted: ended by {number.name}"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("body", [OUTSIDE, HELD, NESTED])
def test_nothing_is_raised_where_no_signal_came(body: str) -> None:
    with child(body) as process:
        output, _ = process.communicate("go on\n", timeout=30)
        assert output.splitlines()[-1] == "end"


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (Interrupted(signal.SIGTERM), "ended by SIGTERM"),
        (OSError("Stale file handle"), "unexpected OSError: Stale file handle"),
        (OperatorError("could not remove a file"), "could not remove a file"),
    ],
)
def test_what_fails_in_a_cleanup_does_not_hide_that_victorialogs_is_down(
    further: BaseException, said: str
) -> None:
    down = OperatorError("it did not come back", hint="run: fakectl start")
    down.instance, down.victorialogs = "default", "VICTORIALOGS IS DOWN"

    def fail() -> None:
        try:
            try:
                raise down
            finally:
                raise KeyError
        finally:
            raise further

    with pytest.raises(type(further)) as caught:
        fail()
    assert str(failure(caught.value)) == (
        f"default: it did not come back; and then {said}; VICTORIALOGS IS DOWN; run: fakectl start"
    )


def test_a_failure_that_knows_better_or_came_alone_is_told_as_it_is() -> None:
    alone = OperatorError("it failed", hint="try again")
    assert failure(alone) is alone
    later = OperatorError("the undo failed")
    later.victorialogs = "VictoriaLogs is running"
    earlier = OperatorError("it failed")
    earlier.victorialogs = "VICTORIALOGS IS DOWN"
    later.__context__ = earlier
    assert str(failure(later)) == "the undo failed; VictoriaLogs is running"
