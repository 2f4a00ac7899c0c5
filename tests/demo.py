"""`make demo`: the main job on real parts, to watch.

Starts VictoriaLogs, writes logs to it, backs it up with borgmatic and our hooks while logs keep
coming, destroys the data, extracts, restores, and counts every row. All of it is in a temporary
directory; VictoriaLogs listens on a free port of the loopback.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Started as a script, only tests/ would be found.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.parts.command_service import write_service
from tests.parts.ports import free_port
from tests.parts.victoria_logs import LogServer, SteadyIngestion, doubled, server_argv
from tests.setup.victoria_logs import Found, find
from vl_borg_hooks.staging.copy import StagingCopy

ROWS = 200_000
BATCH = 10_000
DAYS = 5
BIN = Path(sys.executable).parent


class Demo:
    """The steps, each with what it says and what it runs."""

    def __init__(self, root: Path, found: Found) -> None:
        self.root = root
        self.port = free_port()
        self.server = LogServer(f"http://127.0.0.1:{self.port}")
        self.data = root / "victoria-logs"
        argv = server_argv(found.path, self.data, self.port)
        self.service = write_service(root / "service.py", argv)
        self.config = root / "config.yaml"
        self.borgmatic_config = root / "borgmatic.yaml"

    def run(self, *argv: str) -> None:
        """Run one command as an operator would, showing it and what it says."""
        print(f"  $ {' '.join(argv)}", flush=True)
        environment = {
            **os.environ,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "BORG_BASE_DIR": str(self.root / "borg"),
        }
        subprocess.run(argv, check=True, env=environment, cwd=self.root)

    def write_configs(self) -> None:
        """Write our config, have the include generated, and an existing config take it in."""
        self.config.write_text(
            f"""\
instances:
    - name: default
      data_path: {self.data}
      staging_path: {self.root}/staging
      url: {self.server.url}
      service:
          command:
              stop: [{sys.executable}, {self.service}, stop]
              start: [{sys.executable}, {self.service}, start]
              status: [{sys.executable}, {self.service}, status]
state_path: {self.root}/state
"""
        )
        self.config.chmod(0o600)
        self.borgmatic_config.write_text(
            f"""\
<<: !include {self.root}/include.yaml

repositories:
    - path: {self.root}/repository.borg
      label: demo
encryption_passphrase: demo
"""
        )
        self.borgmatic_config.chmod(0o600)
        hooks = ("vl-borg-hooks", "--config", str(self.config), "config")
        self.run(*hooks, "validate")
        self.run(*hooks, "generate", "--borgmatic", "--destination", f"{self.root}/include.yaml")

    def write_logs(self) -> None:
        """Write rows of the last days, so that there are several partitions."""
        for first in range(0, ROWS, BATCH):
            day = time.time() - first * DAYS // ROWS * 86400
            moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(day))
            self.server.ingest(
                {"host": f"web{n % 20}", "_msg": f"GET /item/{n} 200", "_time": moment}
                for n in range(first, first + BATCH)
            )

    def borgmatic(self, *arguments: str) -> None:
        """Run borgmatic with the existing config."""
        self.run("borgmatic", "--config", str(self.borgmatic_config), *arguments)


def say(text: str) -> None:
    print(f"\n=== {text}", flush=True)


def main() -> int:
    found = find()
    started = time.monotonic()
    if not found.real:
        say("NO REAL VictoriaLogs ON THIS MACHINE: this demo runs on a stand-in, and proves less")
        print("\n".join(f"  - {reason}" for reason in found.reasons))
    with tempfile.TemporaryDirectory(prefix="vl-borg-hooks-demo-") as directory:
        demo = Demo(Path(directory), found)
        try:
            return play(demo, found, started)
        finally:
            subprocess.run([sys.executable, str(demo.service), "stop"], check=False)


def play(demo: Demo, found: Found, started: float) -> int:
    say(f"1. VictoriaLogs {found.version} runs, and has {ROWS} rows of {DAYS} days")
    subprocess.run([sys.executable, str(demo.service), "start"], check=True)
    demo.server.wait_healthy()
    demo.write_logs()

    say("2. One line in an existing borgmatic config")
    demo.write_configs()
    demo.borgmatic("repo-create", "--encryption", "repokey")

    say("3. A backup, while an application writes numbered rows all the time")
    with SteadyIngestion(demo.server) as ingestion:
        ingestion.wait_for(200)
        before = time.monotonic()
        demo.borgmatic("create", "--stats")
        ingestion.wait_for(200)
    acknowledged = ingestion.sequences(before)
    print(f"  {ingestion.refused} requests were refused while VictoriaLogs was away")

    say("4. The data is destroyed, all of it")
    subprocess.run([sys.executable, str(demo.service), "stop"], check=True)
    shutil.rmtree(demo.data)

    say("5. borgmatic extract, and the restore: into nothing, so it needs no --yes")
    extracted = demo.root / "extracted"
    extracted.mkdir()
    demo.borgmatic("extract", "--archive", "latest", "--destination", str(extracted))
    demo.run(
        *("vl-borg-hooks", "--config", str(demo.config)),
        *("restore", "--from", str(extracted), "--start"),
    )

    say("6. Is every row back?")
    rows = demo.server.rows()
    steady = [row for row in rows if row["host"] == "steady"]
    bulk = len(rows) - len(steady)
    missing, twice = ingestion.missing(steady, before), doubled(steady)
    print(f"  {bulk} of {ROWS} rows that were there before")
    print(
        f"  {len(acknowledged) - len(missing)} of {len(acknowledged)} numbered rows that were "
        f"acknowledged before the backup began; {len(twice)} rows twice"
    )
    complete = bulk == ROWS and not missing and not twice
    downtime = StagingCopy(demo.root / "staging").manifest().downtime_seconds
    say(
        f"{'Every row is back' if complete else 'ROWS ARE MISSING'}; for the backup, VictoriaLogs "
        f"was away for {downtime:.2f} s; the demo took {time.monotonic() - started:.0f} s"
    )
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
