"""What many tests build: a data directory, a published copy, a config, a server that only locks."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

import psutil

from tests.parts.waiting import wait_until
from vl_borg_hooks.actions.run import Setting
from vl_borg_hooks.config import load
from vl_borg_hooks.plugin.context import Backup, Restore
from vl_borg_hooks.staging import verify
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.inventory import Totals
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.staging.walk import hashed, walk
from vl_borg_hooks.system.log import logger
from vl_borg_hooks.system.ssh import SshHost

# Whether the tests take the time to try all that they can: hours.
ALL_KILLS = bool(os.environ.get("VL_BORG_HOOKS_ALL_KILLS"))
# Of a property; each run tries others.
EXAMPLES = 1000 if ALL_KILLS else 100

# flock(2) from start to exit, as VictoriaLogs does; SIGTERM ends it. `start` returns at once.
_SERVER = """\
import fcntl, os, signal, subprocess, sys
action, data = sys.argv[1:]
lock_path, pid_path = data + "/flock.lock", data + ".pid"
def pid_alive():
    # Not by the lock: a backup holds that itself. A zombie has no command line.
    try:
        with open(pid_path) as file:
            pid = int(file.read())
        with open(f"/proc/{pid}/cmdline") as file:
            return pid if sys.argv[0] in file.read() else 0
    except (FileNotFoundError, ProcessLookupError):
        return 0
if action == "start":
    null = subprocess.DEVNULL
    argv = [sys.executable, "-I", "-S", sys.argv[0], "run", data]
    subprocess.Popen(argv, stdin=null, stdout=null, stderr=null, start_new_session=True)
elif action == "stop":
    if pid := pid_alive():
        os.kill(pid, signal.SIGTERM)
elif action == "status":
    sys.exit(0 if pid_alive() else 3)
elif action == "run":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    file = open(lock_path, "a")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with open(pid_path + ".new", "w") as pid_file:
        pid_file.write(str(os.getpid()))
    os.rename(pid_path + ".new", pid_path)
    while True:
        signal.pause()
"""

# What sshd does: it has the user's shell interpret the one string that it was sent.
FAKE_SSH = """\
#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift 2
exec sh -c "$1"
"""


def make_part(part: Path, *, rows: int, day: int, salt: int = 0) -> None:
    """Write a part of `rows` rows; its metadata says exactly what its files hold."""
    part.mkdir(parents=True)
    files = {"timestamps.bin": rows * 3 + salt, "values.bin0": 100 + rows, "index.bin": 17}
    for name, size in files.items():
        (part / name).write_bytes(hashlib.sha256(os.fsencode(part / name)).digest() * size)
    size = sum((part / name).stat().st_size for name in files)
    metadata = {
        "CompressedSizeBytes": size,
        "UncompressedSizeBytes": size * 2,
        "RowsCount": rows,
        "BlocksCount": 1,
        "MinTimestamp": day * 1000,
        "MaxTimestamp": day * 1000 + rows,
    }
    (part / "metadata.json").write_text(json.dumps(metadata))


def make_partition(partition: Path, *, parts: int = 2) -> None:
    """Write a partition with `parts` data parts and one index part."""
    names = [f"18A{number:013X}" for number in range(parts)]
    for number, name in enumerate(names):
        make_part(partition / "datadb" / name, rows=10 + number, day=int(partition.name))
    (partition / "datadb").mkdir(exist_ok=True, parents=True)
    (partition / "datadb" / "parts.json").write_text(json.dumps(names))
    index = partition / "indexdb" / "18B0000000000001"
    index.mkdir(parents=True)
    (index / "items.bin").write_bytes(b"item" * 50)
    (index / "metadata.json").write_text(json.dumps({"ItemsCount": 50, "BlocksCount": 1}))
    (partition / "indexdb" / "parts.json").write_text(json.dumps([index.name]))


def make_data(data: Path, *, days: Sequence[str] = ("20261121", "20261122")) -> Path:
    """Write a VictoriaLogs data directory with a partition for each of `days`; return `data`."""
    for day in days:
        make_partition(data / "partitions" / day)
    (data / "flock.lock").touch()
    return data


def make_copy(
    path: Path, *, instance: str = "default", days: Sequence[str] = ("20261121", "20261122")
) -> StagingCopy:
    """Make a small published staging copy at `path`, with a partition for each of `days`."""
    copy = StagingCopy(path)
    make_data(copy.data, days=days)
    (copy.data / "flock.lock").unlink()
    publish(copy, instance=instance)
    return copy


def publish(copy: StagingCopy, *, instance: str = "default") -> Manifest:
    """Publish `copy` as it is, whatever is wrong with it."""
    partitions = verify.partitions(copy.data, [])
    totals = write_inventory(copy)
    manifest = Manifest(
        instance=instance,
        created="2026-11-22T00:00:00+00:00",
        data_path="/var/lib/victoria-logs",
        victorialogs_version="v1.26.0",
        owner=(os.geteuid(), os.getegid()),
        rows=sum(partition.rows for partition in partitions),
        files=totals.files,
        bytes=totals.bytes,
        partitions=partitions,
        final_pass="stopped",
        linked=False,
        warm_seconds=1.0,
        final_seconds=0.1,
        downtime_seconds=0.2,
        inventory_sha256=totals.sha256,
    )
    copy.publish(manifest)
    return manifest


def write_inventory(copy: StagingCopy, *, linked: bool = False) -> Totals:
    """Put an inventory of `copy` as it is in place of the one that it has."""
    totals = copy.write_inventory(hashed(copy.data, walk(copy.data, linked=linked), []))
    copy.use_new_inventory()
    return totals


def far_host(directory: Path) -> SshHost:
    """Another machine: this one, by a stand-in for ssh in `directory`."""
    program = directory / "ssh"
    program.write_text(FAKE_SSH)
    program.chmod(0o755)
    return SshHost("user@host", (str(program),))


def make_backup(directory: Path, **instance: object) -> Backup:
    """Make the backup of an instance with the options `instance`, all it needs in `directory`."""
    setting = _setting(directory, instance)
    return setting.backup(setting.loaded.config.instances[0])


def make_restore(
    directory: Path, copy: StagingCopy, manifest: Manifest, **instance: object
) -> Restore:
    """Make the restore of `copy` into an instance with the options `instance`."""
    setting = _setting(directory, instance)
    return setting.restore(setting.loaded.config.instances[0], copy, manifest, start=False)


def _setting(directory: Path, instance: Mapping[str, object]) -> Setting:
    options = {
        "name": "default",
        "data_path": str(directory / "data"),
        "staging_path": str(directory / "staging"),
        "service": {"systemd": "unused.service"},
        **instance,
    }
    config = write_config(directory / "config.yaml", [options], state_path=str(directory / "state"))
    return Setting(load(config))


def encoded(value: object) -> bytes:
    """Return `value` as JSON; an integer that Python would not print stays one."""
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(before)


def tree(root: Path) -> dict[str, tuple[str, object]]:
    """Return all that is below `root` by relative path: its kind, and its content or target."""
    found: dict[str, tuple[str, object]] = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        name = str(path.relative_to(root))
        if stat.S_ISREG(status.st_mode):
            found[name] = ("file", path.read_bytes())
        elif stat.S_ISLNK(status.st_mode):
            found[name] = ("link", os.readlink(path))
        else:
            found[name] = (str(stat.S_IFMT(status.st_mode)), None)
    return found


def write_config(path: Path, instances: Sequence[Mapping[str, object]], **top: object) -> Path:
    """Write a config, as only its owner may; JSON is YAML. Return `path`."""
    path.write_text(json.dumps({"instances": instances, **top}, indent=1))
    path.chmod(0o600)
    return path


@final
class LockingServer:
    """Holds the lock of `data` as VictoriaLogs does while it runs; started by `service: command:`.

    What is left of it ends with the context.
    """

    def __init__(self, data: Path) -> None:
        self.data = data
        self._script = data.with_name(f"{data.name}.server.py")
        self._script.write_text(_SERVER)

    def argv(self, action: str) -> list[str]:
        """The command that does `action`: start, stop or status."""
        return [sys.executable, "-I", "-S", str(self._script), action, str(self.data)]

    @property
    def service(self) -> dict[str, object]:
        """What the config has under `service:`."""
        return {"command": {action: self.argv(action) for action in ("stop", "start", "status")}}

    @property
    def running(self) -> bool:
        """Whether its process is there, which then holds the lock."""
        return subprocess.run(self.argv("status"), check=False).returncode == 0

    @property
    def pid(self) -> int:
        """The process id of the server that was started last."""
        return int(self.data.with_name(f"{self.data.name}.pid").read_text())

    def start(self) -> None:
        """Start it and wait until it holds the lock."""
        subprocess.run(self.argv("start"), check=True)
        self.wait(running=True)

    def stop(self) -> None:
        """Stop it and wait until it has let go of the lock."""
        subprocess.run(self.argv("stop"), check=True)
        self.wait(running=False)

    def wait(self, *, running: bool, timeout: float = 10) -> None:
        """Wait until it runs, or does not."""
        wait_until(lambda: self.running is running, timeout, f"running: {running}")

    def __enter__(self) -> LockingServer:
        return self

    def __exit__(self, *_: object) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if str(self._script) in (process.info["cmdline"] or []):
                process.kill()


@contextmanager
def said() -> Iterator[list[str]]:
    """Collect what is logged in the block, of any level."""
    lines: list[str] = []

    class Collecting(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler, level = Collecting(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Have `mask` as the umask in the block."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def command_line(*arguments: str | Path) -> list[str]:
    """Return the argument vector of our own command line."""
    return [sys.executable, "-m", "vl_borg_hooks", *map(str, arguments)]


def run_command_line(
    *arguments: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run our own command line to its end."""
    return subprocess.run(
        command_line(*arguments),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        check=False,
        env={**os.environ, **environment} if environment else None,
    )
