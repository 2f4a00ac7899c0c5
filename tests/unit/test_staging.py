"""The staging copy: published last and atomically, withdrawn first, listed without following."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path

import pytest
import xxhash

from tests.support import make_copy, make_data, umask, write_inventory
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.staging import copy as copy_module
from vl_borg_hooks.staging.copy import NoCopy, StagingCopy, find_copies
from vl_borg_hooks.staging.inventory import File
from vl_borg_hooks.staging.walk import walk
from vl_borg_hooks.system import files


@pytest.fixture
def copy(tmp_path: Path) -> StagingCopy:
    return make_copy(tmp_path / "copy")


def test_what_is_published_can_be_read_back(copy: StagingCopy) -> None:
    manifest = copy.manifest()
    copy.unpublish()
    assert not copy.manifest_path.exists()
    copy.publish(manifest)
    assert copy.manifest() == manifest


def test_a_manifest_is_for_us_only_and_leaves_nothing_else(copy: StagingCopy) -> None:
    with umask(0):
        copy.publish(copy.manifest())
        write_inventory(copy)
    for path in (copy.manifest_path, copy.inventory_path):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    assert {path.name for path in copy.path.iterdir()} == {
        "data",
        "inventory.jsonl",
        "manifest.json",
    }


def test_a_staging_copy_is_made_for_us_only(tmp_path: Path) -> None:
    with umask(0):
        copy = StagingCopy(tmp_path / "new" / "copy")
        copy.create()
        copy.create()
    for path in (copy.path, copy.data):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o2775, 0o755])
def test_a_staging_copy_that_is_open_to_others_is_closed(copy: StagingCopy, mode: int) -> None:
    copy.path.chmod(mode)
    copy.create()
    assert stat.S_IMODE(copy.path.stat().st_mode) == 0o700


def test_a_directory_with_other_things_in_it_is_not_closed_but_refused(copy: StagingCopy) -> None:
    (copy.path / "of-others").touch()
    copy.path.chmod(0o777)
    with pytest.raises(OperatorError, match=r"can be written by others.*chmod 700"):
        copy.create()
    assert stat.S_IMODE(copy.path.stat().st_mode) == 0o777


def test_data_that_a_group_can_write_is_staged_again(copy: StagingCopy) -> None:
    # As Docker volumes mostly are; a pass gives the mirror the modes of the data.
    copy.data.chmod(0o775)
    copy.create()
    assert stat.S_IMODE(copy.data.stat().st_mode) == 0o775


def test_a_link_in_the_place_of_the_data_is_refused(copy: StagingCopy, tmp_path: Path) -> None:
    copy.data.rename(tmp_path / "elsewhere")
    copy.data.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OperatorError, match=r"/data: is a link"):
        copy.create()


def test_withdrawing_twice_or_where_there_is_nothing_is_no_error(tmp_path: Path) -> None:
    StagingCopy(tmp_path / "nothing").unpublish()
    copy = make_copy(tmp_path / "copy")
    copy.unpublish()
    copy.unpublish()


def test_a_manifest_that_cannot_be_withdrawn_is_an_error(copy: StagingCopy) -> None:
    copy.manifest_path.unlink()
    copy.manifest_path.mkdir()
    with pytest.raises(OperatorError, match=f"could not remove {copy.manifest_path}"):
        copy.unpublish()


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_no_half_manifest_is_seen_whichever_step_fails(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = copy.manifest_path.read_bytes()
    manifest = copy.manifest().model_copy(update={"instance": "new"})

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if step == "write":
        # The temporary file can't be made: its name is taken by a directory.
        (copy.path / ".manifest.json.new").mkdir()
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(OperatorError, match=f"could not write {copy.manifest_path}: "):
        copy.publish(manifest)
    assert copy.manifest_path.read_bytes() == before


def test_a_directory_in_the_manifests_place_is_an_error(copy: StagingCopy) -> None:
    manifest = copy.manifest()
    copy.unpublish()
    copy.manifest_path.mkdir()
    with pytest.raises(OperatorError, match=r"could not write .*manifest.json: Is a directory"):
        copy.publish(manifest)
    assert not list(copy.path.glob(".manifest*"))


@pytest.mark.parametrize("name", [".manifest.json.new", ".inventory.jsonl.new"])
def test_nothing_is_written_through_a_link(copy: StagingCopy, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"mine")
    (copy.path / name).unlink(missing_ok=True)
    (copy.path / name).symlink_to(outside)
    with pytest.raises(OperatorError, match=r"could not write .*: Too many levels of symbolic"):
        copy.publish(copy.manifest()) if "manifest" in name else write_inventory(copy)
    assert outside.read_bytes() == b"mine"


def test_a_manifest_is_on_disk_before_it_has_its_name(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noted_fsync(descriptor: int) -> None:
        order.append("fsync")
        fsync(descriptor)

    def noted_replace(source: Path, destination: Path) -> None:
        order.append("replace")
        replace(source, destination)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    copy.publish(copy.manifest())
    # The file, then its name, then the directory with the name.
    assert order == ["fsync", "replace", "fsync"]


def test_an_inventory_lists_every_file_with_its_size_and_hash(copy: StagingCopy) -> None:
    totals = write_inventory(copy)
    listed = {
        f"{directory.path}/{name}": file
        for directory in copy.read_inventory(totals.sha256)
        for name, file in directory.files.items()
    }
    found = {
        str(path.relative_to(copy.data)): File(
            path.stat().st_size, xxhash.xxh3_128_hexdigest(path.read_bytes())
        )
        for path in copy.data.rglob("*")
        if path.is_file()
    }
    assert listed == found
    assert (totals.files, totals.bytes) == (len(found), sum(file.size for file in found.values()))


def test_an_inventory_keeps_any_name_that_can_be_shown(copy: StagingCopy) -> None:
    names = ['a"b', "a'b", "a\\b", "ünïcode", "-x", "{}", "x" * 255]
    (copy.data / "names").mkdir()
    for name in names:
        (copy.data / "names" / name).touch()
    totals = write_inventory(copy)
    listed = list(copy.read_inventory(totals.sha256))
    assert {name for entry in listed if entry.path == "names" for name in entry.files} == set(names)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2J", "\u202e", os.fsdecode(b"\xff")])
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_name_that_no_terminal_shows_as_it_is_is_refused(
    copy: StagingCopy, name: str, kind: str
) -> None:
    path = copy.data / name
    path.touch() if kind == "file" else path.mkdir()
    with pytest.raises(InvalidCopy, match="is not a name that a copy can hold"):
        write_inventory(copy)


def test_only_a_copy_of_ours_may_share_files_with_what_is_outside(
    copy: StagingCopy, tmp_path: Path
) -> None:
    # A restore would else make what it restores, and what has the other name, the same file.
    os.link(copy.data / "partitions/20261121/datadb/parts.json", tmp_path / "outside")
    with pytest.raises(InvalidCopy, match=r"parts.json: is a hard link to a file outside"):
        write_inventory(copy)
    write_inventory(copy, linked=True)
    os.unlink(tmp_path / "outside")
    os.link(copy.data / "partitions/20261121/datadb/parts.json", copy.data / "inside")
    write_inventory(copy)


def test_a_walk_comes_in_the_order_that_is_compared(tmp_path: Path) -> None:
    # "a.b" sorts before "a/b" as a string, and after it as a path.
    for path in ("a/b/c", "a.b", "a/b.c", "b", "a/b"):
        (tmp_path / path).mkdir(parents=True, exist_ok=True)
    keys = [directory.key for directory in walk(tmp_path)]
    assert keys == sorted(keys)
    assert len(keys) == 7


def test_an_inventory_is_refused_for_a_mirror_with_a_link(copy: StagingCopy) -> None:
    (copy.data / "link").symlink_to("/etc")
    with pytest.raises(InvalidCopy, match=r"data/link: is not a file or directory"):
        write_inventory(copy)


def test_copies_are_found_at_any_depth_and_not_inside_each_other(tmp_path: Path) -> None:
    make_copy(tmp_path / "a")
    make_copy(tmp_path / "b/c/d/e")
    make_copy(tmp_path / "a/data/inner")
    (tmp_path / "link").symlink_to("b")
    found = {str(copy.path.relative_to(tmp_path)) for copy in find_copies(tmp_path)}
    assert found == {"a", "b/c/d/e"}


def test_copies_are_found_beside_data_with_very_many_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an extraction of `/var/lib`, with the data in it."""
    make_data(tmp_path / "data", days=[f"202611{day:02}" for day in range(1, 31)])
    made = make_copy(tmp_path / "var/lib/copy")
    monkeypatch.setattr(copy_module, "SEARCHED_DIRECTORIES", 20)
    assert find_copies(tmp_path) == [made]
    for number in range(20):
        (tmp_path / "home" / str(number)).mkdir(parents=True)
    with pytest.raises(NoCopy, match="has more than 20 directories to look for a copy in"):
        find_copies(tmp_path)


def test_a_manifest_beside_a_link_to_data_is_no_copy(tmp_path: Path) -> None:
    copy = make_copy(tmp_path / "copy")
    copy.data.rename(tmp_path / "outside")
    copy.data.symlink_to("../outside")
    with pytest.raises(InvalidCopy, match=re.escape(f"{copy.path}: holds no staging copy")):
        find_copies(copy.path)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_private_directory_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(OperatorError, match="can be written by others"):
        files.private_directory(tmp_path / "state")


def test_a_private_directory_in_the_place_of_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    with pytest.raises(OperatorError, match=r"could not create .*/state"):
        files.private_directory(tmp_path / "state")


def test_json_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps("x" * 8))
    assert files.read_json(path, 10) == "x" * 8
    with pytest.raises(InvalidCopy, match="is larger than 9 bytes"):
        files.read_json(path, 9)


def test_what_was_never_there_is_withdrawn_and_what_is_there_stays(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data")
    files.remove(data / "nothing")
    files.remove(tmp_path / "no" / "directory")
    assert (data / "flock.lock").exists()
