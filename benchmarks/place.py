"""A machine as an operator has it: systemd runs VictoriaLogs, a second filesystem, our config.

A benchmark runs itself again inside the namespaces of a systemd of its own (tests/parts/systemd.py):
there `systemctl` is the plain program, as on any machine, with no wrapper that costs milliseconds.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import final

from benchmarks import common
from tests.parts.ports import free_port
from tests.parts.systemd import Systemd, victoria_logs_unit
from tests.parts.victoria_logs import LogServer

# What the process outside says to the one inside.
_INSIDE = "BENCHMARK_INSIDE"
HEALTHY_SECONDS = 120
# What VictoriaLogs says last before it ends, and first when it starts (app/victoria-logs/main.go).
STOPPED, STARTING = "the VictoriaLogs has been stopped in", "starting VictoriaLogs at"
# unshare(2), from linux/sched.h; os.unshare came with Python 3.12.
CLONE_NEWNS = 0x00020000


@contextmanager
def loop_device(workdir: Path, size: int) -> Iterator[Path]:
    """Yield a fresh ext4 on a loop device, mounted below `workdir`; its file is sparse.

    It is in a mount namespace of this process and its children. So it is gone when they have ended,
    and no namespace that other processes make meanwhile keeps it.
    """
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "no separate mount namespace: are you root?")
    common.run(["mount", "--make-rslave", "/"])
    image, mount = workdir / "other-filesystem.img", workdir / "other-filesystem"
    mount.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(size)
    # An inode for each 8 KiB: the files are small. All tables now, not later in the background.
    options = "lazy_itable_init=0,lazy_journal_init=0"
    common.run(["mkfs.ext4", "-q", "-F", "-i", "8192", "-E", options, str(image)])
    common.run(["mount", "-o", "loop", str(image), str(mount)])
    try:
        yield mount
    finally:
        common.run(["umount", str(mount)])
        image.unlink()


def inside(workdir: Path, *, other_bytes: int) -> Path | None:
    """Return the second filesystem inside the namespaces; None outside, once all is done there.

    Ends the program if it failed inside. A caller that gets None has nothing more to do.
    """
    if _INSIDE in os.environ:
        return Path(json.loads(os.environ[_INSIDE])["other"])
    if reason := Systemd.why_not():
        sys.exit(reason)
    with ExitStack() as stack:
        # Before systemd: what is mounted later might not be seen inside.
        other = stack.enter_context(loop_device(workdir, other_bytes))
        systemd = stack.enter_context(Systemd())
        told = {"units": str(systemd.unit_directory), "other": str(other)}
        argv = ["nsenter", "-t", _pid_1(systemd), "-p", "-m", "--", "env", "-C", os.getcwd()]
        argv += [f"{_INSIDE}={json.dumps(told)}", sys.executable, *sys.argv]
        if "--workdir" not in sys.argv:
            argv += ["--workdir", str(workdir)]
        status = subprocess.run(argv, check=False).returncode
    if status != 0:
        sys.exit(status)
    return None


def _pid_1(systemd: Systemd) -> str:
    """The machine's number for systemd, which its wrapper of systemctl names."""
    found = re.search(r"nsenter -t (\d+)", (systemd.wrapper_directory / "systemctl").read_text())
    if found is None:
        raise RuntimeError("tests/parts/systemd.py has changed")
    return found[1]


@final
class Unit:
    """VictoriaLogs on `data` as a unit of the systemd around us; stopped after the context."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.name = f"{data.name}.service"
        self.server = LogServer(f"http://127.0.0.1:{free_port()}")
        port = int(self.server.url.rpartition(":")[2])
        text = victoria_logs_unit(common.victoria_logs(), data, port)
        units = Path(json.loads(os.environ[_INSIDE])["units"])
        (units / self.name).write_text(text)

    def __enter__(self) -> Unit:
        common.run(["systemctl", "daemon-reload"])
        common.run(["systemctl", "start", self.name])
        self.wait_healthy()
        return self

    def __exit__(self, *_: object) -> None:
        common.run(["systemctl", "stop", self.name])

    def wait_healthy(self) -> None:
        """Wait until it is healthy; raises TimeoutError if it does not come up."""
        self.server.wait_healthy(HEALTHY_SECONDS)

    def gap(self) -> float:
        """Return for how many seconds there was no server at the last restart, by its own log."""
        log = self.data.with_name(f"{self.data.name}.log")
        at: dict[str, datetime] = {}
        for line in log.read_text(errors="replace").splitlines():
            for said in (STOPPED, STARTING):
                if said in line:
                    at[said] = datetime.fromisoformat(line[: len("2026-01-01T00:00:00.000")])
        return (at[STARTING] - at[STOPPED]).total_seconds()

    def change_a_little(self) -> None:
        """Write a few rows to the disk, so that a backup has something new."""
        rows = ({"host": f"web{n % 5}", "_msg": f"row {n} at {time.time()}"} for n in range(200))
        self.server.ingest(rows)
        self.server.flush()


@final
class Hooks:
    """Our command line with a config for `unit` that keeps its staging copy at `staging`."""

    def __init__(
        self, unit: Unit, directory: Path, staging: Path, environment: Mapping[str, str]
    ) -> None:
        self.staging = staging
        self._environment = environment
        self.config = write_config(
            directory,
            data_path=str(unit.data),
            staging_path=str(staging),
            url=unit.server.url,
            service={"systemd": unit.name},
        )

    def argv(self, command: str) -> list[str]:
        return [common.HOOKS, "--config", str(self.config), command]

    def run(self, command: str) -> str:
        """Run one of our commands and return its output."""
        return common.run(self.argv(command), self._environment)

    @property
    def downtime(self) -> float:
        """Return the stop window of the last run by our own clock."""
        manifest = json.loads((self.staging / "manifest.json").read_text())
        return float(manifest["downtime_seconds"])


def write_config(directory: Path, **instance: object) -> Path:
    """Write our config below `directory`, with its state there too; JSON is YAML."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = directory / "config.yaml"
    content = {
        "instances": [{"name": "default", **instance}],
        "state_path": str(directory / "state"),
    }
    config.write_text(json.dumps(content))
    config.chmod(0o600)
    return config


def write_script(path: Path, *lines: Sequence[str]) -> Path:
    """Write a shell script of `lines`, an argument vector each, as an operator would have it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nset -eu\n" + "".join(f"{shlex.join(line)}\n" for line in lines))
    path.chmod(0o755)
    return path
