"""VictoriaLogs in a container that Docker won't start again after a `docker stop`, not at boot either."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.harness import (
    OLD,
    BackupFlow,
    Fault,
    Killer,
    check_recovered,
    leftovers,
    lose_power,
    messages,
    survive_all,
)
from tests.parts.container_site import ContainerSite
from tests.parts.docker import Docker
from tests.parts.systemd import Systemd
from tests.parts.tally import TALLY
from tests.parts.waiting import wait_until
from tests.setup.victoria_logs import Found

IN_THE_WINDOW = "in the window start #1"


@pytest.fixture
def flow(
    tmp_path: Path, victoria_logs: Found, systemd: Systemd, docker: Docker, killer: Killer
) -> Iterator[BackupFlow]:
    site = ContainerSite(tmp_path / "site", victoria_logs.path, systemd, "victorialogs-1", docker)
    made = BackupFlow(site, killer)
    yield made
    made.close()
    for process in leftovers(site):
        process.kill()


def test_a_killed_run_is_made_good_by_the_guard(flow: BackupFlow) -> None:
    survive_all([flow], [Fault("hook stop_service end #1"), Fault(IN_THE_WINDOW)])


def test_a_container_that_was_removed_is_an_error_and_not_one_that_is_stopped(
    flow: BackupFlow, docker: Docker
) -> None:
    """Otherwise, yesterday's data would be backed up as "found stopped" for ever."""
    site = flow.site
    assert isinstance(site, ContainerSite)
    site.hooks("before-create")
    site.hooks("after-create")
    site.stop()
    # Stopped, and there: that is as ever.
    stopped = site.hooks("before-create")
    assert "VictoriaLogs was found stopped and stays stopped" in stopped.stderr
    site.hooks("after-create")
    docker.run("rm", site.container)
    for command in (("before-create",), ("restore", "--from", str(site.staging.path), "--yes")):
        refused = site.hooks(*command, check=False)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert re.search(
            rf"docker .*start {site.container} starts is not there: .*[Nn]o such container.*; "
            "VictoriaLogs is stopped; correct its name",
            refused.stderr,
        )
    assert site.manifest.rows
    assert "VictoriaLogs unknown: " in site.hooks("status").stdout


def test_recover_at_boot_starts_what_docker_leaves_stopped(
    flow: BackupFlow, docker: Docker
) -> None:
    site = flow.site
    others = {"runs": "unless-stopped", "stopped": "always"}
    for name, restart in others.items():
        docker.create(name, ["sleep", "infinity"], restart=restart)
        docker.run("start", name)
    docker.run("kill", "stopped")
    lose_power(flow, IN_THE_WINDOW)
    docker.lose_power()
    docker.boot()
    # So it is done with starting what it starts by itself.
    wait_until(lambda: all(map(docker.is_running, others)), 20, "Docker starts the others")
    assert not site.is_running
    assert not site.server.healthy()
    assert not site.journal_is_empty()

    recovered = site.hooks("recover")
    assert "a before-create was cut short: bringing VictoriaLogs back" in recovered.stderr
    check_recovered(flow)
    old = [row for row in site.server.rows() if row["host"] == "old"]
    assert messages(old) == messages(OLD)
    flow.again()
    TALLY.count("power loss: SIGKILL of the run, its guard, dockerd and all containers")
