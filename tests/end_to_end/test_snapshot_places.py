"""`consistency: snapshot` wherever VictoriaLogs is: over ssh, in a container, as another user."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.parts.container_site import ContainerSite
from tests.parts.docker import Docker
from tests.parts.site import Site
from tests.parts.sshd import Sshd
from tests.parts.systemd import Systemd, victoria_logs_unit
from tests.parts.victoria_logs import SteadyIngestion
from tests.setup.victoria_logs import Found

pytestmark = pytest.mark.real_victorialogs
USER = "nobody"


def snapshots_of(site: Site) -> list[Path]:
    return list(site.data.glob("partitions/*/snapshots/*"))


def check_backup(site: Site, *arguments: str) -> str:
    """Back the site up while it takes rows; return what was said."""
    process = site.systemd.show(site.unit, "MainPID") if arguments else ""
    with SteadyIngestion(site.server) as ingestion:
        ingestion.wait_for(50)
        before = set(ingestion.sequences())
        said = site.hooks("-v", "before-create", *arguments).stderr
        ingestion.wait_for(10)
    assert ingestion.refused == 0
    assert snapshots_of(site) == []
    assert not (site.root / "state/default/snapshots.json").exists()
    manifest = site.manifest
    assert (manifest.consistency, manifest.final_pass) == ("snapshot", "snapshot")
    assert manifest.downtime_seconds is None
    assert manifest.rows >= len(before)
    assert process == "" or process == site.systemd.show(site.unit, "MainPID")
    assert "VictoriaLogs was not stopped" in said
    return said


def check_restore(site: Site, directory: Path) -> None:
    """Restore the copy into an empty data path; all rows of the manifest are served."""
    rows = site.manifest.rows
    extracted = directory / "extracted"
    shutil.copytree(site.staging.path, extracted)
    site.hooks("restore", "--from", str(extracted), "--yes")
    site.server.wait_healthy()
    assert site.server.count() == rows
    assert site.server.count('{host="steady"}') == rows


def test_a_local_server_through_borgmatic(site: Site, tmp_path: Path) -> None:
    site.install(consistency="snapshot")
    site.write_borgmatic_config(repositories=[{"path": str(site.repositories[0])}])
    site.create_repositories()
    with SteadyIngestion(site.server) as ingestion:
        ingestion.wait_for(50)
        before = set(ingestion.sequences())
        site.borgmatic("create")
        site.borgmatic("create")
    assert ingestion.refused == 0
    rows = site.manifest.rows
    site.stop()
    shutil.rmtree(site.data / "partitions")
    site.start()
    archive = site.archives(site.repositories[0])[-1]
    extracted = site.extract(site.repositories[0], archive, tmp_path / "extracted")
    site.hooks("restore", "--from", str(extracted), "--yes")
    site.server.wait_healthy()
    assert before <= {int(row["seq"]) for row in site.server.rows("*")}
    assert site.server.count() == rows
    said = site.hooks("status").stdout
    assert "not stopped for it (consistency: snapshot in the config), final pass snapshot" in said


def test_a_server_over_ssh(site: Site, sshd: Sshd, tmp_path: Path) -> None:
    site.install(
        data_path=f"{sshd.destination}:{site.data}",
        ssh_command=sshd.ssh_command,
        consistency="snapshot",
    )
    check_backup(site)
    site.hooks("after-create", "--force")
    check_backup(site)
    check_restore(site, tmp_path)


def test_a_server_in_a_container_that_calls_its_paths_otherwise(
    tmp_path: Path, victoria_logs: Found, systemd: Systemd, docker: Docker
) -> None:
    site = ContainerSite(tmp_path / "site", victoria_logs.path, systemd, "victorialogs-s", docker)
    site.install(consistency="snapshot")
    check_backup(site)
    check_restore(site, tmp_path)


def test_a_server_with_a_relative_data_path(site: Site, tmp_path: Path) -> None:
    site.install(consistency="snapshot")
    site.stop()
    unit = victoria_logs_unit(site.executable, Path("data"), site.port)
    unit = unit.replace("[Service]\n", f"[Service]\nWorkingDirectory={site.root}\n")
    site.systemd.write_unit(site.unit, unit)
    site.start()
    check_backup(site)
    check_restore(site, tmp_path)


def test_a_user_who_may_only_read_the_data(site: Site, tmp_path: Path) -> None:
    """VictoriaLogs is root's here; nothing is written into its data, and no service manager is asked."""
    for parent in tmp_path.parents:
        if parent != Path("/tmp") and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)
    site.install(consistency="snapshot", service={})
    for path in (site.root, site.root / "etc", site.config):
        shutil.chown(path, USER)
    hooks = ("/usr/bin/env", sys.executable, "-m", "vl_borg_hooks", "--config", str(site.config))
    environment = {"HOME": str(site.root), "PATH": os.environ["PATH"]}
    with SteadyIngestion(site.server) as ingestion:
        ingestion.wait_for(50)
        before = len(ingestion.sequences())
        # The Python of the tests may lie where only root may look.
        properties = {"User": USER, "AmbientCapabilities": "CAP_DAC_READ_SEARCH"}
        done = site.systemd.run_as_service([*hooks, "before-create"], environment, properties)
    assert done.returncode == 0, done.stderr
    assert ingestion.refused == 0
    assert site.manifest.rows >= before
    assert not (site.data / ".vl-borg-hooks").exists()
    assert snapshots_of(site) == []


@pytest.mark.parametrize("wanted", ["auto", "stop"])
def test_auto_takes_snapshots_and_the_default_does_not(site: Site, wanted: str) -> None:
    site.install(consistency=wanted)
    site.server.ingest([{"host": "a", "_msg": "one"}])
    site.hooks("before-create")
    manifest = site.manifest
    if wanted == "auto":
        assert manifest.consistency_why == "VictoriaLogs offers snapshots"
        assert manifest.downtime_seconds is None
    else:
        assert manifest.consistency == "stop"
        assert manifest.downtime_seconds is not None
        said = site.hooks("config", "validate").stdout
        assert "need not be stopped for a backup: set consistency: snapshot" in said
    found: dict[str, Any] = json.loads(site.hooks("status", "--json").stdout)[0]
    assert found["manifest"]["consistency"] == manifest.consistency
