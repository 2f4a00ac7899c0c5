"""The warm pass if the staging copy is on the data's own filesystem: links, and no copies."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parts.fakes import FakeHooks
from tests.parts.waiting import wait_until
from tests.support import make_backup, make_data, make_part, make_partition, said, tree
from vl_borg_hooks.errors import CommandFailed, InvalidCopy, OperatorError
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.staging.verify import verify
from vl_borg_hooks.steps import passes, publish
from vl_borg_hooks.transfer import PassResult, rsync, sharing
from vl_borg_hooks.transfer.progress import human_bytes
from vl_borg_hooks.victorialogs import changes

TABLE = "partitions/20261122/datadb"


def _no_reflinks(source: str, destination: str, status: os.stat_result) -> bool:
    raise OSError(errno.EOPNOTSUPP, "no reflinks")


@pytest.fixture
def backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backup:
    # Also on a machine whose /tmp has reflinks.
    monkeypatch.setattr(sharing, "reflink", _no_reflinks)
    data = make_data(tmp_path / "data")
    backup = make_backup(tmp_path, data_path=str(data))
    backup.staging.create()
    return backup


def warm_pass(backup: Backup, *, is_as_published: bool = False) -> PassResult:
    """One warm pass of a run of its own."""
    run = passes.Passes(backup)
    run.is_as_published = is_as_published
    run.listing = changes.read(backup.host, backup.data_directory)
    return run.warm_pass()


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
    result = warm_pass(backup)
    assert copies(backup) == []
    assert_equal(backup)
    assert warm_pass(backup).bytes == 0
    assert result.bytes == 0


def sizes(root: Path) -> list[int]:
    """The sizes of all files of data or a copy, without what only locks."""
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "flock.lock"]
    return [path.stat().st_size for path in files]


def test_a_pass_says_what_it_has_linked(backup: Backup) -> None:
    data = Path(backup.data_directory)
    first, every = warm_pass(backup), sizes(data)
    assert (first.linked_files, first.linked_bytes) == (len(every), sum(every))
    assert (first.files, first.bytes) == (0, 0)
    assert re.fullmatch(
        rf"linked {len(every)} files, {human_bytes(sum(every))}, in \d\.\d\d s", str(first)
    )
    # No link: it would take away the bits of the data, too.
    add_part(data, "18C0000000000001")
    (data / TABLE / "18C0000000000001" / "values.bin0").chmod(0o4755)
    mixed = warm_pass(backup, is_as_published=True)
    assert mixed.files == 1
    assert mixed.linked_files == len(sizes(data)) - len(every)
    assert re.fullmatch(
        r"linked \d+ files, \S+ k?B, and copied 1 files, \S+ k?B, in \d\.\d\d s", str(mixed)
    )
    nothing = warm_pass(backup, is_as_published=True)
    assert re.fullmatch(r"copied 0 files, 0 B, in \d\.\d\d s", str(nothing))


def test_a_first_backup_says_what_it_has_linked(backup: Backup) -> None:
    every = sizes(Path(backup.data_directory))
    with said() as lines:
        back_up(backup)
    (line,) = [line for line in lines if "final pass" in line]
    assert f": linked {len(every)} files, {human_bytes(sum(every))}, in " in line


def test_links_are_not_made_through_a_link_in_the_copy(backup: Backup, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    backup.staging.data.mkdir(exist_ok=True)
    (backup.staging.data / "partitions").symlink_to(tmp_path / "outside")
    warm_pass(backup)
    assert list((tmp_path / "outside").iterdir()) == []
    assert_equal(backup)


def test_what_can_not_be_linked_after_all_is_copied(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = passes.Passes(backup)
    run.listing = changes.read(backup.host, backup.data_directory)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(os, "link", refuse)
    with said() as lines:
        result = run.warm_pass()
    assert lines[0] == "default: what is new is copied, and not linked: Too many links"
    assert result.linked_files == 0
    assert result.files == len(sizes(Path(backup.data_directory)))
    assert_equal(backup)


def test_a_copy_that_something_else_has_changed_is_a_warning(
    backup: Backup, caplog: pytest.LogCaptureFixture
) -> None:
    back_up(backup)
    (backup.staging.data / TABLE / "stray").touch()
    back_up(backup)
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "the last copy was changed after it was published" in warning.getMessage()
    back_up(backup)
    assert len([each for each in caplog.records if each.levelno == logging.WARNING]) == 1


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
    warm_pass(backup)
    known = backup.staging.data / TABLE / "18A0000000000000" / "index.bin"
    content = known.read_bytes()
    if not linked:
        # A mark by which a comparison would show.
        known.write_bytes(content + b"more")
    add_part(data, "18C0000000000001")
    make_partition(data / "partitions" / "20261123")
    shutil.rmtree(data / "partitions" / "20261121")
    (data / "delete_tasks").write_text("new")
    warm_pass(backup, is_as_published=True)
    assert linked or known.read_bytes() != content
    known.write_bytes(content)
    assert_equal(backup)
    assert copies(backup) == [] or not linked
    assert warm_pass(backup, is_as_published=True).bytes < 100


def test_what_is_written_between_a_listing_and_its_pass_comes_with_the_next_pass(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(backup.data_directory)
    (data / "delete_tasks.json").write_text("[1]")
    warm_pass(backup)
    monkeypatch.setattr(passes, "ENOUGH_BYTES", 0)
    add_part(data, "18C0000000000001")
    writes: list[Callable[[], object]] = [lambda: add_part(data, "18C0000000000002", rows=5)]
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


# What a disk does to a file, and what only its content shows.
def invert(path: Path) -> None:
    """Change every byte of a file, and neither its size nor its modification time."""
    times = path.stat()
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def back_up(backup: Backup) -> Manifest:
    """One backup of a VictoriaLogs that was found stopped."""
    backup.found = ServiceState.STOPPED
    backup.records.create()
    with contextlib.suppress(InvalidCopy):
        backup.last_manifest = backup.staging.manifest()
    backup.staging.unpublish()
    return publish.publish_copy(backup, passes.make_copy(backup, FakeHooks()))


@pytest.mark.parametrize("kept", ["inventory", "nothing"])
def test_a_staged_file_with_every_byte_inverted_is_named_and_copied_again(
    backup: Backup, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr(Backup, "on_one_filesystem", False)
    back_up(backup)
    damaged = backup.staging.data / TABLE / "18A0000000000000/values.bin0"
    invert(damaged)
    if kept == "nothing":
        backup.staging.inventory_path.unlink()
    with said() as lines:
        back_up(backup)
    assert_equal(backup)
    assert verify(backup.staging).is_sound
    named = f"{damaged}: is damaged: it is copied again from {backup.instance.data_path}"
    assert [named in line for line in lines if "damaged" in line] == [True] * (kept != "nothing")


def test_a_file_that_is_damaged_in_the_data_too_is_not_backed_up(backup: Backup) -> None:
    back_up(backup)
    part = Path(backup.data_directory) / TABLE / "18A0000000000000"
    assert (part / "values.bin0").samefile(backup.staging.data / TABLE / part.name / "values.bin0")
    invert(part / "values.bin0")
    for _ in range(2):
        with pytest.raises(InvalidCopy) as caught:
            back_up(backup)
        assert caught.value.what.startswith(
            f"the staging copy is not consistent: {backup.staging.data / TABLE / part.name / 'values.bin0'}: "
        )
        assert not backup.staging.manifest_path.exists()


def test_what_a_killed_run_has_copied_is_not_taken_for_what_is_in_the_data(
    backup: Backup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backup, "on_one_filesystem", False)
    back_up(backup)
    data, staging = Path(backup.data_directory), backup.staging.data
    name = "18C0000000000001"
    add_part(data, name)
    backup.staging.unpublish()
    shutil.copytree(data / TABLE / name, staging / TABLE / name)
    for path in (staging / TABLE / name).iterdir():
        invert(path)
    back_up(backup)
    assert_equal(backup)


def test_no_special_bit_of_a_mode_survives_a_pass(backup: Backup) -> None:
    data = Path(backup.data_directory)
    (data / TABLE).chmod(0o3775)
    data.chmod(0o2775)
    program = data / TABLE / "18A0000000000000" / "values.bin0"
    program.chmod(0o7755)
    back_up(backup)
    staging = backup.staging.data
    assert {path.stat().st_mode & 0o7000 for path in (staging, *staging.rglob("*"))} == {0}
    assert stat.S_IMODE((staging / TABLE).stat().st_mode) == 0o775
    assert program.stat().st_mode & 0o7777 == 0o7755
    # And again, over what is there.
    back_up(backup)
    assert verify(backup.staging).is_sound


def test_links_in_the_stop_window_are_given_up_after_max_downtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharing, "reflink", _no_reflinks)
    monkeypatch.setattr(rsync, "copy", lambda *_, **__: pytest.fail("rsync after the time is over"))
    make_data(tmp_path / "data")
    backup = make_backup(
        tmp_path, data_path=str(tmp_path / "data"), final_pass="stopped", max_downtime=0.1
    )
    backup.staging.create()
    run = passes.Passes(backup)
    run.listing = changes.NOTHING
    link, linked = os.link, []

    def slow_link(source: str, destination: str, **options: Any) -> None:
        # As on a disk that is busy: the time is over with the first of them.
        wait_until(lambda: time.monotonic() > began + 0.1, 10, "the end of max_downtime")
        link(source, destination, **options)
        linked.append(destination)

    monkeypatch.setattr(os, "link", slow_link)
    began = backup.stop.asked_at = time.monotonic()
    with pytest.raises(CommandFailed, match=r"^the final pass took longer than 0\.1 seconds$"):
        run.copy_in_window()
    assert len(linked) == 1


@pytest.mark.parametrize("planted", ["link", "file", "of somebody else"])
def test_a_working_directory_that_is_not_ours_is_refused_and_not_followed(
    backup: Backup, tmp_path: Path, planted: str
) -> None:
    path = Path(backup.working_directory)
    (tmp_path / "elsewhere" / "frozen").mkdir(parents=True)
    if planted == "link":
        path.symlink_to(tmp_path / "elsewhere")
    elif planted == "file":
        path.touch()
    else:
        path.mkdir()
        os.chown(path, 65534, 65534)
    with pytest.raises(OperatorError, match=rf"{path} on this machine (is a link|belongs to)"):
        back_up(backup)
    assert (tmp_path / "elsewhere" / "frozen").is_dir()
