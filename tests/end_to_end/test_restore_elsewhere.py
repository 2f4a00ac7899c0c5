"""A restore into another place: a data directory of its own, or an instance of another name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.parts.ports import free_port
from tests.parts.site import Site
from tests.parts.victoria_logs import VictoriaLogsProcess
from tests.setup.victoria_logs import Found


def rows_of(day: str, count: int) -> list[Mapping[str, object]]:
    return [
        {"host": "old", "_msg": f"{day} {n}", "_time": f"{day}T00:00:00Z"} for n in range(count)
    ]


@pytest.mark.real_victorialogs
def test_a_victorialogs_on_a_new_machine_serves_every_row_of_the_archive(
    site: Site, victoria_logs: Found, tmp_path: Path
) -> None:
    site.install()
    site.write_borgmatic_config(repositories=[{"path": str(site.repositories[0])}])
    site.create_repositories()
    site.server.ingest([*rows_of("2026-01-02", 700), *rows_of("2025-06-07", 300)])
    archived = sorted(site.server.rows(), key=lambda row: row["_msg"])
    site.borgmatic("create")
    # Neither the server that runs nor its rows have to do with what follows.
    site.server.ingest(rows_of("2026-01-03", 10))
    extracted = site.extract(site.repositories[0], "latest", tmp_path / "extracted")
    new = tmp_path / "machine" / "victoria-logs"
    site.config.unlink()
    site.run("vl-borg-hooks", "restore", "--from", str(extracted), "--to", str(new))
    with VictoriaLogsProcess(victoria_logs.path, new, free_port()) as server:
        assert sorted(server.server.rows(), key=lambda row: row["_msg"]) == archived
        server.server.ingest(rows_of("2026-01-04", 1))
        assert server.server.count() == 1001
    assert site.is_running
    assert site.server.count() == 1010


def test_a_copy_goes_into_an_instance_of_another_name(site: Site) -> None:
    site.install()
    site.server.ingest(rows_of("2026-01-02", 100))
    site.hooks("before-create")
    site.server.ingest(rows_of("2026-01-03", 11))
    site.write_config(name="other", staging_path=str(site.root / "other"))
    refused = site.hooks("restore", "--from", str(site.staging.path), "--yes", check=False)
    assert refused.returncode == 1
    assert "holds copies of default, none of other" in refused.stderr
    done = site.hooks("restore", "--from", str(site.staging.path), "--as", "other", "--yes")
    assert "other: restored: 100 rows, " in done.stderr
    assert site.server.count() == 100
