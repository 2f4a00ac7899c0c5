"""What is known of the last copy saves a look at what has not changed, and nothing else."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import EXAMPLES, make_copy, make_part, make_partition, publish
from vl_borg_hooks.staging import verify
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.hashing import hash_file
from vl_borg_hooks.staging.last_published import STAMPS, LastPublished, Notes
from vl_borg_hooks.staging.walk import hashed, walk

PART = "partitions/20261122/datadb/18A0000000000000"
HOUR = 3600
MONTH = 30 * 24 * HOUR
# Nothing is due in a test.
YEARS = 1e12


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
    notes.keep(directory, copy.manifest().inventory_sha256, looked_at=time.time())
    return copy


def known(copy: StagingCopy) -> LastPublished:
    """What is known of `copy`, whose files have been looked at since."""
    found = LastPublished.of(copy, copy.manifest(), copy.path.parent)
    assert found
    found.look(every=YEARS)
    return found


def listed(copy: StagingCopy, before: LastPublished | None = None) -> list[tuple[object, ...]]:
    """What a walk finds, with hashes; as long as no part has changed."""
    directories = hashed(copy.data, walk(copy.data, linked=True, before=before), [])
    return [(each.path, each.files, each.sums, each.line, each.stamp) for each in directories]


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
        same = [each[:4] for each in listed(copy)] == [
            (each.path, each.files, each.sums, each.line) for each in one._read()
        ]
        looks = one.look(every=YEARS), other.look(every=YEARS)
        assert [look.is_as_published for look in looks] == [same, same]
    change(copy.data, after)
    assert listed(copy, one) == listed(copy)
    assert partitions(copy, other) == partitions(copy)
    shutil.rmtree(directory)


def change(data: Path, changes: list[str]) -> None:
    for each in changes:
        # What an earlier change has left nothing of.
        with contextlib.suppress(OSError):
            CHANGES[each](data)


def damage(path: Path) -> None:
    """As no rsync does, in the file itself: neither size nor modification time shows it."""
    times = path.stat()
    path.write_bytes(bytes(byte ^ 0xFF for byte in path.read_bytes()))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("looked", [True, False])
@pytest.mark.parametrize("change", [damage, lambda path: truncated(path)])
def test_a_file_that_was_damaged_is_found_and_named(
    copy: StagingCopy, looked: bool, change: Callable[[Path], object]
) -> None:
    before = LastPublished.of(copy, copy.manifest(), copy.path.parent)
    assert before
    change(copy.data / PART / "values.bin0")
    if looked:
        found = before.look(every=YEARS)
        assert not found.is_as_published
        assert found.damaged == [f"{PART}/values.bin0"]
    problems: list[str] = []
    for _ in hashed(copy.data, walk(copy.data, before=before), problems):
        pass
    assert [problem.split(": ")[0] for problem in problems] == [
        str(copy.data / PART / "values.bin0")
    ]


def test_what_may_have_changed_is_read_and_nothing_else(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reads(monkeypatch)
    assert known(copy).look(every=YEARS).is_as_published
    assert read == []
    # Another link to a file, as VictoriaLogs' snapshots make them, changes its ctime.
    os.link(copy.data / PART / "index.bin", copy.path / "link")
    before = known(copy)
    assert {path.parent for path in read} == {copy.data / PART}
    read.clear()
    # Known again: not read a second time when it is published.
    assert before.look(every=YEARS).is_as_published
    assert listed(copy, before)
    assert read == []


def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed from now on."""
    read: list[Path] = []

    def noting(path: str, **options: Any) -> str:
        read.append(Path(path))
        return hash_file(path, **options)

    for module in ("last_published", "walk"):
        monkeypatch.setattr(f"vl_borg_hooks.staging.{module}.hash_file", noting)
    return read


def test_what_is_gone_from_the_data_is_not_read(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A merge has removed it there, which changed the ctime of a file with two links.
    damage(copy.data / PART / "index.bin")
    read = reads(monkeypatch)
    before = LastPublished.of(copy, copy.manifest(), copy.path.parent)
    assert before
    look = before.look(every=YEARS, is_gone=lambda path: path == PART)
    assert (look.is_as_published, look.damaged, read) == (True, [], [])


def test_everything_is_read_again_within_the_set_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run every 7 hours for 30 days, and the damage that no stat shows is found in the meantime."""
    days = [f"202611{day:02}" for day in range(1, 31)]
    copy = make_copy(tmp_path / "copy", days=days)
    files = {path for path in copy.data.rglob("*") if path.is_file()}
    read = reads(monkeypatch)
    start = 1_800_000_000
    shares: list[int] = []
    for now in range(start, start + MONTH + 7 * HOUR, 7 * HOUR):
        notes = Notes()
        for _ in notes.taking(walk(copy.data)):
            pass
        notes.keep(tmp_path, copy.manifest().inventory_sha256, looked_at=now - 7 * HOUR)
        before = LastPublished.of(copy, copy.manifest(), tmp_path)
        assert before
        monkeypatch.setattr("time.time", lambda now=now: now)
        count = len(read)
        assert before.look(every=MONTH).is_as_published
        shares.append(len(read) - count)
    assert set(read) == files
    # In turn: in 103 runs, and not all at once.
    assert max(shares) < len(files) / 10


def test_what_was_not_looked_at_for_longer_than_that_is_all_read(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = reads(monkeypatch)
    before = LastPublished.of(copy, copy.manifest(), copy.path.parent)
    assert before
    before.looked_at -= MONTH + HOUR
    assert before.look(every=MONTH).is_as_published
    assert set(read) == {path for path in copy.data.rglob("*") if path.is_file()}


def truncated(path: Path, by: int = 1) -> None:
    os.truncate(path, path.stat().st_size - by)


def no_time(path: Path) -> None:
    header, _, notes = path.read_bytes().partition(b"\n")
    path.write_bytes(header.split()[0] + b" x\n" + notes)


def republish(copy: StagingCopy) -> None:
    """As another installation does: with another inventory."""
    publish_more(copy)
    copy.unpublish()


def publish_more(copy: StagingCopy) -> None:
    (copy.data / "new").touch()
    publish(copy)


DISTRUSTED: dict[str, Callable[[StagingCopy], object]] = {
    "another inventory": lambda copy: copy.inventory_path.write_bytes(b'["", {}]\n'),
    "another inventory, and no manifest": republish,
    "no inventory": lambda copy: copy.inventory_path.unlink(),
    "a link to an inventory": lambda copy: as_link(copy.inventory_path),
}


def as_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("reason", DISTRUSTED)
def test_what_can_not_be_trusted_is_not_known(copy: StagingCopy, reason: str) -> None:
    DISTRUSTED[reason](copy)
    manifest = copy.manifest() if copy.manifest_path.exists() else None
    assert LastPublished.of(copy, manifest, copy.path.parent) is None


UNREAD: dict[str, Callable[[StagingCopy], object]] = {
    "published by others meanwhile": publish_more,
    "nothing kept": lambda copy: (copy.path.parent / STAMPS).unlink(),
    "kept half": lambda copy: truncated(copy.path.parent / STAMPS, 3),
    "kept all but one number": lambda copy: truncated(copy.path.parent / STAMPS, 8),
    "kept no time": lambda copy: no_time(copy.path.parent / STAMPS),
    "kept rubbish": lambda copy: (copy.path.parent / STAMPS).write_bytes(b"\xff\xfe"),
}


@pytest.mark.parametrize("reason", UNREAD)
def test_with_an_inventory_alone_all_of_the_copy_is_read_and_then_known(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    UNREAD[reason](copy)
    read = reads(monkeypatch)
    found = LastPublished.of(copy, copy.manifest(), copy.path.parent)
    assert found
    assert found.look(every=YEARS).is_as_published
    assert set(read) == {path for path in copy.data.rglob("*") if path.is_file()}


def test_how_much_is_read_again_is_told_as_it_is_read(copy: StagingCopy) -> None:
    (copy.path.parent / STAMPS).unlink()
    last = LastPublished.of(copy, copy.manifest(), copy.path.parent)
    assert last
    told: list[int] = []
    assert last.look(every=YEARS, on_read=told.append).read == sum(told) == copy.manifest().bytes


def test_a_run_that_published_nothing_leaves_the_last_copy_known(copy: StagingCopy) -> None:
    copy.unpublish()
    found = LastPublished.of(copy, None, copy.path.parent)
    assert found
    assert found.look(every=YEARS).is_as_published
    assert found.partitions() == {}
    damage(copy.data / PART / "values.bin0")
    assert found.look(every=YEARS).damaged == [f"{PART}/values.bin0"]


def test_a_directory_that_changed_a_moment_ago_is_looked_at_again(
    copy: StagingCopy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vl_borg_hooks.staging.walk.TOO_YOUNG_NANOSECONDS", 60_000_000_000)
    assert not any(directory.changed for directory in walk(copy.data))
