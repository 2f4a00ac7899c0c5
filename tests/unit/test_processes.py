"""Processes that run beside us: they can be talked to, and can outlive us."""

from __future__ import annotations

import os
import platform
import signal
from pathlib import Path

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


# What the kernel does not tell yet, nobody is asked for: the service manager is.
TELLS = tuple(map(int, platform.release().split(".")[:2])) >= (6, 15)


@pytest.mark.skipif(not TELLS, reason="Linux before 6.15 does not tell it")
@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["true"], 0), (["sh", "-c", "exit 255"], 255), (["sh", "-c", "kill -KILL $$"], -9)],
)
def test_how_a_process_has_ended_is_known_later(argv: list[str], expected: int) -> None:
    with processes.beside(["sh", "-c", 'read go; exec "$@"', "sh", *argv], talks=True) as process:
        ended = processes.watch(process.pid)
        assert ended
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
        process.wait()
    assert ended() == expected
    assert ended() == expected


@pytest.mark.skipif(not TELLS, reason="Linux before 6.15 does not tell it")
@pytest.mark.timeout(30)
def test_how_a_process_has_ended_is_not_known_before_its_parent_has_asked() -> None:
    with processes.beside(["sh", "-c", "read go; exit 7"], talks=True) as process:
        ended = processes.watch(process.pid)
        assert ended
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
        zombie = psutil.Process(process.pid)
        wait_until(lambda: zombie.status() == psutil.STATUS_ZOMBIE, 10, "its end")
        assert ended() is None
        process.wait()
        assert ended() == 7


@pytest.mark.skipif(not TELLS, reason="Linux before 6.15 does not tell it")
def test_how_a_process_that_runs_will_end_is_not_known() -> None:
    ended = processes.watch(os.getpid())
    assert ended
    assert ended() is None


def test_a_process_that_is_not_there_is_not_watched() -> None:
    with processes.beside(["true"]) as process:
        process.wait()
    assert processes.watch(process.pid) is None


@pytest.mark.timeout(30)
def test_what_a_process_prints_is_waited_for_only_so_long() -> None:
    assert processes.output(processes.beside(["echo", "yes"], talks=True), 10) == "yes\n"
    slow = processes.beside(["sleep", "60"], talks=True)
    assert processes.output(slow, 0.1) == ""
    assert slow.returncode == -signal.SIGKILL


def cgroup(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str, holds: str, pid: int
) -> None:
    """Have us be in the control group that `lines` say, with `pid` in the directory `holds`."""
    (tmp_path / "cgroup").write_text("".join(f"{line}\n" for line in lines))
    monkeypatch.setattr(processes, "CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(processes, "CGROUPS", (f"{tmp_path}/fs", f"{tmp_path}/fs/systemd"))
    directory = tmp_path / "fs" / holds
    directory.mkdir(parents=True)
    (directory / "cgroup.procs").write_text(f"{pid}\n")


SERVICE = "system.slice/plain.service"
USERS = "user.slice/user-1000.slice/user@1000.service/app.slice/plain.service"
# Its own hierarchy, as before version 2 and beside it.
OWN = ["0::/", "3:cpu:/", f"1:name=systemd:/{SERVICE}"]


@pytest.mark.parametrize(
    ("lines", "holds", "expected"),
    [
        ([f"0::/{SERVICE}"], SERVICE, SERVICE),
        (OWN, f"systemd/{SERVICE}", f"systemd/{SERVICE}"),
        # A service that has groups of its own.
        ([f"0::/{SERVICE}/deeper"], f"{SERVICE}/deeper", SERVICE),
        ([f"0::/{USERS}"], USERS, USERS),
    ],
)
def test_the_service_that_runs_us_is_known_by_its_control_group(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, lines: list[str], holds: str, expected: str
) -> None:
    cgroup(monkeypatch, tmp_path, *lines, holds=holds, pid=os.getpid())
    assert processes.service_directory() == tmp_path / "fs" / expected


@pytest.mark.parametrize(
    "group",
    [
        # A session, a terminal of a user's desktop, a container, none.
        "user.slice/user-0.slice/session-3.scope",
        "user.slice/user-1000.slice/user@1000.service/app.slice/vte-spawn.scope",
        "system.slice/docker-0123.scope",
        "here",
    ],
)
def test_what_is_no_service_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, group: str
) -> None:
    cgroup(monkeypatch, tmp_path, f"0::/{group}", holds=group, pid=os.getpid())
    assert processes.service_directory() is None


def test_a_service_whose_control_group_is_not_to_be_seen_is_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cgroup(monkeypatch, tmp_path, f"0::/{SERVICE}", holds=SERVICE, pid=2**30)
    assert processes.service_directory() is None
