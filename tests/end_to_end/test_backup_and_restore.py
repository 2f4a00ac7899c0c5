"""The main job: borgmatic create with our hooks, borgmatic extract, restore, and every row back."""

from __future__ import annotations

import json
import re
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.parts.command_service import write_service
from tests.parts.ports import free_port
from tests.parts.site import Site
from tests.parts.victoria_logs import LogServer, SteadyIngestion, VictoriaLogsProcess, doubled
from tests.setup.victoria_logs import Found


@pytest.fixture
def ready(site: Site) -> Site:
    site.install()
    site.write_borgmatic_config()
    site.create_repositories()
    return site


def numbered(server: LogServer) -> list[dict[str, str]]:
    return [row for row in server.rows() if row.get("host") == "steady"]


def old_rows(count: int, day: str) -> list[Mapping[str, object]]:
    return [
        {"host": "old", "_msg": f"old {n}", "n": str(n), "_time": f"{day}T00:00:00Z"}
        for n in range(count)
    ]


@pytest.mark.real_victorialogs
def test_no_acknowledged_row_is_lost_or_doubled_on_the_way_through_two_repositories(
    ready: Site, victoria_logs: Found, tmp_path: Path
) -> None:
    for day in ("2026-01-02", "2026-02-03"):
        ready.server.ingest(old_rows(500, day))
    with SteadyIngestion(ready.server) as ingestion:
        ingestion.wait_for(100)
        before = time.monotonic()
        ready.borgmatic("create")
        ingestion.wait_for(100)
    live = numbered(ready.server)
    assert not ingestion.missing(live)
    assert not doubled(live)
    assert ingestion.refused, "the stop window can't have gone unnoticed by the client"
    assert (ready.root / "own-hooks.log").read_text().count("own-hook") == 2

    for repository in ready.repositories:
        (archive,) = ready.archives(repository)
        extracted = ready.extract(repository, archive, tmp_path / repository.name)
        assert (extracted / str(ready.root / "own-documents" / "letter.txt").lstrip("/")).exists()
        with fresh_server(victoria_logs, tmp_path / f"fresh-{repository.name}") as server:
            restore_elsewhere(ready, server, extracted)
            rows = numbered(server.server)
            assert not ingestion.missing(rows, before)
            assert not doubled(rows)
            assert server.server.count() == ready.manifest.rows


def fresh_server(found: Found, directory: Path) -> VictoriaLogsProcess:
    directory.mkdir()
    return VictoriaLogsProcess(found.path, directory / "data", free_port())


def restore_elsewhere(site: Site, server: VictoriaLogsProcess, extracted: Path) -> None:
    """Restore `extracted` into a server that has nothing to do with the site's systemd."""
    script = write_service(server.data_path.with_name("service.py"), server.argv)
    server.stop()
    command = [sys.executable, str(script)]
    site.write_config(
        data_path=str(server.data_path),
        staging_path=str(server.data_path.with_name("staging")),
        url=server.server.url,
        service={"command": {verb: [*command, verb] for verb in ("stop", "start", "status")}},
    )
    try:
        site.hooks("restore", "--from", str(extracted))
        site.hooks("config", "validate")
    finally:
        site.write_config()
    server.start()


@pytest.mark.real_victorialogs
def test_lost_data_comes_back_into_the_same_server(ready: Site, tmp_path: Path) -> None:
    ready.server.ingest(old_rows(1000, "2026-01-02"))
    with SteadyIngestion(ready.server) as ingestion:
        ingestion.wait_for(50)
    ready.borgmatic("create")
    ready.stop()
    shutil.rmtree(ready.data)

    archive = ready.archives(ready.repositories[0])[-1]
    extracted = ready.extract(ready.repositories[0], archive, tmp_path / "extracted")
    done = ready.hooks("restore", "--from", str(extracted), "--start")
    assert f"serves {ready.manifest.rows:,} rows" in done.stderr
    assert ready.is_running
    assert not ingestion.missing(numbered(ready.server))
    assert ready.server.count() == 1000 + len(ingestion.sequences())


@pytest.mark.real_victorialogs
def test_data_that_was_lost_under_a_running_server_comes_back(ready: Site, tmp_path: Path) -> None:
    ready.server.ingest(old_rows(1000, "2026-01-02"))
    ready.borgmatic("create")
    shutil.rmtree(ready.data)
    extracted = ready.extract(ready.repositories[0], "latest", tmp_path / "extracted")
    ready.hooks("restore", "--from", str(extracted))
    assert ready.is_running
    assert ready.server.count() == 1000


@pytest.mark.real_victorialogs
def test_a_second_archive_holds_only_what_is_new(ready: Site) -> None:
    ready.server.ingest(
        [
            {"host": "old", "_msg": f"{n * 7919 % 100_003}", "_time": "2026-01-02T00:00:00Z"}
            for n in range(50_000)
        ]
    )
    ready.borgmatic("create")
    ready.server.ingest(old_rows(10, "2026-01-03"))
    created = ready.borgmatic("create", "--json")
    for archive in json.loads(created.stdout):
        stats = archive["archive"]["stats"]
        assert stats["deduplicated_size"] < stats["original_size"] / 2


def test_victorialogs_stops_once_for_two_repositories(ready: Site) -> None:
    ready.borgmatic("create")
    assert all(ready.archives(repository) for repository in ready.repositories)
    # Both servers say so each time that they start: once at the beginning, once after the window.
    assert Path(f"{ready.data}.log").read_text().count("started server at") == 2


def test_a_failed_before_create_archives_nothing(ready: Site) -> None:
    ready.borgmatic("create")
    ready.write_config(service={"systemd": "no-such.service"})
    failed = ready.borgmatic("create", check=False)
    assert failed.returncode != 0
    assert "systemd unit no-such.service is not-found" in failed.stdout + failed.stderr
    for repository in ready.repositories:
        assert len(ready.archives(repository)) == 1
    assert ready.is_running


def test_found_stopped_it_is_backed_up_and_stays_stopped(ready: Site, tmp_path: Path) -> None:
    ready.server.ingest(old_rows(100, "2026-01-02"))
    ready.stop()
    ready.borgmatic("create")
    assert not ready.is_running
    extracted = ready.extract(ready.repositories[1], "latest", tmp_path / "extracted")
    assert ": ok: 100 rows, " in ready.hooks("verify", str(extracted)).stdout


def test_after_extract_restores_only_where_the_config_says_so(ready: Site, tmp_path: Path) -> None:
    ready.server.ingest(old_rows(100, "2026-01-02"))
    ready.borgmatic("create")
    ready.server.ingest(old_rows(1, "2026-01-03"))
    ready.write_yaml(
        ready.borgmatic_config,
        {
            "repositories": [{"path": str(ready.repositories[0])}],
            "encryption_passphrase": "correct horse",
            "commands": [
                {
                    "after": "action",
                    "when": ["extract"],
                    "states": ["finish"],
                    "run": [f"vl-borg-hooks --config {ready.config} after-extract"],
                }
            ],
        },
    )
    ready.extract(ready.repositories[0], "latest", tmp_path / "off")
    assert ready.server.count() == 101
    ready.write_config(restore={"on_extract": True})
    ready.extract(ready.repositories[0], "latest", tmp_path / "on")
    assert ready.server.count() == 100
    assert ready.is_running


def test_a_restore_that_fails_to_serve_brings_back_what_was_there(
    ready: Site, tmp_path: Path
) -> None:
    ready.server.ingest(old_rows(100, "2026-01-02"))
    ready.borgmatic("create")
    ready.server.ingest(old_rows(11, "2026-01-03"))
    extracted = ready.extract(ready.repositories[0], "latest", tmp_path / "extracted")
    # A server that starts on anything but the restored data: as one of another version might.
    unit = (ready.systemd.unit_directory / ready.unit).read_text()
    condition = f"ExecCondition=/bin/sh -c 'test -e {ready.data}/partitions/20260103'\n"
    ready.systemd.write_unit(ready.unit, unit.replace("[Service]\n", f"[Service]\n{condition}"))
    ready.write_config(start_timeout=3)
    failed = ready.hooks("restore", "--from", str(extracted), "--yes", check=False)
    assert failed.returncode == 1
    assert "VictoriaLogs is running, on the data that was there before" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert ready.server.count() == 111
    assert ready.journal_is_empty()


def test_status_tells_what_there_is_to_know(ready: Site) -> None:
    assert "not published" in ready.hooks("status").stdout
    ready.server.ingest(old_rows(7, "2026-01-02"))
    ready.hooks("before-create")
    (found,) = json.loads(ready.hooks("status", "--json").stdout)
    assert found["instance"] == "default"
    assert found["victorialogs"] == "running"
    assert found["manifest"]["rows"] == 7
    assert found["manifest"]["final_pass"] == "frozen"
    # The outermost script above these tests, whatever that is.
    assert re.search(r"\(pid \d+, since 20", found["lease"])
    ready.hooks("after-create")
    assert json.loads(ready.hooks("status", "--json").stdout)[0]["lease"] == ""
    said = ready.hooks("status").stdout
    assert "VictoriaLogs running" in said
    assert "final pass frozen" in said


@pytest.mark.real_victorialogs
@pytest.mark.parametrize("final_pass", ["frozen", "stopped"])
def test_logs_that_came_during_the_warm_pass_are_in_the_copy(site: Site, final_pass: str) -> None:
    site.install(final_pass=final_pass)
    for day in ("2026-01-02", "2026-02-03", "2026-03-04"):
        site.server.ingest(old_rows(100, day))
    site.hooks("before-create")
    with SteadyIngestion(site.server) as ingestion:
        for day in ("2026-02-03", "2026-04-05"):
            ingestion.wait_for(30)
            site.server.ingest(old_rows(100, day))
            site.hooks("before-create")
            acknowledged = len(ingestion.sequences())
            assert site.manifest.final_pass == final_pass
            assert (
                f": ok: {site.manifest.rows} rows, "
                in site.hooks("verify", str(site.staging.path)).stdout
            )
            site.server.merge()
    assert {partition.name for partition in site.manifest.partitions} >= {"20260203", "20260405"}
    assert site.manifest.rows <= 500 + acknowledged
    assert not (site.data / ".vl-borg-hooks").exists()


def test_what_the_warm_pass_copied_is_on_the_disk_before_the_stop(
    site: Site, tmp_path: Path
) -> None:
    site.install()
    site.server.ingest(old_rows(100, "2026-01-02"))
    log = tmp_path / "log"
    sync = tmp_path / "bin" / "sync"
    sync.parent.mkdir()
    sync.write_text(
        f"""#!/bin/sh
        test -d "{site.staging.data}/partitions/20260102" &&
            systemctl show --property=MainPID --value {site.unit} >>"{log}"
        exec {shutil.which("sync")} "$@"
        """
    )
    sync.chmod(0o755)
    before = site.systemd.show(site.unit, "MainPID")
    path = f"PATH={sync.parent}:{site.environment['PATH']}"
    hooks = (sys.executable, "-m", "vl_borg_hooks", "--config", str(site.config))
    site.run("env", path, *hooks, "before-create")
    # Once while the server from before the stop window still ran, and once after it.
    assert log.read_text().split() == [before, site.systemd.show(site.unit, "MainPID")]
