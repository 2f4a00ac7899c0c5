"""The guard is on guard before VictoriaLogs is stopped, or there is no stop."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.stop_window import guard, launch

READY = "from vl_borg_hooks.stop_window import guard; guard.on_guard()"


def python(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(lines)]


def test_the_run_goes_on_only_when_the_guard_says_that_it_waits(tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    guard._start_process(
        python("import pathlib, time", f"pathlib.Path({str(reached)!r}).touch()", READY),
        tmp_path / "guard.log",
    )
    assert reached.exists()


def test_a_guard_that_ends_at_once_is_none_and_its_last_words_are_told(tmp_path: Path) -> None:
    log = tmp_path / "guard.log"
    log.write_text("what an earlier guard said\n")
    with pytest.raises(OperatorError, match="did not start: there is no password"):
        guard._start_process(python("raise SystemExit('there is no password')"), log)
    assert log.read_text() == "what an earlier guard said\nthere is no password\n"
    with pytest.raises(OperatorError, match="did not start; to see why"):
        guard._start_process(python("raise SystemExit(1)"), log)


def test_what_a_guard_reports_is_kept_for_us_only_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "guard.log"
    guard._start_process(python(READY, "import sys", "print('one', file=sys.stderr)"), log)
    assert log.stat().st_mode & 0o077 == 0
    deadline = time.monotonic() + 10
    while log.read_text() != "one\n":
        assert time.monotonic() < deadline, log.read_text()
    monkeypatch.setattr(guard, "LARGEST_LOG", 3)
    guard._start_process(python(READY), log)
    assert log.read_text() == ""


def test_a_guard_that_is_never_ready_is_none_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "ARM_SECONDS", 0.1)
    marker = str(tmp_path / "this-guard")
    with pytest.raises(OperatorError, match="did not start"):
        guard._start_process(
            [*python("import time; time.sleep(600)"), marker], tmp_path / "guard.log"
        )
    deadline = time.monotonic() + 10
    while any(marker in (process.info["cmdline"] or []) for process in _processes()):
        assert time.monotonic() < deadline, "it lives on"


def _processes() -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def test_a_guard_whose_starter_has_died_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "@nobody-listens-here")
    guard.on_guard()
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/socket")
    guard.on_guard()


def test_a_unit_becomes_the_guard_in_our_environment_and_nothing_of_it_is_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `=`, a line break, bytes that are no text, and more than a pipe takes without being asked.
    monkeypatch.setitem(os.environb, b"SECRET", b"a=b\nc\xff")
    monkeypatch.setenv("LONG", "x" * 100_000)
    monkeypatch.setenv("NOTIFY_SOCKET", "@borgmatic's own")
    pipe = tmp_path / "guard.environment"
    with guard._our_environment(pipe):
        assert pipe.is_fifo()
        assert pipe.stat().st_mode & 0o077 == 0
        show = python("import os", "print({**os.environb})")
        done = subprocess.run(
            [sys.executable, "-I", "-S", launch.__file__, str(pipe), *show],
            env={"NOTIFY_SOCKET": "@systemd's", "OTHER": "of the unit"},
            capture_output=True,
            text=True,
            check=True,
        )
    found = eval(done.stdout)
    assert found == {**os.environb, b"NOTIFY_SOCKET": b"@systemd's"}
    assert found[b"SECRET"] == b"a=b\nc\xff"
    assert not pipe.exists()


def test_what_a_killed_run_left_of_the_pipe_is_in_nobodys_way(tmp_path: Path) -> None:
    pipe = tmp_path / "guard.environment"
    os.mkfifo(pipe)
    with guard._our_environment(pipe):
        pass
    assert not pipe.exists()


def test_an_environment_that_cannot_be_passed_on_is_no_guard(tmp_path: Path) -> None:
    with (
        pytest.raises(CommandFailed, match="could not create"),
        guard._our_environment(tmp_path / "nowhere" / "pipe"),
    ):
        pass
