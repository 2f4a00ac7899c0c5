"""A config, data and a staging path, with a server that only holds the lock of its data.

For what does not depend on VictoriaLogs itself: it starts and stops in no time.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import final

import psutil

from tests.support import LockingServer, make_data, run_command_line, tree, write_config
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.verify import verify
from vl_borg_hooks.victorialogs.layout import WORKING_DIRECTORY


@final
class LockingSite:
    """A server with its data, a config for it, and a staging path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = make_data(root / "data")
        self.staging = StagingCopy(root / "staging")
        self.server = LockingServer(self.data)
        self.fields: dict[str, object] = {
            "name": "default",
            "data_path": str(self.data),
            "staging_path": str(self.staging.path),
            "service": self.server.service,
            "stop_timeout": 10,
            "start_timeout": 10,
            # The one whose final pass VictoriaLogs has to wait for: more can go wrong there.
            "final_pass": "stopped",
        }
        self.config = root / "config.yaml"
        self.runs: list[subprocess.Popen[str]] = []
        self.configure()

    def configure(self, **changes: object) -> None:
        """Write the config, with `changes`."""
        self.fields.update(changes)
        write_config(self.config, [self.fields], state_path=str(self.root / "state"))

    def command(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run our command line with this config, quiet but for errors."""
        return run_command_line(
            *("--config", self.config, "--verbosity", "-1", *arguments), environment=environment
        )

    def content(self) -> dict[str, tuple[str, object]]:
        """The data, without what only locks."""
        return {path: what for path, what in tree(self.data).items() if path != "flock.lock"}

    def served(self) -> dict[str, tuple[str, object]]:
        """The data, without what a restore has replaced and keeps."""
        kept = Path(WORKING_DIRECTORY, "kept")
        return {
            path: what
            for path, what in self.content().items()
            if path != WORKING_DIRECTORY and kept not in (Path(path), *Path(path).parents)
        }

    @property
    def published(self) -> bool:
        """Whether Borg would archive the staging copy."""
        return self.staging.manifest_path.exists()

    def backs_up(self) -> None:
        """Make a backup; AssertionError if it fails or is not sound."""
        done = self.command("before-create")
        assert (done.returncode, done.stderr) == (0, "")
        assert verify(self.staging).problems == []
        assert tree(self.staging.data) == self.content()


def guards(config: Path) -> list[psutil.Process]:
    """Return the processes of ours that still run with `config`."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if str(config) in (process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def the_line(done: subprocess.CompletedProcess[str], status: int = 1) -> str:
    """Return the one line that a command which failed as expected has said."""
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("vl-borg-hooks: ")
    return done.stderr
