"""Inside a unit of a real systemd, which ends all that a service has left running when it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import final

import pytest

from tests.parts.locking_site import guards
from tests.parts.systemd import Systemd
from tests.parts.waiting import wait_until
from tests.support import LockingServer, make_data, write_config
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import lock

pytestmark = pytest.mark.timeout(120)

# What a run does around its stop, up to the moment that it is killed.
KILLED = """\
import pathlib, subprocess, sys, time
from vl_borg_hooks.actions.run import Setting
from vl_borg_hooks.config import load
from vl_borg_hooks.runs.records import Journal
from vl_borg_hooks.stop_window import guard
loaded = load(pathlib.Path(sys.argv[1]))
target = Setting(loaded).backup(loaded.config.instances[0])
with target.records.run_lock("before-create"):
    guard.arm(target)
    target.records.note(Journal("before-create", found_running=True))
    target.service.stop()
    while target.service.state().value == "running":
        time.sleep(0.01)
    pathlib.Path(sys.argv[2]).touch()
    time.sleep(600)
"""


@final
class ServiceSite:
    """A server that only locks, run by `service: command:`; it and our runs are in units."""

    def __init__(self, root: Path, systemd: Systemd) -> None:
        self.root, self.systemd = root, systemd
        self.data = make_data(root / "data")
        self.server = LockingServer(self.data)
        self.staging = StagingCopy(root / "staging")
        self.config = root / "config.yaml"
        self.environment = {"PATH": os.environ["PATH"], "HOME": str(root)}
        self.configure()
        self.unit("server", *self.server.argv("run"))
        wait_until(lambda: self.is_running, 30, "the server")

    def configure(self, **options: object) -> None:
        instance = {
            "name": "default",
            "data_path": str(self.data),
            "staging_path": str(self.staging.path),
            "service": self.server.service,
            "stop_timeout": 5,
            "start_timeout": 5,
            **options,
        }
        write_config(self.config, [instance], state_path=str(self.root / "state"))

    @property
    def is_running(self) -> bool:
        return lock.is_held(LocalHost(), str(self.data))

    def unit(self, name: str, *argv: str, **environment: str) -> str:
        """Start `argv` as a transient unit, with the default KillMode; return its name."""
        unit = f"{name}-{self.root.name}.service"
        self.systemd._run(
            "systemd-run",
            f"--unit={unit}",
            *("--quiet", "--collect", "--property=Type=exec"),
            *(
                f"--setenv={key}={value}"
                for key, value in {**self.environment, **environment}.items()
            ),
            "--",
            *argv,
            check=True,
        )
        return unit


@pytest.fixture
def site(tmp_path: Path, systemd: Systemd) -> Iterator[ServiceSite]:
    site = ServiceSite(tmp_path, systemd)
    with site.server:
        yield site
        for guard in guards(site.config):
            guard.kill()


def test_a_server_that_a_start_command_leaves_running_outlives_the_service_of_borgmatic(
    site: ServiceSite,
) -> None:
    argv = [sys.executable, "-m", "vl_borg_hooks", "--config", str(site.config), "before-create"]
    # Its unit is stopped at the end, as that of borgmatic is.
    done = site.systemd.run_as_service(argv, site.environment)
    assert done.returncode == 0, done.stderr
    assert site.staging.manifest_path.exists()
    assert site.is_running


def test_a_server_that_would_end_with_the_service_of_borgmatic_is_not_stopped(
    site: ServiceSite,
) -> None:
    tools = site.root / "tools"
    tools.mkdir()
    refusing = tools / "systemd-run"
    refusing.write_text('#!/bin/sh\necho "Failed to start transient scope unit" >&2\nexit 1\n')
    refusing.chmod(0o755)
    site.environment["PATH"] = f"{tools}:{site.environment['PATH']}"
    before = site.server.pid
    argv = [sys.executable, "-m", "vl_borg_hooks", "--config", str(site.config), "before-create"]
    done = site.systemd.run_as_service(argv, site.environment)
    assert done.returncode == 1
    assert "what is started would end with run-" in done.stderr
    assert "use systemd-run, or have a unit of its own run VictoriaLogs" in done.stderr
    assert site.server.pid == before
    assert site.is_running


def test_a_guard_has_the_environment_of_the_run_and_nobody_sees_it_in_its_unit(
    site: ServiceSite,
) -> None:
    secrets = {"VL_TEST_PASSWORD": "correct horse", "SSH_AUTH_SOCK": "/run/agent"}
    site.configure(
        url="http://127.0.0.1:1",
        http_auth={"username": "me", "password_environment": "VL_TEST_PASSWORD"},
    )
    armed = site.root / "armed"
    site.unit("run", sys.executable, "-c", KILLED, str(site.config), str(armed), **secrets)
    wait_until(armed.exists, 30, "the guard is armed")
    (waiting,) = [guard for guard in guards(site.config) if "--wait" in guard.cmdline()]
    environment = waiting.environ()
    assert {name: environment[name] for name in secrets} == secrets
    assert environment["HOME"] == str(site.root)
    assert environment["PATH"] == site.environment["PATH"]
    assert "NOTIFY_SOCKET" in environment
    units = site.systemd.systemctl("list-units", "--plain", "--no-legend", "vl-borg-hooks-guard-*")
    assert "vl-borg-hooks-guard-default-" in units.stdout
    shown = site.systemd.systemctl("show", units.stdout.split()[0]).stdout
    assert "recover" in shown
    assert "correct horse" not in shown
    # Nothing of it is left on a disk.
    assert sorted(path.name for path in (site.root / "state/default").iterdir()) == [
        "journal.json",
        "run.lock",
    ]


def test_a_guard_goes_on_until_it_can_start_the_server_which_then_outlives_its_unit(
    site: ServiceSite,
) -> None:
    tries, allowed = site.root / "tries", site.root / "allowed"
    start = site.root / "start"
    start.write_text(
        f'#!/bin/sh\necho >> {tries}\n[ -e {allowed} ] || {{ echo "no network" >&2; exit 1; }}\n'
        f'exec "$@"\n'
    )
    start.chmod(0o755)
    service = {verb: site.server.argv(verb) for verb in ("stop", "start", "status")}
    service["start"] = [str(start), *service["start"]]
    site.configure(service={"command": service}, start_timeout=0.1)
    armed = site.root / "armed"
    unit = site.unit("run", sys.executable, "-c", KILLED, str(site.config), str(armed))
    wait_until(armed.exists, 30, "the guard is armed")
    assert not site.is_running
    site.systemd.systemctl("kill", "--kill-whom=all", "-s", "KILL", unit)

    def tried(times: int) -> bool:
        return tries.exists() and len(tries.read_text().splitlines()) >= times

    # Each of its tries has two at most.
    wait_until(lambda: tried(5), 60, "several tries")
    allowed.touch()
    wait_until(lambda: site.is_running, 60, "the server")
    wait_until(lambda: not guards(site.config), 60, "the end of the guard")
    units = site.systemd.systemctl("list-units", "--plain", "--no-legend", "vl-borg-hooks-guard-*")
    assert units.stdout == ""
    assert site.is_running
    assert not (site.root / "state/default/journal.json").exists()
