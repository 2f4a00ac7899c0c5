"""Room for the staging copy, and for VictoriaLogs beside it, is asked for before anything else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.parts.fakes import FakeClient, FakeHost, with_client
from tests.support import make_backup, make_data, make_part
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.steps import space

DISK = 100_000_000_000
LIMITS = "VictoriaLogs' disk limits"
PART = "partitions/20261122/datadb/18A0000000000000"


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    make_data(tmp_path / "data", days=["20261122"])
    return make_backup(tmp_path, url="http://127.0.0.1:1")


def on_two_filesystems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "_device", lambda path: "staging" in path)


def checks(backup: Backup, *, free: int = DISK) -> dict[str, Check]:
    backup.host = FakeHost(free=free)
    return {found.name: found for found in space.backup_checks(backup)}


def limits(
    backup: Backup,
    monkeypatch: pytest.MonkeyPatch,
    flags: Mapping[str, str] | None,
    *,
    free: int,
) -> Check:
    with_client(monkeypatch, FakeClient(flags))
    blocks = DISK // 4096
    size = os.statvfs_result((4096, 4096, blocks, 0, 0, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: size)
    return checks(backup, free=free)[LIMITS]


def size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*"))


def parts_of(data: Path) -> int:
    return sum(size(part) for part in data.glob("partitions/*/*/*") if part.is_dir())


def test_all_parts_that_the_staging_copy_lacks_need_room_on_its_own_filesystem(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_two_filesystems(monkeypatch)
    needed = parts_of(Path(backup.data_directory))
    assert needed > 0
    enough = needed + space.RESERVE_BYTES
    assert checks(backup, free=enough)["room"].ok
    room = checks(backup, free=enough - 1)["room"]
    assert not room.ok
    assert f"the filesystem of {backup.staging.path} has 64.0 MB free" in room.what
    assert "in reserve" in room.what


def test_parts_that_the_staging_copy_has_need_no_room(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_two_filesystems(monkeypatch)
    data = Path(backup.data_directory)
    (backup.staging.data / PART).mkdir(parents=True)
    needed = parts_of(data) - size(data / PART)
    assert space.missing_bytes(backup) == needed
    assert checks(backup, free=needed + space.RESERVE_BYTES)["room"].ok


def test_parts_that_do_not_count_need_no_room(backup: Backup) -> None:
    before = space.missing_bytes(backup)
    data = Path(backup.data_directory)
    make_part(data / "partitions/20261122/datadb/18C0", rows=1000, day=20261122)
    assert space.missing_bytes(backup) == before


def test_a_part_that_a_merge_has_just_removed_needs_no_room(backup: Backup) -> None:
    before = space.missing_bytes(backup)
    table = Path(backup.data_directory, "partitions/20261122/datadb")
    listed = json.loads((table / "parts.json").read_text())
    (table / "parts.json").write_text(json.dumps([*listed, "18C0000000000001"]))
    assert space.missing_bytes(backup) == before


def test_a_copy_that_shares_its_files_needs_only_the_reserve(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_client(monkeypatch, None)
    assert parts_of(Path(backup.data_directory)) > 0
    assert checks(backup, free=space.RESERVE_BYTES)["room"].ok
    room = checks(backup, free=space.RESERVE_BYTES - 1)["room"]
    assert not room.ok
    assert "needs 0 B more and 64.0 MB in reserve" in room.what


def test_a_staging_path_that_is_not_there_yet_is_on_the_filesystem_that_it_will_be_on(
    tmp_path: Path,
) -> None:
    make_data(tmp_path / "data", days=["20261122"])
    backup = make_backup(tmp_path, staging_path=str(tmp_path / "not" / "there" / "yet"))
    assert checks(backup, free=space.RESERVE_BYTES)["room"].ok
    assert not (tmp_path / "not").exists()


def test_data_on_another_host_is_not_measured(tmp_path: Path) -> None:
    backup = make_backup(tmp_path, data_path="u@h:/data", ssh_command=["/bin/false"])
    assert list(space.backup_checks(backup)) == []


def test_what_is_no_data_directory_is_not_measured(tmp_path: Path) -> None:
    backup = make_backup(tmp_path, url="http://127.0.0.1:1")
    assert list(space.backup_checks(backup)) == []


@pytest.mark.parametrize("two", [True, False])
def test_the_servers_limits_matter_only_on_its_own_filesystem(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, *, two: bool
) -> None:
    with_client(monkeypatch, FakeClient({}))
    if two:
        on_two_filesystems(monkeypatch)
    assert (LIMITS in checks(backup)) is not two


def test_without_url_the_servers_limits_are_not_asked_for(tmp_path: Path) -> None:
    make_data(tmp_path / "data", days=["20261122"])
    assert list(checks(make_backup(tmp_path))) == ["room"]


def test_the_copy_leaves_victorialogs_the_room_below_which_it_takes_no_logs(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"storage.minFreeDiskSpaceBytes": "10GB"}
    enough = 10_000_000_000 + space.RESERVE_BYTES
    assert limits(backup, monkeypatch, flags, free=enough).ok
    refused = limits(backup, monkeypatch, flags, free=enough - 1)
    assert not refused.ok
    assert f"{backup.data_directory} would have 10.1 GB free" in refused.what
    assert refused.what.endswith("takes no logs below 10.0 GB")


def test_a_filesystem_that_is_nearly_as_full_as_victorialogs_lets_it_be_gets_no_copy(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"retention.maxDiskUsagePercent": "80"}
    assert limits(backup, monkeypatch, flags, free=26 * DISK // 100).ok
    refused = limits(backup, monkeypatch, flags, free=24 * DISK // 100)
    assert not refused.ok
    assert "is 76 % full" in refused.what
    assert "drops its oldest logs at 80 %" in refused.what
    assert refused.hint == "put the staging copy on another filesystem"


@pytest.mark.parametrize(
    "flags",
    [
        None,
        {},
        {"storage.minFreeDiskSpaceBytes": "much", "retention.maxDiskUsagePercent": "most"},
        {"storage.minFreeDiskSpaceBytes": "0", "retention.maxDiskUsagePercent": "0"},
    ],
)
def test_a_limit_that_is_not_set_or_not_told_is_none(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, flags: Mapping[str, str] | None
) -> None:
    found = limits(backup, monkeypatch, flags, free=space.RESERVE_BYTES)
    assert found.ok
    assert found.what == "100 % of the filesystem is used"
