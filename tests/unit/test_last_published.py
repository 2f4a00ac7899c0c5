"""What is known of the last copy saves a look at what has not changed, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import EXAMPLES, make_copy, make_part, make_partition, publish
from vl_borg_hooks.staging import verify
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.inventory import Directory, Sums
from vl_borg_hooks.staging.last_published import KNOWN, LastPublished, Notes
from vl_borg_hooks.staging.walk import walk

PART = "partitions/20261122/datadb/18A0000000000000"


@pytest.fixture(autouse=True)
def _any_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has not the time to let directories grow old; the clock's ticks are finer here."""
    monkeypatch.setattr("vl_borg_hooks.staging.walk.TOO_YOUNG_NANOSECONDS", -60_000_000_000)


@pytest.fixture
def copy(tmp_path: Path) -> StagingCopy:
    return made(tmp_path)


def made(directory: Path) -> StagingCopy:
    """A published copy, and what is to be known of it beside it."""
    copy = make_copy(directory / "copy")
    notes = Notes()
    for _ in notes.taking(walk(copy.data)):
        pass
    notes.keep(directory, copy.manifest().inventory_sha256, compared=0)
    return copy


def known(copy: StagingCopy) -> LastPublished:
    """What is known of `copy`, whose files have been looked at since."""
    found = LastPublished.of(copy, copy.manifest(), copy.path.parent)
    assert found
    found.look()
    return found


def listed(directories: Iterable[Directory]) -> list[tuple[str, dict[str, int], Sums, bytes]]:
    return [(each.path, each.files, each.sums, each.line) for each in directories]


def partitions(
    copy: StagingCopy, before: LastPublished | None = None
) -> tuple[list[Any], list[str]]:
    problems: list[str] = []
    sizes: dict[str, int] = {}
    for _ in verify.noting(walk(copy.data, linked=True, before=before), sizes):
        pass
    found = verify.partitions(copy.data, problems, sizes, before.partitions() if before else {})
    return found, problems


def test_parts_that_have_not_changed_are_not_looked_at(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = list(walk(copy.data))
    looked: list[str] = []
    scandir = os.scandir

    def noting(path: str) -> Any:
        looked.append(os.path.relpath(path, copy.data))
        return scandir(path)

    make_part(copy.data / "partitions/20261121/datadb/18C0", rows=3, day=20261121)
    before = known(copy)
    monkeypatch.setattr(os, "scandir", noting)
    found = list(walk(copy.data, linked=True, before=before))
    assert [path for path in looked if "/18" in path] == ["partitions/20261121/datadb/18C0"]
    assert len(found) == len(expected) + 1
    assert list(before.partitions()) == ["20261122"]


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda data: None,
    "a file replaced": lambda data: replace(data / PART / "index.bin", b"other"),
    "a file removed": lambda data: (data / PART / "index.bin").unlink(),
    "a file added": lambda data: (data / PART / "more.bin").write_bytes(b"more"),
    "a directory in a part": lambda data: (data / PART / "inner").mkdir(),
    "a part removed": lambda data: shutil.rmtree(data / PART),
    "the last part removed": lambda data: shutil.rmtree(
        data / "partitions/20261122/indexdb/18B0000000000001"
    ),
    "a part added": lambda data: make_part(data / f"{PART}1", rows=7, day=20261122),
    "a part renamed": lambda data: (data / PART).rename(data / f"{PART}1"),
    "two parts exchanged": lambda data: exchange(data / PART, data / f"{PART[:-1]}1"),
    "a partition removed": lambda data: shutil.rmtree(data / "partitions/20261121"),
    "a partition added": lambda data: make_partition(data / "partitions/20261123"),
    "a part made a file": lambda data: make_file(data / PART),
    "a list replaced": lambda data: replace(data / PART / "../parts.json", b"[]"),
    "a file at the top": lambda data: (data / "delete_tasks.json").write_bytes(b"[]"),
}


def make_file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


def replace(path: Path, content: bytes) -> None:
    """As rsync does."""
    new = path.with_name(".new")
    new.write_bytes(content)
    new.rename(path)


def exchange(one: Path, other: Path) -> None:
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    before=st.lists(st.sampled_from(list(CHANGES)), max_size=4),
    after=st.lists(st.sampled_from(list(CHANGES)), max_size=4),
    looked=st.booleans(),
)
def test_whatever_changes_the_walk_and_the_partitions_are_those_of_a_full_look(
    tmp_path_factory: pytest.TempPathFactory, before: list[str], after: list[str], looked: bool
) -> None:
    directory = tmp_path_factory.mktemp("known")
    copy = made(directory)
    change(copy.data, before)
    one, other = (
        LastPublished.of(copy, copy.manifest(), directory),
        LastPublished.of(copy, copy.manifest(), directory),
    )
    assert one
    assert other
    if looked:
        same = listed(walk(copy.data, linked=True)) == listed(one._read())
        assert (one.look(), other.look()) == (same, same)
    change(copy.data, after)
    assert listed(walk(copy.data, linked=True, before=one)) == listed(walk(copy.data, linked=True))
    assert partitions(copy, other) == partitions(copy)
    shutil.rmtree(directory)


def change(data: Path, changes: list[str]) -> None:
    for each in changes:
        # What an earlier change has left nothing of.
        with contextlib.suppress(OSError):
            CHANGES[each](data)


def damage(copy: StagingCopy) -> None:
    """As no rsync does: in the file itself, which it may share with the data."""
    truncated(copy.data / PART / "values.bin0")


@pytest.mark.parametrize("looked", [True, False])
def test_a_file_that_was_damaged_is_found(copy: StagingCopy, looked: bool) -> None:
    found = LastPublished.of(copy, copy.manifest(), copy.path.parent)
    assert found
    damage(copy)
    assert not (looked and found.look())
    _, problems = partitions(copy, found)
    assert [problem.split(": ")[0] for problem in problems] == [str(copy.data / PART)]


def test_when_the_copy_was_last_compared_with_the_data_is_kept(copy: StagingCopy) -> None:
    Notes().keep(copy.path.parent, copy.manifest().inventory_sha256, compared=1_700_000_000.9)
    assert LastPublished.of(copy, copy.manifest(), copy.path.parent) is None
    notes = Notes()
    assert len(list(notes.taking(walk(copy.data)))) > 1
    notes.keep(copy.path.parent, copy.manifest().inventory_sha256, compared=1_700_000_000.9)
    assert known(copy).compared == 1_700_000_000


def truncated(path: Path, by: int = 1) -> None:
    os.truncate(path, path.stat().st_size - by)


def no_time(path: Path) -> None:
    header, _, notes = path.read_bytes().partition(b"\n")
    path.write_bytes(header.split()[0] + b" x\n" + notes)


def publish_more(copy: StagingCopy) -> None:
    (copy.data / "new").touch()
    publish(copy)


DISTRUSTED: dict[str, Callable[[StagingCopy], object]] = {
    "unpublished": lambda copy: copy.unpublish(),
    "published by others meanwhile": publish_more,
    "another inventory": lambda copy: copy.inventory_path.write_bytes(b'["", {}]\n'),
    "no inventory": lambda copy: copy.inventory_path.unlink(),
    "nothing kept": lambda copy: (copy.path.parent / KNOWN).unlink(),
    "kept half": lambda copy: truncated(copy.path.parent / KNOWN, 3),
    "kept all but one number": lambda copy: truncated(copy.path.parent / KNOWN, 8),
    "kept all but one note": lambda copy: truncated(copy.path.parent / KNOWN, 32),
    "kept no time": lambda copy: no_time(copy.path.parent / KNOWN),
    "kept rubbish": lambda copy: (copy.path.parent / KNOWN).write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("reason", DISTRUSTED)
def test_what_can_not_be_trusted_is_not_known(copy: StagingCopy, reason: str) -> None:
    DISTRUSTED[reason](copy)
    manifest = copy.manifest() if copy.manifest_path.exists() else None
    assert LastPublished.of(copy, manifest, copy.path.parent) is None


def test_a_directory_that_changed_a_moment_ago_is_looked_at_again(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl_borg_hooks.staging.walk.TOO_YOUNG_NANOSECONDS", 60_000_000_000)
    assert not any(directory.changed for directory in walk(copy.data))
