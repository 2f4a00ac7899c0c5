"""The systemd that the tests boot: real behaviour, and nothing of the machine's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.parts.ports import free_port
from tests.parts.systemd import Systemd, remove_leftovers, victoria_logs_unit
from tests.parts.victoria_logs import LogServer
from tests.parts.waiting import wait_until


def test_only_the_tests_own_units_exist(systemd: Systemd) -> None:
    listed = systemd.systemctl("list-unit-files", "--no-legend", "--plain").stdout.splitlines()
    # Units that systemd makes itself, such as mounts and the root slice, have no file of ours.
    made = {line.split()[0] for line in listed if line.split()[1] not in ("generated", "transient")}
    assert {name for name in made if not name.endswith((".mount", ".device"))} == {
        path.name for path in systemd.unit_directory.iterdir()
    }
    # The second guard: even with other search paths it would find nothing of the machine's.
    done = systemd.run_as_service(
        ["/bin/ls", "-A", "/usr/lib/systemd/system", "/usr/lib/tmpfiles.d"]
    )
    assert done.stdout.split() == ["/usr/lib/systemd/system:", "/usr/lib/tmpfiles.d:"]


def test_a_server_is_started_restarted_and_stopped(
    systemd: Systemd, executable: Path, tmp_path: Path
) -> None:
    port, unit = free_port(), f"server-{executable.stem}.service"
    server = LogServer(f"http://127.0.0.1:{port}")
    text = victoria_logs_unit(executable, tmp_path / "data", port, restart="on-failure")
    systemd.write_unit(unit, text)
    systemd.systemctl("start", unit)
    server.wait_healthy()
    first = systemd.show(unit, "MainPID")

    systemd.systemctl("kill", "--signal=KILL", unit)
    wait_until(lambda: systemd.show(unit, "NRestarts") == "1", 30, "the service is restarted")
    server.wait_healthy()
    assert systemd.show(unit, "MainPID") != first
    server.ingest([{"host": "a", "_msg": "x"}])

    systemd.systemctl("stop", unit)
    assert not server.healthy()
    assert systemd.show(unit, "ActiveState") == "inactive"
    assert systemd.show(unit, "Result") == "success"
    assert len(list((tmp_path / "data").glob("partitions/*/datadb/*/"))) == 1


def test_a_program_with_the_wrappers_in_its_path_talks_to_it(
    systemd: Systemd, tmp_path: Path
) -> None:
    systemd.write_unit("wrapped.service", "[Service]\nExecStart=/bin/sleep infinity\n")
    environment = {"PATH": systemd.path}

    def systemctl(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["systemctl", *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    assert systemctl("is-active", "wrapped.service").stdout == "inactive\n"
    assert systemctl("is-active", "wrapped.service").returncode == 3
    assert systemctl("start", "wrapped.service").returncode == 0
    assert systemd.show("wrapped.service", "ActiveState") == "active"
    assert systemctl("stop", "wrapped.service").returncode == 0
    assert "not found" in systemctl("start", "no such $(unit).service").stderr


def test_a_transient_timer_fires(systemd: Systemd, tmp_path: Path) -> None:
    command = ["systemd-run", "--on-active=0.2", "--timer-property=AccuracySec=10ms"]
    command += ["touch", str(tmp_path / "fired")]
    subprocess.run(command, env={"PATH": systemd.path}, check=True, capture_output=True)
    wait_until((tmp_path / "fired").exists, 30, "the timer fires")


def test_a_transient_timer_outlives_a_reload_and_can_be_stopped(
    systemd: Systemd, tmp_path: Path
) -> None:
    command = ["systemd-run", "--on-active=1h", "--unit=later", "touch", str(tmp_path / "fired")]
    subprocess.run(command, env={"PATH": systemd.path}, check=True, capture_output=True)
    systemd.systemctl("daemon-reload")
    assert systemd.show("later.timer", "ActiveState") == "active"
    systemd.systemctl("stop", "later.timer")
    assert systemd.show("later.timer", "ActiveState") == "inactive"


def test_a_command_as_service(systemd: Systemd) -> None:
    script = 'echo "$X|$1"; cat /proc/self/cgroup >&2; exit 3'
    done = systemd.run_as_service(["/bin/sh", "-c", script, "sh", "a $HOME  b"], {"X": "y z"})
    assert done.returncode == 3
    assert done.stdout == "y z|a $HOME  b\n"
    assert "/system.slice/run-" in done.stderr
    killed = systemd.run_as_service(["/bin/sh", "-c", "kill -9 $$"])
    assert killed.returncode == -signal.SIGKILL
    sandboxed = systemd.run_as_service(
        ["/bin/sh", "-c", "touch /usr/x"], properties={"ProtectSystem": "full"}
    )
    assert "Read-only file system" in sandboxed.stderr


def test_nothing_of_it_outlives_the_tests(tmp_path: Path) -> None:
    if reason := Systemd.why_not():
        pytest.skip(reason)
    script = """
        import os, signal, sys
        from tests.parts.systemd import Systemd
        with Systemd() as systemd:
            systemd.write_unit("s.service", "[Service]\\nExecStart=/bin/sleep 4321.25\\n")
            systemd.systemctl("start", "s.service")
            print(systemd._directory, systemd._pid_1(), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    top = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "PYTHONPATH": str(top), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pid = int(done.stdout.split()[1])

    def command_lines() -> list[str]:
        found = []
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                found.append(file.read_text())
            except OSError:  # it has ended since
                continue
        return found

    def gone() -> bool:
        exists = Path(f"/proc/{pid}/exe").exists()  # a zombie that waits for its parent has none
        return not exists and "/bin/sleep\x004321.25\x00" not in command_lines()

    wait_until(gone, 30, "systemd and its service are gone")
    remove_leftovers(Path(done.stdout.split()[0]))
