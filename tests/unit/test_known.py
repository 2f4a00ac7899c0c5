"""What is known of the last copy saves a look at what has not changed, and nothing else."""

from __future__ import annotations

import os
import shutil
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import make_copy, make_part, make_partition, publish
from vl_borg_hooks import known, staging, verify
from vl_borg_hooks.known import Known
from vl_borg_hooks.staging import Directory, StagingCopy, walk

PART = "partitions/20261122/datadb/18A0000000000000"


@pytest.fixture(autouse=True)
def _any_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test has not the time to let directories grow old; the clock's ticks are finer here."""
    monkeypatch.setattr(staging, "TOO_YOUNG_NANOSECONDS", -60_000_000_000)


@pytest.fixture
def copy(tmp_path: Path) -> StagingCopy:
    return made(tmp_path)


def made(directory: Path) -> StagingCopy:
    """A published copy, and what is to be known of it beside it."""
    copy = make_copy(directory / "copy")
    changed = array("q", (found.changed for found in walk(copy.data)))
    known.keep(directory, copy.manifest().inventory_sha256, changed)
    return copy


def walked(copy: StagingCopy) -> tuple[list[Directory], Known]:
    before = Known.of(copy, copy.path.parent)
    assert before
    return list(walk(copy.data, linked=True, known=before)), before


def partitions(copy: StagingCopy, before: Known | None = None) -> tuple[list[Any], list[str]]:
    problems: list[str] = []
    sizes: dict[str, int] = {}
    for _ in verify.noting(walk(copy.data, linked=True, known=before), sizes):
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
    monkeypatch.setattr(os, "scandir", noting)
    found, before = walked(copy)
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


@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=st.lists(st.sampled_from(list(CHANGES)), max_size=4))
def test_whatever_changes_the_walk_and_the_partitions_are_those_of_a_full_look(
    tmp_path_factory: pytest.TempPathFactory, changes: list[str]
) -> None:
    directory = tmp_path_factory.mktemp("known")
    copy = made(directory)
    for change in changes:
        try:
            CHANGES[change](copy.data)
        except OSError:
            # What an earlier change has left nothing of.
            continue
    found, before = walked(copy)
    assert found == list(walk(copy.data, linked=True))
    assert partitions(copy, Known.of(copy, directory)) == partitions(copy)
    shutil.rmtree(directory)
    assert before


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 3)


def publish_more(copy: StagingCopy) -> None:
    (copy.data / "new").touch()
    publish(copy)


DISTRUSTED: dict[str, Callable[[StagingCopy], object]] = {
    "unpublished": lambda copy: copy.unpublish(),
    "published by others meanwhile": publish_more,
    "another inventory": lambda copy: copy.inventory_path.write_bytes(b'["", {}]\n'),
    "no inventory": lambda copy: copy.inventory_path.unlink(),
    "nothing kept": lambda copy: (copy.path.parent / known.KNOWN).unlink(),
    "kept half": lambda copy: truncated(copy.path.parent / known.KNOWN),
    "kept rubbish": lambda copy: (copy.path.parent / known.KNOWN).write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("reason", DISTRUSTED)
def test_what_can_not_be_trusted_is_not_known(copy: StagingCopy, reason: str) -> None:
    DISTRUSTED[reason](copy)
    assert Known.of(copy, copy.path.parent) is None


def test_a_directory_that_changed_a_moment_ago_is_looked_at_again(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "TOO_YOUNG_NANOSECONDS", 60_000_000_000)
    assert not any(directory.changed for directory in walk(copy.data))
