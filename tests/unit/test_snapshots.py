"""Which path is that of a snapshot, and what is in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.victorialogs import snapshots

NAME = "20261124193015-18AFAB146E0F8AC1"


@pytest.mark.parametrize(
    "before", ["/var/lib/victoria-logs/", "victoria-logs-data/", "", "/a/../b/"]
)
def test_only_the_end_of_the_servers_path_counts(before: str) -> None:
    # In a container, or relative to where the server was started: its own path says nothing to us.
    found = snapshots.at(f"{before}partitions/20261123/snapshots/{NAME}")
    assert (found.day, found.name) == ("20261123", NAME)
    assert found.path == f"partitions/20261123/snapshots/{NAME}"
    assert found.made_at == 1795548615


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        f"/data/partitions/20261123/snapshots/{NAME}/../../../../../etc",
        f"/data/partitions/../snapshots/{NAME}",
        f"/data/partitions/2026112/snapshots/{NAME}",
        "/data/partitions/20261123/snapshots/..",
        "/data/partitions/20261123/snapshots/20261324193015-18AF",
        f"/data/partitions/20261123/snapshots/{NAME}\n",
        f"/data/partitions/\uff12\uff10261123/snapshots/{NAME}",
    ],
)
def test_what_is_no_snapshot_is_refused(path: str) -> None:
    with pytest.raises(
        OperatorError, match="a snapshot, which is not partitions/DAY/snapshots/NAME"
    ):
        snapshots.at(path)


def test_the_tables_are_those_of_its_own_lists(tmp_path: Path) -> None:
    for kind in ("datadb", "indexdb"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "parts.json").write_text(json.dumps([f"{kind}1"]))
    found = snapshots.tables(LocalHost(), str(tmp_path))
    assert {kind: table.parts for kind, table in found.items()} == {
        "datadb": ("datadb1",),
        "indexdb": ("indexdb1",),
    }


@pytest.mark.parametrize("missing", ["datadb/parts.json", "indexdb/parts.json"])
def test_a_snapshot_that_is_being_deleted_is_not_an_empty_one(tmp_path: Path, missing: str) -> None:
    for kind in ("datadb", "indexdb"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "parts.json").write_text("[]")
    (tmp_path / missing).unlink()
    with pytest.raises(OperatorError, match="could not list the snapshot"):
        snapshots.tables(LocalHost(), str(tmp_path))


def test_a_filesystem_with_hard_links_is_known() -> None:
    # /proc has none, and no server either.
    assert not snapshots.is_known_for_hard_links(LocalHost(), "/proc")
    assert snapshots.is_known_for_hard_links(LocalHost(), "/dev/shm")
