"""Publishing: the copy is proved to be consistent, and its manifest says what it is."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from tests.parts.fakes import FakeClient, with_client
from tests.support import make_backup, make_data, make_part, said
from vl_borg_hooks import __version__
from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.plugin.context import Backup, Copied
from vl_borg_hooks.staging.last_published import LastPublished
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.staging.verify import verify
from vl_borg_hooks.steps.publish import publish_copy
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import PassResult, progress
from vl_borg_hooks.victorialogs import parts

TABLE = "partitions/20261122/datadb"
FINAL = PassResult(3, 4000, 0.25)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No directory is too young to be known, and the disk is not waited for."""
    monkeypatch.setattr("vl_borg_hooks.staging.walk.TOO_YOUNG_NANOSECONDS", -60_000_000_000)
    monkeypatch.setattr(LocalHost, "sync", lambda host, path: None)


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    make_data(tmp_path / "data")
    backup = make_backup(tmp_path)
    backup.records.create()
    backup.staging.create()
    make_data(backup.staging.data)
    (backup.staging.data / "flock.lock").unlink()
    return backup


def published(backup: Backup, **copied: object) -> Manifest:
    return publish_copy(backup, Copied(**{"final": FINAL, **copied}))  # type: ignore[arg-type]


def known(backup: Backup) -> LastPublished:
    """What the run before has kept for this one, which has looked at the files."""
    last = LastPublished.of(backup.staging, backup.staging.manifest(), backup.records.directory)
    assert last
    assert last.look(every=1e9).is_as_published
    return last


def test_the_manifest_says_what_was_copied_how_and_from_where(backup: Backup) -> None:
    backup.downtime = 1.5
    made = published(backup, warm=PassResult(9, 9000, 7.5), final_pass="frozen", linked=True)
    # As it is read by whoever verifies it.
    assert backup.staging.manifest() == made
    assert made.instance == "default"
    assert made.data_path == backup.data_directory
    assert made.created_by == f"vl-borg-hooks {__version__}"
    age = datetime.now(timezone.utc) - datetime.fromisoformat(made.created)
    assert timedelta(0) <= age < timedelta(minutes=1)
    assert (made.warm_seconds, made.final_seconds, made.downtime_seconds) == (7.5, 0.25, 1.5)
    assert (made.final_pass, made.linked) == ("frozen", True)
    assert made.owner == (os.geteuid(), os.getegid())
    files = [path for path in backup.staging.data.rglob("*") if path.is_file()]
    assert (made.files, made.bytes) == (len(files), sum(path.stat().st_size for path in files))
    # Two parts of 10 and 11 rows in each.
    assert [(day.name, day.rows) for day in made.partitions] == [("20261121", 21), ("20261122", 21)]
    assert made.rows == 42
    assert verify(backup.staging).is_sound


def test_of_a_server_that_was_found_stopped_the_manifest_says_neither_warm_pass_nor_downtime(
    backup: Backup,
) -> None:
    made = published(backup)
    assert (made.warm_seconds, made.downtime_seconds) == (None, None)


@pytest.mark.parametrize(
    ("flags", "expected"), [({}, "v1.51.1"), (None, "")], ids=["answers", "does not answer"]
)
def test_the_manifest_names_the_servers_version_if_the_server_tells(
    backup: Backup,
    monkeypatch: pytest.MonkeyPatch,
    flags: Mapping[str, str] | None,
    expected: str,
) -> None:
    with_client(monkeypatch, FakeClient(flags))
    assert published(backup).victorialogs_version == expected


def test_a_copy_of_data_that_has_gone_names_no_owner(backup: Backup) -> None:
    Path(backup.data_directory).rename(Path(backup.data_directory).with_name("elsewhere"))
    assert published(backup).owner is None


def test_parts_that_do_not_count_are_removed_from_the_copy(backup: Backup) -> None:
    stray = backup.staging.data / TABLE / "18C0000000000001"
    make_part(stray, rows=1000, day=20261122)
    assert published(backup).rows == 42
    assert not stray.exists()
    assert (backup.staging.data / TABLE / "18A0000000000000").exists()
    assert verify(backup.staging).is_sound


def truncate(data: Path) -> None:
    (data / TABLE / "18A0000000000000" / "values.bin0").write_bytes(b"short")


def lose_a_part(data: Path) -> None:
    (data / TABLE / "18A0000000000000").rename(data / "elsewhere")


def lose_a_list(data: Path) -> None:
    (data / TABLE / "parts.json").unlink()


def make_a_link(data: Path) -> None:
    (data / TABLE / "18A0000000000000" / "link").symlink_to("/etc/passwd")


@pytest.mark.parametrize("damage", [truncate, lose_a_part, lose_a_list, make_a_link])
def test_a_copy_that_is_not_consistent_is_not_published(backup: Backup, damage: object) -> None:
    assert callable(damage)
    damage(backup.staging.data)
    with pytest.raises(InvalidCopy, match=TABLE):
        published(backup)
    assert not backup.staging.manifest_path.exists()


def test_the_first_of_several_problems_is_named_and_the_others_are_counted(backup: Backup) -> None:
    for day in ("20261121", "20261122"):
        part = backup.staging.data / "partitions" / day / "datadb" / "18A0000000000000"
        (part / "values.bin0").write_bytes(b"short")
    with pytest.raises(InvalidCopy) as caught:
        published(backup)
    assert caught.value.what.startswith("the staging copy is not consistent: ")
    assert "partitions/20261121/" in caught.value.what
    assert caught.value.what.endswith(" (and 1 more)")


def test_what_is_kept_for_the_next_run_is_of_this_copy_and_when_it_was_looked_at(
    backup: Backup,
) -> None:
    before = time.time()
    published(backup)
    last = LastPublished.of(backup.staging, backup.staging.manifest(), backup.records.directory)
    assert last
    assert last.looked_at >= int(before)
    last.looked_at = 1234.5
    published(backup, last_published=last)
    last = LastPublished.of(backup.staging, backup.staging.manifest(), backup.records.directory)
    assert last
    assert last.looked_at == 1234


def test_a_copy_that_is_not_consistent_does_not_replace_what_is_known_of_the_last_one(
    backup: Backup,
) -> None:
    published(backup)
    backup.staging.unpublish()
    part = backup.staging.data / TABLE / "18A0000000000000"
    damage(part / "values.bin0")
    for _ in range(2):
        # Also in the next run: else the first failure would make the damage the truth.
        with pytest.raises(InvalidCopy, match=r"is not consistent: .*/values.bin0: is not as it"):
            published(backup)
    assert not backup.staging.manifest_path.exists()
    assert not (part.parent / ".inventory.jsonl.new").exists()


def test_what_only_a_second_reading_shows_is_not_published(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that loses bits changes no ctime."""
    monkeypatch.setattr("vl_borg_hooks.staging.last_published.stamp", lambda statuses: 5)
    monkeypatch.setattr("vl_borg_hooks.staging.walk.stamp", lambda statuses: 5)
    published(backup)
    path = backup.staging.data / TABLE / "18A0000000000000" / "values.bin0"
    damage(path)
    monkeypatch.setattr("vl_borg_hooks.staging.last_published._is_due", lambda *_: True)
    # As after a plugin's make_copy, which has not looked at the copy.
    with pytest.raises(InvalidCopy, match=r"values.bin0: is not as it was"):
        published(backup)


def test_a_damaged_file_can_be_backed_up_if_the_operator_wants_that(backup: Backup) -> None:
    published(backup)
    damage(backup.staging.data / TABLE / "18A0000000000000" / "values.bin0")
    with pytest.raises(InvalidCopy) as caught:
        published(backup)
    assert f"remove {backup.staging.inventory_path}" in caught.value.hint
    backup.staging.inventory_path.unlink()
    published(backup)
    assert verify(backup.staging).is_sound


@pytest.mark.parametrize("name", ["parts.json", "../../../delete_tasks.json"])
def test_what_is_beside_the_parts_may_change(backup: Backup, name: str) -> None:
    path = backup.staging.data / TABLE / name
    path.touch()
    published(backup)
    path.write_text(json.dumps(["18A0000000000001", "18A0000000000000"]))
    published(backup)
    assert verify(backup.staging).is_sound


def damage(path: Path) -> None:
    """Change every byte of a file, and neither its size nor its modification time."""
    times = path.stat()
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_partitions_that_have_not_changed_are_not_read_again(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = published(backup)
    last = known(backup)
    part = backup.staging.data / TABLE / "18C0000000000001"
    make_part(part, rows=5, day=20261122)
    new = part.with_name(".parts.json.new")
    new.write_text(json.dumps(["18A0000000000000", "18A0000000000001", part.name]))
    new.rename(part.with_name("parts.json"))
    read: list[str] = []
    summarize = parts.summarize

    def noting(
        data: Path, name: str, sizes: dict[str, int], problems: list[str]
    ) -> parts.PartitionSummary:
        read.append(name)
        return summarize(data, name, sizes, problems)

    monkeypatch.setattr(parts, "summarize", noting)
    second = published(backup, last_published=last)
    assert read == ["20261122"]
    assert second.partitions[0] == first.partitions[0]
    assert second.rows == first.rows + 5
    assert verify(backup.staging).is_sound
    # And again nothing but what changes then.
    read.clear()
    assert published(backup, last_published=known(backup)).rows == second.rows
    assert read == []


def test_how_far_the_first_hashing_is_is_said_by_bytes(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0)
    size = sum(path.stat().st_size for path in backup.staging.data.rglob("*") if path.is_file())
    warm = PassResult(1, 1000, 0.1, linked_files=9, linked_bytes=size - 1000)
    with said() as lines:
        published(backup, warm=warm, final=PassResult(0, 0, 0.1))
    hashed = [line for line in lines if "hashed, " in line and "/s" in line]
    shares = [int(re.findall(r"(\d+)%", line)[0]) for line in hashed]
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert hashed[-1].startswith(f"default: the copy: {progress.human_bytes(size)} hashed, ")
    assert any("left" in line for line in hashed)
