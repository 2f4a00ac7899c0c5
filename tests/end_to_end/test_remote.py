"""A VictoriaLogs on another host: pulled and pushed over a real ssh."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.parts.site import Site
from tests.parts.sshd import Sshd
from tests.parts.victoria_logs import SteadyIngestion
from tests.parts.waiting import wait_until


@pytest.fixture
def remote(site: Site, sshd: Sshd) -> Site:
    """A site whose data path is on a host that is reached over ssh; with a blank in the path."""
    spaced = site.root / "victoria logs"
    spaced.mkdir()
    site.data.rmdir()
    site.data = site.root / "data"
    site.data.symlink_to(spaced)
    site.install(data_path=f"{sshd.destination}:{spaced}", ssh_command=sshd.ssh_command)
    return site


@pytest.mark.real_victorialogs
def test_a_remote_host_is_backed_up_and_restored(remote: Site, tmp_path: Path) -> None:
    with SteadyIngestion(remote.server) as ingestion:
        ingestion.wait_for(50)
        before = set(ingestion.sequences())
        remote.hooks("before-create")
        ingestion.wait_for(50)
    assert before <= {int(row["seq"]) for row in remote.server.rows("*")}
    backed_up = remote.manifest.rows
    assert backed_up >= len(before)
    assert remote.manifest.downtime_seconds is not None
    assert f": ok: {backed_up} rows, " in remote.hooks("verify", str(remote.staging.path)).stdout

    extracted = tmp_path / "extracted"
    shutil.copytree(remote.staging.path, extracted)
    shutil.rmtree(remote.data / "partitions")
    restored = remote.hooks("restore", "--from", str(extracted))
    assert f"serves {backed_up:,} rows" in restored.stderr
    assert remote.is_running
    assert remote.server.count() == backed_up


@pytest.mark.real_victorialogs
@pytest.mark.parametrize("url", [True, False])
def test_what_a_restore_replaces_on_a_remote_host_is_kept_and_returned_to(
    remote: Site, tmp_path: Path, *, url: bool
) -> None:
    remote.server.ingest([{"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}])
    remote.hooks("before-create")
    extracted = tmp_path / "extracted"
    shutil.copytree(remote.staging.path, extracted)
    remote.server.ingest([{"host": "a", "_msg": "two", "_time": "2026-01-03T00:00:00Z"}])
    remote.stop()
    remote.start()
    if not url:
        config = remote.config.read_text()
        remote.config.write_text(config.replace(f"  url: {remote.server.url}\n", ""))
        assert remote.config.read_text() != config
    refused = remote.hooks("restore", "--from", str(extracted), check=False)
    there = "2 rows are served" if url else f"2 rows are in {remote.manifest.data_path}"
    assert f"{there}, 1 are in the copy of" in refused.stderr
    remote.hooks("restore", "--from", str(extracted), "--yes")
    remote.server.wait_healthy()
    assert remote.server.count() == 1
    assert "replaced data" in remote.hooks("status").stdout
    remote.hooks("restore", "--rollback", "--yes")
    remote.server.wait_healthy()
    assert remote.server.count() == 2
    remote.hooks("restore", "--discard-replaced")
    assert not (remote.data / ".vl-borg-hooks").exists()


def test_a_remote_host_that_was_stopped_stays_stopped(remote: Site, tmp_path: Path) -> None:
    remote.server.ingest([{"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}])
    remote.stop()
    remote.hooks("before-create")
    assert not remote.is_running
    assert remote.manifest.rows == 1


@pytest.mark.real_victorialogs
def test_no_server_can_start_while_the_remote_lock_is_held(remote: Site, sshd: Sshd) -> None:
    from vl_borg_hooks.system.ssh import SshHost
    from vl_borg_hooks.victorialogs import lock

    host = SshHost(sshd.destination, tuple(sshd.ssh_command))
    spaced = str(remote.data.resolve())
    with pytest.raises(lock.LockHeld), lock.hold(host, spaced):
        pass
    remote.stop()
    with lock.hold(host, spaced):
        assert lock.is_held(host, spaced)
        remote.systemd.systemctl("start", remote.unit)
        wait_until(
            lambda: remote.systemd.show(remote.unit, "ActiveState") == "failed",
            30,
            "the server gives up",
        )
    assert not lock.is_held(host, spaced)


def test_an_unreachable_host_is_one_clear_line_and_touches_nothing(remote: Site) -> None:
    ssh = ["ssh", "-F", "/dev/null", "-p", "1", "-o", "StrictHostKeyChecking=no"]
    remote.write_config(data_path="nobody@127.0.0.1:/var/lib/victoria-logs", ssh_command=ssh)
    failed = remote.hooks("before-create", check=False)
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert "nobody@127.0.0.1 could not be reached over ssh" in line
    assert remote.is_running


@pytest.mark.real_victorialogs
def test_a_new_remote_host_gets_the_data_and_its_data_path_may_be_a_link(
    remote: Site, sshd: Sshd, tmp_path: Path
) -> None:
    remote.write_config(data_path=f"{sshd.destination}:{remote.data}", ssh_command=sshd.ssh_command)
    remote.server.ingest([{"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}])
    remote.hooks("before-create")
    extracted = tmp_path / "extracted"
    shutil.copytree(remote.staging.path, extracted)
    refused = remote.hooks("restore", "--from", str(extracted), check=False)
    assert "1 are in the copy of" in refused.stderr
    remote.stop()
    shutil.rmtree(remote.data.resolve())
    remote.data.unlink()
    remote.hooks("restore", "--from", str(extracted), "--start")
    remote.server.wait_healthy()
    assert remote.server.count() == 1
