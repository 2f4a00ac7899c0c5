"""A real systemd that knows only the test's units, beside whatever runs the machine.

It is PID 1 of a PID namespace of its own, with mount, cgroup and UTS namespaces to match. It must
never load the system's units: systemd-tmpfiles would empty the machine's /tmp. So its search paths
name the test's directories only, and in its mount namespace the system's directories of units,
generators and tmpfiles rules are covered by empty ones as well.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import final

from tests.parts.processes import spawn
from tests.parts.victoria_logs import server_argv
from tests.parts.waiting import wait_until

_BINARY = Path("/usr/lib/systemd/systemd")
_JOURNALD = _BINARY.with_name("systemd-journald")
_TOOLS = ("unshare", "nsenter", "setpriv", "mount", "systemctl", "systemd-run", "journalctl")

# $1 working directory, $2 name of the cgroup. Enters a cgroup of its own first, since that is what
# a new cgroup namespace takes for its root. cgroup2 is mounted afresh: it works on machines with
# the old hierarchies, or with none mounted, too.
ENTER_CGROUP = """
set -eu
mount -t cgroup2 cgroup2 "$1/cgroup"
mkdir "$1/cgroup/$2"
echo $$ > "$1/cgroup/$2/cgroup.procs"
umount "$1/cgroup"
exec unshare --pid --cgroup --uts --fork --kill-child --mount-proc sh "$1/boot" "$1"
"""

# In memory, and of what is logged here only: not of the kernel, and not passed on to the machine.
_JOURNALD_SETTINGS = "[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=no\\nForwardToSyslog=no\\n"

# $1 working directory. The variable `container` keeps systemd's hands off the kernel's settings.
_BOOT = f"""
set -eu
[ -d /sys/fs/cgroup ] || {{ echo "no /sys/fs/cgroup" >&2; exit 1; }}
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system /run/systemd/transient /run/systemd/system.control \\
    /run/systemd/journald.conf.d
printf '{_JOURNALD_SETTINGS}' > /run/systemd/journald.conf.d/tests.conf
for directory in /etc/systemd /usr/local/lib/systemd /usr/lib/systemd/system \\
    /usr/lib/systemd/system-generators /usr/lib/systemd/system-environment-generators \\
    /usr/lib/tmpfiles.d /etc/tmpfiles.d
do
    [ ! -d "$directory" ] || mount -t tmpfs -o mode=755,ro tmpfs "$directory"
done
run=/run/systemd
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=vl-borg-hooks-test \\
    SYSTEMD_UNIT_PATH="$run/system.control:$run/transient:$run/system:$1/units" \\
    SYSTEMD_GENERATOR_PATH="$1/empty" SYSTEMD_ENVIRONMENT_GENERATOR_PATH="$1/empty" \\
    {_BINARY} --system --unit=tests.target --log-target=null --show-status=no
"""

# $1 working directory, $2 name of the cgroup.
_REMOVE_CGROUP = """
mount -t cgroup2 cgroup2 "$1/cgroup" && find "$1/cgroup/$2" -depth -type d -exec rmdir {} +
"""

# $PWD has to be entered again in the other mount namespace, or programs there have no name for it.
_WRAPPER = """#!/bin/sh
exec nsenter -t {pid} -p -m -- env -C "$PWD" {program} "$@"
"""

# The default dependencies of services and timers name these.
_TARGETS = ("tests", "sysinit", "basic", "shutdown", "timers", "time-set", "time-sync")


@final
class Systemd:
    """Boots at the start of the context, ends with everything it runs at the end of it.

    `wrapper_directory`, first in a program's PATH, makes its systemctl and systemd-run talk to this
    systemd. Filesystems mounted after the boot may be invisible to its services.
    """

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="vl-borg-hooks-systemd-"))
        self.wrapper_directory = self._directory / "bin"
        self.unit_directory = self._directory / "units"
        self._runs = 0
        self._child: subprocess.Popen[bytes] | None = None

    @staticmethod
    def why_not() -> str:
        """Why it can't be had on this machine, or an empty string if nothing speaks against it."""
        if os.geteuid() != 0:
            return "systemd in a namespace needs root"
        missing = [tool for tool in (*_TOOLS, str(_BINARY)) if shutil.which(tool) is None]
        return f"not installed: {', '.join(missing)}" if missing else ""

    @property
    def path(self) -> str:
        """A value of PATH with the wrappers first."""
        return f"{self.wrapper_directory}:{os.environ.get('PATH', os.defpath)}"

    def __enter__(self) -> Systemd:
        for name in ("bin", "units", "empty", "cgroup"):
            (self._directory / name).mkdir()
        for target in _TARGETS:
            text = "[Unit]\nDefaultDependencies=no\n"
            (self.unit_directory / f"{target}.target").write_text(text)
        (self._directory / "enter-cgroup").write_text(ENTER_CGROUP)
        (self._directory / "boot").write_text(_BOOT)
        script = [str(self._directory / "enter-cgroup"), str(self._directory)]
        script.append(self._directory.name)  # of the cgroup
        # Not private: filesystems that the machine mounts later are to be seen, if it shares them.
        argv = ["unshare", "--mount", "--propagation", "slave", "sh", *script]
        self._child = spawn(argv, self._directory / "log")
        try:
            pid = wait_until(self._pid_1, 30, "systemd is PID 1 of its namespace")
            for program in ("systemctl", "systemd-run", "journalctl"):
                wrapper = self.wrapper_directory / program
                wrapper.write_text(_WRAPPER.format(pid=pid, program=shutil.which(program)))
                wrapper.chmod(0o755)
            wait_until(self._booted, 30, "systemd has booted")
        except BaseException:
            self.close()
            raise
        return self

    def _pid_1(self) -> int | None:
        """The machine's number for PID 1 of the namespace, as soon as that is systemd."""
        assert self._child is not None
        if self._child.poll() is not None:
            raise RuntimeError(f"no systemd: {(self._directory / 'log').read_text()}")
        pid = self._child.pid
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            try:
                if Path(f"/proc/{child}/exe").samefile(_BINARY):
                    return int(child)
            except OSError:  # a child of the scripts, which has ended since
                continue
        return None

    def _booted(self) -> bool:
        return self.systemctl("is-active", "tests.target", check=False).returncode == 0

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill systemd with everything it started; safe to call again."""
        if self._child is None:
            return
        # --kill-child makes the kernel end PID 1, and so the whole namespace, with `unshare`.
        self._child.kill()
        self._child.wait()
        self._child = None
        remove_leftovers(self._directory)

    def write_unit(self, name: str, text: str) -> Path:
        """Write or replace a unit file and have systemd load it; returns its path."""
        path = self.unit_directory / name
        path.write_text(text)
        self.systemctl("daemon-reload")
        return path

    def systemctl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run systemctl; RuntimeError with what it said if it fails, unless `check` is off."""
        return self._run("systemctl", *arguments, check=check)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit, as text."""
        return self.systemctl("show", f"--property={name}", "--value", unit).stdout.strip()

    def start_journal(self) -> None:
        """Start a real journald; from then on, services log to it that have `journal` as an output."""
        argv = ["systemd-run", "--unit=journald", "--quiet", "--property=Type=notify"]
        if self.show("journald.service", "ActiveState") != "active":
            self._run(*argv, "--property=DefaultDependencies=no", str(_JOURNALD), check=True)

    def journal(self, *arguments: str) -> list[str]:
        """The messages in the journal, as `journalctl` with `arguments` selects them."""
        self._run("journalctl", "--sync", check=True)
        where = ("--directory=/run/log/journal", "--output=cat", "--quiet")
        return self._run("journalctl", *where, *arguments, check=True).stdout.splitlines()

    def run_as_service(
        self,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as a transient service, with systemd's short environment.

        `properties` are settings of the service, such as sandboxing. A status of -N is signal N.
        TimeoutError if it takes longer than `timeout` seconds.
        """
        self._runs += 1
        unit = f"run-{self._runs}.service"
        output, errors = (self._directory / f"{unit}.{name}" for name in ("out", "err"))
        for path in (output, errors):  # they stay empty if they go to the journal
            path.touch()
        settings = {
            "RemainAfterExit": "yes",
            "StandardOutput": f"file:{output}",
            "StandardError": f"file:{errors}",
            **(properties or {}),
        }
        # `systemd-run --wait` would need a D-Bus daemon; the unit's state tells the same.
        options = [f"--property={name}={value}" for name, value in settings.items()]
        options += [f"--setenv={name}={value}" for name, value in (environment or {}).items()]
        # systemd would expand `$` in the arguments.
        command = [argument.replace("$", "$$") for argument in argv]
        self._run("systemd-run", f"--unit={unit}", "--quiet", *options, "--", *command, check=True)

        def ended() -> bool:
            return self.show(unit, "SubState") in ("exited", "failed")

        try:
            wait_until(ended, timeout, f"the end of {shlex.join(argv)}")
            status = int(self.show(unit, "ExecMainStatus"))
            by_signal = self.show(unit, "ExecMainCode") != "1"  # CLD_EXITED
        finally:
            self.systemctl("stop", unit, check=False)
            self.systemctl("reset-failed", unit, check=False)
        return subprocess.CompletedProcess(
            list(argv), -status if by_signal else status, output.read_text(), errors.read_text()
        )

    def _run(self, program: str, *arguments: str, check: bool) -> subprocess.CompletedProcess[str]:
        argv = [str(self.wrapper_directory / program), *arguments]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        if check and done.returncode != 0:
            raise RuntimeError(f"{shlex.join(argv)}: {done.returncode}: {done.stderr}")
        return done


def remove_leftovers(directory: Path) -> None:
    """Remove the cgroup and the files of a systemd that has ended, in whatever way."""
    remove_cgroup(directory)
    shutil.rmtree(directory)


def remove_cgroup(directory: Path) -> None:
    """Remove the cgroup that ENTER_CGROUP made, as soon as the last process in it is gone."""
    remove = ["unshare", "--mount", "sh", "-c", _REMOVE_CGROUP, "sh", str(directory)]
    remove.append(directory.name)

    def removed() -> bool:  # the namespace's processes take a moment to be gone
        return subprocess.run(remove, capture_output=True, check=False).returncode == 0

    wait_until(removed, 30, f"cgroup {directory.name} is removed")


def victoria_logs_unit(
    executable: Path,
    data_path: Path,
    port: int,
    extra_flags: Sequence[str] = (),
    restart: str = "no",
) -> str:
    """A service like the one VictoriaLogs' users have; its log goes beside the data path.

    Paths must be free of spaces and percent signs.
    """
    lines = [
        "[Unit]",
        "Description=VictoriaLogs of a test",
        "[Service]",
        "Type=simple",
        f"ExecStart={' '.join(server_argv(executable, data_path, port, extra_flags))}",
        f"Restart={restart}",
        "RestartSec=100ms",
        f"StandardError=append:{data_path}.log",
    ]
    return "\n".join(lines) + "\n"
