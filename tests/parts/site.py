"""An operator's site: VictoriaLogs as a systemd unit, our config, an existing borgmatic config."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tests.parts.ports import free_port
from tests.parts.systemd import Systemd, victoria_logs_unit
from tests.parts.victoria_logs import LogServer
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.manifest import Manifest

PASSPHRASE = "correct horse"


class Site:
    """Everything lies below `root`; the unit is called after `name`."""

    def __init__(self, root: Path, executable: Path, systemd: Systemd, name: str) -> None:
        self.root = root
        self.executable = executable
        self.systemd = systemd
        self.unit = f"{name}.service"
        self.port = free_port()
        self.server = LogServer(f"http://127.0.0.1:{self.port}")
        self.data = root / "data"
        self.staging = StagingCopy(root / "staging")
        self.config = root / "etc" / "config.yaml"
        self.borgmatic_config = root / "borgmatic.yaml"
        self.repositories = [root / "first.borg", root / "second.borg"]
        self.options: dict[str, Any] = {}
        (root / "etc").mkdir(parents=True)
        self.data.mkdir()

    def install(self, flags: Sequence[str] = (), restart: str = "no", **instance: Any) -> None:
        """Write the unit and our config, with the options `instance` on top; start the server."""
        unit = victoria_logs_unit(self.executable, self.data, self.port, flags, restart)
        self.systemd.write_unit(self.unit, unit)
        self.write_config(**instance)
        self.start()

    def write_config(self, **instance: Any) -> None:
        options = {
            "name": "default",
            "data_path": str(self.data),
            "staging_path": str(self.staging.path),
            "url": self.server.url,
            "service": {"systemd": self.unit},
            **instance,
        }
        self.write_yaml(
            self.config, {"instances": [options], "state_path": str(self.root / "state")}
        )

    def write_yaml(self, path: Path, content: object) -> None:
        with path.open("w", encoding="utf-8") as file:
            YAML().dump(content, file)
        path.chmod(0o600)

    def start(self) -> None:
        self.systemd.systemctl("start", self.unit)
        self.server.wait_healthy()

    def stop(self) -> None:
        self.systemd.systemctl("stop", self.unit)

    @property
    def is_running(self) -> bool:
        return self.systemd.show(self.unit, "ActiveState") == "active"

    @property
    def environment(self) -> dict[str, str]:
        """What our commands and borgmatic run with: this systemd, no other Borg's files."""
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("BORG", "XDG")) and name != "HOME"
        }
        return {**kept, "PATH": self.systemd.path, "HOME": str(home)}

    def run(
        self, *argv: str, check: bool = True, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program at the site; AssertionError with all it said if it fails."""
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            env=self.environment,
            cwd=cwd,
            timeout=180,
            check=False,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def hooks(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(
            *(sys.executable, "-m", "vl_borg_hooks", "--config", str(self.config)),
            *arguments,
            check=check,
        )

    def write_borgmatic_config(self, **changes: Any) -> None:
        """Write the include that we generate, and a config of the operator's own that takes it in.

        It has hooks and source directories of its own, two repositories, and encryption.
        """
        include = self.root / "etc" / "borgmatic.yaml"
        include.unlink(missing_ok=True)
        self.hooks("config", "generate", "--borgmatic", "--destination", str(include))
        own = self.root / "own-documents"
        own.mkdir(exist_ok=True)
        (own / "letter.txt").write_text("kept as before")
        content = {
            "source_directories": [str(own)],
            "repositories": [{"path": str(path)} for path in self.repositories],
            "encryption_passphrase": PASSPHRASE,
            "unknown_unencrypted_repo_access_is_ok": True,
            "commands": [
                {
                    "before": "repository",
                    "when": ["create"],
                    "run": [f"echo own-hook >> {self.root}/own-hooks.log"],
                }
            ],
            **changes,
        }
        self.write_yaml(self.borgmatic_config, content)
        text = self.borgmatic_config.read_text()
        self.borgmatic_config.write_text(f"<<: !include {include}\n{text}")

    def create_repositories(self) -> None:
        for repository in self.repositories:
            self.borg("init", "--encryption", "repokey-blake2", str(repository))

    def borgmatic(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run(
            "borgmatic", "--config", str(self.borgmatic_config), *arguments, check=check
        )

    def archives(self, repository: Path) -> list[str]:
        """Names of the archives in `repository`, oldest first."""
        return self.borg("list", "--short", str(repository)).stdout.split()

    def borg(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Borg itself where borgmatic matters to nobody: it takes several times as long."""
        return self.run("env", f"BORG_PASSPHRASE={PASSPHRASE}", "borg", *arguments)

    def extract(self, repository: Path, archive: str, destination: Path) -> Path:
        destination.mkdir()
        self.borgmatic(
            *("extract", "--repository", str(repository), "--archive", archive),
            *("--destination", str(destination)),
        )
        return destination

    @property
    def manifest(self) -> Manifest:
        return self.staging.manifest()

    @property
    def is_published(self) -> bool:
        return self.staging.manifest_path.exists()

    def journal_is_empty(self) -> bool:
        return not (self.root / "state" / "default" / "journal.json").exists()
