"""The warm pass if the staging copy is on the data's own filesystem: links, and no copies."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import make_backup, make_data, make_part, make_partition, tree
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.steps import passes
from vl_borg_hooks.transfer import PassResult, rsync
from vl_borg_hooks.victorialogs import changes

TABLE = "partitions/20261122/datadb"


@pytest.fixture
def backup(tmp_path: Path) -> Backup:
    data = make_data(tmp_path / "data")
    backup = make_backup(tmp_path, data_path=str(data))
    backup.staging.create()
    return backup


def warm_pass(backup: Backup, *, is_as_published: bool = False) -> tuple[PassResult, float]:
    """One warm pass of a run of its own; returns also when all of the copy was compared, or 0."""
    run = passes.Passes(backup)
    run.is_as_published = is_as_published
    run.listing = changes.read(backup.host, backup.data_directory)
    return run.warm_pass(), run.compared


def add_part(data: Path, name: str, *, rows: int = 50) -> None:
    """Write a part and then list it, as VictoriaLogs does."""
    make_part(data / TABLE / name, rows=rows, day=20261122)
    listed = json.loads((data / TABLE / "parts.json").read_text())
    new = data / TABLE / ".parts.json.new"
    new.write_text(json.dumps([*listed, name]))
    new.rename(data / TABLE / "parts.json")


def copies(backup: Backup) -> list[str]:
    """The files of parts that are in the staging copy a second time, and no link."""
    data = Path(backup.data_directory)
    return [
        str(path.relative_to(backup.staging.data))
        for path in sorted(backup.staging.data.glob("partitions/*/*/*/*"))
        if not os.path.samefile(path, data / path.relative_to(backup.staging.data))
    ]


def assert_equal(backup: Backup) -> None:
    data = tree(Path(backup.data_directory))
    del data["flock.lock"]
    assert tree(backup.staging.data) == data


def test_a_first_pass_and_later_ones_make_links(backup: Backup) -> None:
    data = Path(backup.data_directory)
    warm_pass(backup)
    assert copies(backup) == []
    add_part(data, "18C0000000000001")
    make_partition(data / "partitions" / "20261123")
    shutil.rmtree(data / "partitions" / "20261121")
    result, _ = warm_pass(backup)
    assert copies(backup) == []
    assert_equal(backup)
    assert warm_pass(backup)[0].bytes == 0
    # Only the lists are copied: they are replaced one day.
    assert result.bytes < 1000


def test_what_is_damaged_in_the_staging_copy_is_repaired(backup: Backup) -> None:
    warm_pass(backup)
    staging = backup.staging.data
    gone, stray = staging / TABLE / "18A0000000000000" / "index.bin", staging / TABLE / "stray"
    gone.unlink()
    stray.touch()
    warm_pass(backup)
    assert_equal(backup)
    (staging / TABLE / "parts.json").unlink()
    (staging / TABLE / "parts.json").write_text("no JSON")
    shutil.rmtree(staging / "partitions/20261121")
    warm_pass(backup)
    assert copies(backup) == []
    assert_equal(backup)


@pytest.mark.parametrize("linked", [True, False])
def test_only_what_is_new_is_copied_to_a_copy_that_is_as_it_was_published(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    data = Path(backup.data_directory)
    monkeypatch.setattr(Backup, "on_one_filesystem", linked)
    _, compared = warm_pass(backup)
    assert compared > 0
    known = backup.staging.data / TABLE / "18A0000000000000" / "index.bin"
    content = known.read_bytes()
    if not linked:
        # A mark by which a comparison would show.
        known.write_bytes(bytes(reversed(content)))
    add_part(data, "18C0000000000001")
    make_partition(data / "partitions" / "20261123")
    shutil.rmtree(data / "partitions" / "20261121")
    (data / "delete_tasks").write_text("new")
    _, compared = warm_pass(backup, is_as_published=True)
    assert compared == 0
    assert linked or known.read_bytes() != content
    known.write_bytes(content)
    assert_equal(backup)
    assert copies(backup) == [] or not linked
    assert warm_pass(backup, is_as_published=True)[0].bytes < 100


@pytest.mark.parametrize("deleted", [False, True])
def test_what_is_written_between_a_listing_and_its_pass_comes_with_the_next_pass(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, deleted: bool
) -> None:
    data = Path(backup.data_directory)
    (data / "delete_tasks.json").write_text("[1]")
    warm_pass(backup)
    monkeypatch.setattr(passes, "ENOUGH_BYTES", 0)
    add_part(data, "18C0000000000001")
    writes: list[Callable[[], object]] = [lambda: add_part(data, "18C0000000000002", rows=5)]
    if deleted:
        writes.append(lambda: (data / TABLE / "18A0000000000000" / "deleted_rows.bin").touch())
        writes.append(lambda: (data / "delete_tasks.json").write_text("[]"))

    class Busy(passes.Passes):
        def warm_pass(self) -> PassResult:
            while writes:
                writes.pop(0)()
            return super().warm_pass()

    run = Busy(backup)
    run.is_as_published = True
    run.warm_up()
    assert_equal(backup)


def test_other_directories_are_compared_each_time(backup: Backup) -> None:
    extra = Path(backup.data_directory) / "extra"
    extra.mkdir()
    (extra / "a").touch()
    warm_pass(backup)
    (extra / "a").unlink()
    warm_pass(backup, is_as_published=True)
    assert_equal(backup)


def test_a_table_that_has_no_list_yet_is_there_all_the_same(backup: Backup) -> None:
    warm_pass(backup)
    (Path(backup.data_directory) / "partitions/20261123/datadb").mkdir(parents=True)
    warm_pass(backup, is_as_published=True)
    assert (backup.staging.data / "partitions/20261123/datadb").is_dir()


def test_parts_that_were_merged_make_room_first(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, here = Path(backup.data_directory), backup.staging.data
    warm_pass(backup)
    add_part(data, "18C0000000000001")
    (data / TABLE / "parts.json").write_text(json.dumps(["18C0000000000001"]))
    left: list[list[Path]] = []
    copy = rsync.copy

    def noting(*arguments: Any, **options: Any) -> PassResult:
        left.append(list((here / TABLE).glob("18A*")))
        return copy(*arguments, **options)

    monkeypatch.setattr(rsync, "copy", noting)
    warm_pass(backup, is_as_published=True)
    assert left == [[]]


def test_a_copy_is_compared_after_rows_were_deleted(backup: Backup) -> None:
    _, before = warm_pass(backup)
    (Path(backup.data_directory) / "delete_tasks.json").write_text("[]")
    _, compared = warm_pass(backup, is_as_published=True)
    assert compared > before
    assert_equal(backup)


def test_what_a_merge_made_between_two_passes_is_linked_in_the_end(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    warm_pass(backup)
    run = passes.Passes(backup)
    run.listing = changes.read(backup.host, backup.data_directory)
    add_part(Path(backup.data_directory), "18C0000000000001", rows=500)
    monkeypatch.setattr(passes, "MUCH_COPIED_BYTES", 1000)
    run.warm_pass()
    assert copies(backup) == []
    assert_equal(backup)


def test_a_part_that_is_merged_away_before_the_pass_is_no_error(backup: Backup) -> None:
    data = Path(backup.data_directory)
    warm_pass(backup)
    add_part(data, "18C0000000000001")
    run = passes.Passes(backup)
    run.listing = changes.read(backup.host, backup.data_directory)
    shutil.rmtree(data / TABLE / "18C0000000000001")
    (data / TABLE / "parts.json").write_text(json.dumps(["18A0000000000000", "18A0000000000001"]))
    run.warm_pass()
    assert_equal(backup)
