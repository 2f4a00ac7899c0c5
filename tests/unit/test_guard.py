"""The guard is on guard before VictoriaLogs is stopped, or there is no stop."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import psutil
import pytest

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.stop_window import guard

READY = "from vl_borg_hooks.stop_window import guard; guard.on_guard()"


def python(*lines: str) -> list[str]:
    return [sys.executable, "-c", "\n".join(lines)]


def test_the_run_goes_on_only_when_the_guard_says_that_it_waits(tmp_path: Path) -> None:
    reached = tmp_path / "reached"
    guard._start_process(
        python("import pathlib, time", f"pathlib.Path({str(reached)!r}).touch()", READY)
    )
    assert reached.exists()


def test_a_guard_that_ends_at_once_is_none() -> None:
    with pytest.raises(OperatorError, match="did not start"):
        guard._start_process(python("raise SystemExit(1)"))


def test_a_guard_that_is_never_ready_is_none_and_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "ARM_SECONDS", 0.1)
    marker = str(tmp_path / "this-guard")
    with pytest.raises(OperatorError, match="did not start"):
        guard._start_process([*python("import time; time.sleep(600)"), marker])
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
