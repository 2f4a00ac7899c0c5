"""Checks that a copy is what its manifest and VictoriaLogs' metadata say. Needs no server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.hashing import hash_file
from vl_borg_hooks.staging.inventory import Directory
from vl_borg_hooks.staging.manifest import Manifest, Partition
from vl_borg_hooks.staging.walk import walk
from vl_borg_hooks.victorialogs import parts
from vl_borg_hooks.victorialogs.layout import PARTITIONS

# Enough to see what happened; after a disk died there are thousands, all of one kind.
LISTED_PROBLEMS = 50


@dataclass
class Report:
    """What the verification of one copy found; sound if there are no problems."""

    copy: StagingCopy
    manifest: Manifest | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong with the copy."""
        return self.manifest is not None and not self.problems

    def raise_problems(self) -> Manifest:
        """Return the manifest of a sound copy; raises InvalidCopy for any other."""
        if self.manifest is None or self.problems:
            more = f" (and {len(self.problems) - 1} more)" if len(self.problems) > 1 else ""
            raise InvalidCopy(
                f"{self.problems[0]}{more}", hint=f"run: vl-borg-hooks verify {self.copy.path}"
            )
        return self.manifest


def verify(
    copy: StagingCopy,
    *,
    linked: bool | None = None,
    quick: bool = False,
    on_read: Callable[[int], None] = lambda _: None,
) -> Report:
    """Check every directory and file of `copy`; never raises for what is wrong with it.

    With `quick`, the content of files is not read: only names, sizes and VictoriaLogs' own metadata
    are checked. `linked` says whether it may share files with the outside, as hard links. If it is None, the
    manifest decides that, which is enough if the copy is only looked at. `on_read` is called with the
    bytes that were read since.
    """
    report = Report(copy)
    try:
        report.manifest = copy.manifest()
        linked = report.manifest.linked if linked is None else linked
        inventory = copy.read_inventory(report.manifest.inventory_sha256)
        sizes: dict[str, int] = {}
        totals: Counter[str] = Counter()
        present = _counting(noting(walk(copy.data, linked=linked), sizes), totals)
        for problem in differences(copy.data, present, inventory, quick=quick, on_read=on_read):
            report.problems.append(problem)
            if len(report.problems) >= LISTED_PROBLEMS:
                return report
        report.problems += [
            f"{copy.manifest_path}: says {said} {what}, but there are {totals[what]}"
            for what, said in (("files", report.manifest.files), ("bytes", report.manifest.bytes))
            if said != totals[what]
        ]
        _compare_partitions(copy, report.manifest, sizes, report.problems)
    except InvalidCopy as error:
        report.problems.append(error.what)
    return report


def _counting(directories: Iterable[Directory], totals: Counter[str]) -> Iterator[Directory]:
    """Yield `directories` unchanged, and add up their files and bytes in `totals`."""
    for directory in directories:
        totals["files"] += directory.sums.files
        totals["bytes"] += directory.sums.bytes
        yield directory


def noting(directories: Iterable[Directory], sizes: dict[str, int]) -> Iterator[Directory]:
    """Yield `directories` unchanged, and note in `sizes` what is compared with metadata later."""
    for directory in directories:
        counted = directory.sums.counted
        if counted is not None:
            sizes[directory.path] = counted
        yield directory


def partitions(
    data: Path,
    problems: list[str],
    sizes: dict[str, int] | None = None,
    known: Mapping[str, Partition] = MappingProxyType({}),
) -> list[Partition]:
    """Return what each partition in `data` holds, and add what is wrong with it to `problems`.

    `sizes` are those that `noting` has taken from a walk; without them, a walk is made. Partitions
    that are `known` are not read again.
    """
    if sizes is None:
        sizes = {}
        for _ in noting(walk(data, linked=True), sizes):
            pass
    return [
        known.get(name) or _partition(parts.summarize(data, name, sizes, problems))
        for name in parts.partition_names(data)
    ]


def _partition(summary: parts.PartitionSummary) -> Partition:
    return Partition(
        name=summary.name,
        rows=summary.rows,
        min_timestamp=summary.min_timestamp,
        max_timestamp=summary.max_timestamp,
    )


def _compare_partitions(
    copy: StagingCopy, manifest: Manifest, sizes: dict[str, int], problems: list[str]
) -> None:
    """Compare VictoriaLogs' own metadata with the manifest, and add what differs to `problems`."""
    found = {partition.name: partition for partition in partitions(copy.data, problems, sizes)}
    expected = {partition.name: partition for partition in manifest.partitions}
    for name in sorted(expected.keys() | found.keys()):
        path = copy.data / PARTITIONS / name
        if name not in found:
            problems.append(f"{path}: is missing")
        elif name not in expected:
            problems.append(f"{path}: is a stray partition, not in the manifest")
        elif found[name] != expected[name]:
            problems.append(
                f"{path}: holds {found[name].rows} rows, the manifest says {expected[name].rows}"
            )
    if len(expected) != len(manifest.partitions):
        problems.append(f"{copy.manifest_path}: lists a partition twice")
    rows = sum(partition.rows for partition in manifest.partitions)
    if rows != manifest.rows:
        problems.append(
            f"{copy.manifest_path}: says {manifest.rows} rows, but {rows} in its partitions"
        )


def differences(
    data: Path,
    present: Iterator[Directory],
    inventory: Iterator[Directory],
    *,
    quick: bool = False,
    on_read: Callable[[int], None] = lambda _: None,
) -> Iterator[str]:
    """Yield the differences between what is `present` in `data` and `inventory`, in one order.

    With `quick`, only names and sizes are compared. Otherwise every file is read that has the right
    size, and `on_read` is called with the bytes that were read since. Raises InvalidCopy if one
    can't be read.
    """
    listed, found = next(inventory, None), next(present, None)
    while listed or found:
        if listed and (not found or listed.key < found.key):
            yield f"{data / listed.path}: is missing"
            listed = next(inventory, None)
        elif found and (not listed or found.key < listed.key):
            yield f"{data / found.path}: is a stray directory, not in the inventory"
            found = next(present, None)
        elif listed and found:
            yield from _file_differences(data, listed, found, quick=quick, on_read=on_read)
            listed, found = next(inventory, None), next(present, None)


def _file_differences(
    data: Path,
    listed: Directory,
    found: Directory,
    *,
    quick: bool,
    on_read: Callable[[int], None],
) -> Iterator[str]:
    for name in sorted(listed.files.keys() | found.files.keys()):
        path = data / listed.path / name
        if name not in found.files:
            yield f"{path}: is missing"
        elif name not in listed.files:
            yield f"{path}: is a stray file, not in the inventory"
        elif found.files[name].size != listed.files[name].size:
            yield f"{path}: has {found.files[name].size} bytes, should have {listed.files[name].size}"
        elif not quick and hash_file(path, on_read=on_read) != listed.files[name].hash:
            yield f"{path}: has another content than when it was backed up"
