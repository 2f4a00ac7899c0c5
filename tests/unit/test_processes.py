"""Processes that run beside us: they can be talked to, and can outlive us."""

from __future__ import annotations

import os

import psutil
import pytest

from tests.parts.waiting import wait_until
from vl_borg_hooks.system import processes


@pytest.mark.timeout(30)
def test_what_runs_beside_us_can_be_talked_to() -> None:
    with processes.beside(["cat"], talks=True) as cat:
        assert cat.stdin is not None
        assert cat.stdout is not None
        cat.stdin.write("a question\n")
        cat.stdin.flush()
        assert cat.stdout.readline() == "a question\n"
        assert cat.poll() is None
        cat.stdin.close()
        assert cat.wait() == 0


@pytest.mark.timeout(30)
def test_what_outlives_us_has_a_session_a_directory_and_variables_of_its_own() -> None:
    with processes.beside(["sleep", "60"], outlives_us=True, environment={"OURS": "x y"}) as guard:
        try:
            process = psutil.Process(guard.pid)
            # The last that the kernel makes of a new program: it has its name before.
            environment = wait_until(process.environ, 10, "the command")
            wait_until(lambda: process.name() == "sleep", 10, "the command's name")
            assert os.getsid(guard.pid) == guard.pid
            assert process.cwd() == "/"
            assert environment["OURS"] == "x y"
            assert environment["PATH"] == os.environ["PATH"]
        finally:
            guard.kill()
