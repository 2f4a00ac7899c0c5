"""A real borgmatic of any version with our include, and a server that only locks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import final

from ruamel.yaml import YAML

from tests.parts.healthchecks import Healthchecks
from tests.parts.locking_site import LockingSite
from tests.setup import environments
from vl_borg_hooks.runs.records import RunRecords

EXAMPLES = Path(__file__).resolve().parents[2] / "config-examples" / "borgmatic"
# What is installed beside us.
NEWEST = "newest"
# The include of each series before 2, which has other names for the same hooks.
INCLUDES = {"1.7": "include-1.7.yaml", "1.8": "include-1.8.yaml", "1.9": "include-1.8.yaml"}


def program(version: str) -> Path:
    """The borgmatic `version`."""
    if version == NEWEST:
        return Path(sys.executable).with_name("borgmatic")
    return environments.borgmatic(version)


@final
class BorgmaticSite:
    """A borgmatic config with one repository, a monitor and our include."""

    def __init__(
        self,
        root: Path,
        version: str,
        healthchecks: Healthchecks,
        *,
        borgmatic: Path | None = None,
        ours: Path | None = None,
    ) -> None:
        """`borgmatic` and `ours` are the programs, if not those of the tests' environments."""
        self.root = root
        self.version = version
        self.series = version.rpartition(".")[0]
        self.program = borgmatic or program(version)
        self.ours = ours or Path(sys.executable).with_name("vl-borg-hooks")
        self.healthchecks = healthchecks
        (root / "site").mkdir(parents=True)
        self.locking = LockingSite(root / "site")
        self.config = root / "borgmatic.yaml"
        self.repository = root / "repository.borg"
        self.write_config()
        self.run("borg", "init", "--encryption", "none", str(self.repository))

    def write_config(self, **more: object) -> None:
        """Write the include, and a config of the operator's own that has it and `more`."""
        include = self.root / "include.yaml"
        include.write_text(self._include())
        own = {"source_directories": [str(self.locking.config)]}
        monitor = {"healthchecks": {"ping_url": self.healthchecks.url}}
        content: dict[str, object]
        if self.series == "1.7":
            content = {
                "location": {**own, "repositories": [str(self.repository)]},
                "storage": {"unknown_unencrypted_repo_access_is_ok": True},
                "hooks": monitor,
            }
        else:
            content = {**own, "repositories": [{"path": str(self.repository)}], **monitor}
            content["unknown_unencrypted_repo_access_is_ok"] = True
        with self.config.open("w") as file:
            file.write(f"<<: !include {include}\n")
            YAML().dump({**content, **more}, file)
        self.config.chmod(0o600)

    def _include(self) -> str:
        if self.series not in INCLUDES:
            argv = [str(self.ours), "--config", str(self.locking.config)]
            return self.run(*argv, "config", "generate", "--borgmatic").stdout
        text = (EXAMPLES / INCLUDES[self.series]).read_text()
        for usual, here in {
            "/usr/local/bin/vl-borg-hooks": self.ours,
            "/etc/vl-borg-hooks/config.yaml": self.locking.config,
            "/var/lib/vl-borg-hooks/default": self.locking.staging.path,
        }.items():
            assert usual in text
            text = text.replace(usual, str(here))
        return text

    @property
    def environment(self) -> dict[str, str]:
        """What programs run with: this borgmatic first, and no files of another Borg."""
        home = self.root / "home"
        home.mkdir(exist_ok=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BORG")}
        path = f"{self.program.parent}:{os.environ['PATH']}"
        config = str(home / "config")
        return {**kept, "HOME": str(home), "PATH": path, "XDG_CONFIG_HOME": config}

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program at the site; AssertionError with all it said if it fails."""
        done = self._finished(argv, self._started(argv))
        assert not check or done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
        return done

    def borgmatic(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run borgmatic at the site; what it says is on its console alone."""
        return self.run(*self._called(arguments), check=check)

    def borgmatics(self, *runs: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
        """Run borgmatic with several arguments at once."""
        called = [self._called(arguments) for arguments in runs]
        started = [self._started(argv) for argv in called]
        return list(map(self._finished, called, started))

    def _called(self, arguments: tuple[str, ...]) -> tuple[str, ...]:
        options = ["--config", str(self.config)]
        if self.series == "1.7" and "--log-file" not in arguments:
            # Otherwise it logs to the machine's own log, if there is one.
            options += ["--log-file", str(self.root / "borgmatic.log")]
        return (str(self.program), *options, *arguments)

    def _started(self, argv: Sequence[str]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
        )

    @staticmethod
    def _finished(
        argv: Sequence[str], process: subprocess.Popen[str]
    ) -> subprocess.CompletedProcess[str]:
        with process:
            output, errors = process.communicate(timeout=120)
        return subprocess.CompletedProcess(argv, process.returncode, output, errors)

    def archives(self) -> list[str]:
        """The names of the archives, oldest first."""
        return self.run("borg", "list", "--short", str(self.repository)).stdout.split()

    @property
    def records(self) -> RunRecords:
        """What runs have left."""
        return RunRecords(self.root / "site" / "state", "default")
