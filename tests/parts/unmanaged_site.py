"""A VictoriaLogs that no service manager looks after, backed up with `consistency: snapshot`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from tests.parts.command_service import write_service
from tests.parts.ports import free_port
from tests.parts.victoria_logs import LogServer, VictoriaLogsProcess
from tests.support import run_command_line, write_config
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.manifest import Manifest


@final
class UnmanagedSite:
    """Everything lies below `root`, the data too unless `data` says where; stops with the context."""

    def __init__(
        self,
        root: Path,
        executable: Path,
        flags: Sequence[str] = (),
        data: Path | None = None,
        **instance: object,
    ) -> None:
        self.root, self.executable = root, executable
        root.mkdir(parents=True, exist_ok=True)
        self.process = VictoriaLogsProcess(executable, data or root / "data", free_port(), flags)
        self.server = self.process.server
        self.staging = StagingCopy(root / "staging")
        options = {
            "name": "default",
            "data_path": str(self.process.data_path),
            "staging_path": str(self.staging.path),
            "url": self.server.url,
            "consistency": "snapshot",
            **instance,
        }
        state = str(root / "state")
        self.config = write_config(root / "config.yaml", [options], state_path=state)

    def hooks(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run our command line; AssertionError with all it said if it fails."""
        done = run_command_line("--config", self.config, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    @property
    def manifest(self) -> Manifest:
        return self.staging.manifest()

    @property
    def snapshots(self) -> list[Path]:
        """The snapshots that are there now, whoever has made them."""
        return list(self.process.data_path.glob("partitions/*/snapshots/*"))

    @contextmanager
    def restored(self) -> Iterator[LogServer]:
        """Restore the staging copy into a server that is empty, which serves it in the block."""
        root = self.root / "restored"
        number = len(list(root.glob("*")))
        directory = root / str(number)
        directory.mkdir(parents=True)
        with serving(self.executable, directory / "data") as empty:
            empty.stop()
            script = str(write_service(directory / "service.py", empty.argv))
            options = {
                "name": "default",
                "data_path": str(empty.data_path),
                "staging_path": str(directory / "staging"),
                "url": empty.server.url,
                "service": {
                    "command": {
                        verb: [sys.executable, script, verb] for verb in ("stop", "start", "status")
                    }
                },
            }
            state = str(directory / "state")
            config = write_config(directory / "config.yaml", [options], state_path=state)
            done = run_command_line("--config", config, "restore", "--from", self.staging.path)
            assert done.returncode == 0, done.stdout + done.stderr
            empty.start()
            yield empty.server

    def __enter__(self) -> UnmanagedSite:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.running:
            self.process.kill()


def serving(executable: Path, data: Path) -> VictoriaLogsProcess:
    """A server on `data`, for a `with` block."""
    return VictoriaLogsProcess(executable, data, free_port())
