"""Room for the staging copy, and for VictoriaLogs beside it, is asked for before anything else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.parts.fakes import FakeClient, FakeHost, held, with_client
from tests.support import make_backup, make_copy, make_data, make_part, make_restore
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.plugin.context import Backup, Restore
from vl_borg_hooks.steps import space

DISK = 100_000_000_000
LIMITS = "VictoriaLogs' disk limits"
PART = "partitions/20261122/datadb/18A0000000000000"


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    make_data(tmp_path / "data", days=["20261122"])
    return make_backup(tmp_path, url="http://127.0.0.1:1")


def on_two_filesystems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "_on_one_filesystem", lambda backup: False)
    # Nor two subvolumes of one, as on a machine whose /tmp is a btrfs.
    monkeypatch.setattr(space, "_can_reflink", lambda backup: False)


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
    with held(Path(backup.data_directory)):
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


def test_a_filesystem_that_others_have_filled_is_no_matter_of_the_servers_percent(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = {"retention.maxDiskUsagePercent": "1", "retention.maxDiskSpaceUsageBytes": "1"}
    assert limits(backup, monkeypatch, flags, free=DISK // 100).ok


@pytest.mark.parametrize(
    "flags",
    [
        None,
        {},
        {"storage.minFreeDiskSpaceBytes": ""},
        {"storage.minFreeDiskSpaceBytes": "10000000"},
    ],
)
def test_a_limit_that_is_not_told_is_the_default(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, flags: Mapping[str, str] | None
) -> None:
    enough = 10_000_000 + space.RESERVE_BYTES
    assert limits(backup, monkeypatch, flags, free=enough).ok
    assert not limits(backup, monkeypatch, flags, free=enough - 1).ok


def test_a_limit_of_nothing_needs_only_the_reserve(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = {"storage.minFreeDiskSpaceBytes": "0"}
    assert limits(backup, monkeypatch, none, free=space.RESERVE_BYTES).ok


def room(restore: Restore, free: int) -> Check:
    restore.host = FakeHost(free=free)
    (found,) = space.restore_checks(restore)
    return found


@pytest.fixture
def restored(tmp_path: Path) -> Restore:
    make_data(tmp_path / "data", days=["20261122"])
    copy = make_copy(tmp_path / "extracted")
    return make_restore(tmp_path, copy, copy.manifest())


@pytest.mark.parametrize("discard", [True, False])
def test_a_restore_needs_room_for_the_copy_beside_the_data(
    restored: Restore, *, discard: bool
) -> None:
    restored.discard_replaced = discard
    found = room(restored, restored.manifest.bytes - 1)
    assert not found.ok
    assert f"the filesystem of {restored.data_directory} has" in found.what
    assert "is kept until the restored data is proved" in found.hint


@pytest.mark.parametrize("discard", [True, False])
def test_to_keep_what_is_replaced_needs_room_for_new_logs_beside_both(
    restored: Restore, *, discard: bool
) -> None:
    restored.discard_replaced = discard
    enough = restored.manifest.bytes + space.MIN_FREE_BYTES + space.RESERVE_BYTES
    assert room(restored, enough).ok
    found = room(restored, enough - 1)
    assert found.ok is discard
    if not discard:
        assert "with the replaced data kept beside it, there would be 74.0 MB" in found.what
        assert "add --discard-replaced" in found.hint


def test_if_nothing_is_replaced_nothing_needs_room_beside_the_copy(restored: Restore) -> None:
    shutil.rmtree(restored.data_directory)
    assert room(restored, restored.manifest.bytes).ok
