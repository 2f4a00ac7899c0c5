"""What VictoriaLogs' own metadata says about a copy of its data, read with no server.

Each `datadb/` and `indexdb/` of a partition has a `parts.json` that lists the part directories
that count. A data part's `metadata.json` has the number of its rows and bytes: exactly the sum of
the sizes of the part's other files. So a missing part and a truncated file are found from the copy
alone.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.system.files import read_json
from vl_borg_hooks.victorialogs.layout import (
    DATADB,
    INDEXDB,
    PART_METADATA,
    PARTITION_NAME,
    PARTITIONS,
    PARTS_FILE,
    SNAPSHOTS,
)

# A parts.json lists hundreds of names of 16 characters; a metadata.json has ten numbers. Larger
# ones were not written by VictoriaLogs, and must not fill our memory.
LARGEST_PARTS_FILE = 16 << 20
LARGEST_METADATA = 1 << 20
# VictoriaLogs keeps them in Go's int64 and uint64.
LARGEST_NUMBER = 1 << 64


@dataclass(frozen=True)
class PartitionSummary:
    """What one partition holds by VictoriaLogs' own metadata. Timestamps in nanoseconds."""

    name: str
    rows: int
    min_timestamp: int | None
    max_timestamp: int | None


def partition_names(data: Path) -> list[str]:
    """Return the names of the partitions in `data`, oldest first."""
    try:
        return sorted(os.listdir(data / PARTITIONS))
    except (FileNotFoundError, NotADirectoryError):
        return []


def stray_parts(data: Path) -> Iterator[Path]:
    """Yield part directories that no parts.json lists; VictoriaLogs removes them when it starts."""
    for partition in partition_names(data):
        for table in (DATADB, INDEXDB):
            directory = data / PARTITIONS / partition / table
            if _is_directory(directory):
                listed = set(_listed_parts(directory))
                for entry in _directories(directory):
                    if entry not in listed:
                        yield directory / entry


def empty_partitions(data: Path) -> list[Path]:
    """Return the directories in `partitions/` with nothing in them, whatever they are called.

    Newer versions of VictoriaLogs remove them when they start.
    """
    directories = (data / PARTITIONS / name for name in partition_names(data))
    return [path for path in directories if _is_directory(path) and not os.listdir(path)]


def partition_of(path: str) -> str:
    """Return the name of the partition that `path` is in, empty if it is in none.

    `path` is relative to the data directory.
    """
    names = path.split("/")
    return names[1] if names[0] == PARTITIONS and len(names) > 1 else ""


def is_part(path: str) -> bool:
    """Say whether `path`, relative to the data directory, is a part: a directory that never changes."""
    names = path.split("/")
    return len(names) == 4 and names[0] == PARTITIONS and names[2] in (DATADB, INDEXDB)


def counted_bytes(path: str, files: Mapping[str, int]) -> int | None:
    """Return what the `files` of the part at `path` add up to as its metadata counts them.

    `path` is relative to the data directory; None if its metadata does not count bytes.
    """
    if not is_part(path) or path.split("/")[2] != DATADB:
        return None
    return sum(size for name, size in files.items() if name != PART_METADATA)


def summarize(
    data: Path, name: str, sizes: Mapping[str, int], problems: list[str]
) -> PartitionSummary:
    """Return what partition `name` of `data` holds, and add what is wrong with it to `problems`.

    `sizes` are the `counted_bytes` of the parts in it.
    """
    partition = data / PARTITIONS / name
    rows = 0
    oldest: list[int] = []
    newest: list[int] = []
    # Python's \d also matches digits other than 0 to 9.
    if not (name.isascii() and PARTITION_NAME.fullmatch(name)):
        problems.append(f"{partition}: is not a partition (YYYYMMDD): VictoriaLogs would not start")
    for table in (DATADB, INDEXDB):
        directory = partition / table
        if not _is_directory(directory):
            problems.append(f"{directory}: is missing")
            continue
        try:
            listed = _listed_parts(directory)
        except InvalidCopy as error:
            problems.append(error.what)
            continue
        problems += [
            f"{directory / stray}: is a stray part: {PARTS_FILE} does not list it"
            for stray in sorted(set(_directories(directory)) - set(listed))
        ]
        for part in (directory / listed_name for listed_name in listed):
            try:
                metadata = _part_metadata(part)
                if table == DATADB:
                    rows += _number(part, metadata, "RowsCount")
                    oldest.append(_number(part, metadata, "MinTimestamp", -LARGEST_NUMBER))
                    newest.append(_number(part, metadata, "MaxTimestamp", -LARGEST_NUMBER))
                    _check_size(
                        part,
                        _number(part, metadata, "CompressedSizeBytes"),
                        sizes.get(f"{PARTITIONS}/{name}/{table}/{part.name}", 0),
                    )
            except InvalidCopy as error:
                problems.append(error.what)
    return PartitionSummary(
        name=name,
        rows=rows,
        min_timestamp=min(oldest, default=None),
        max_timestamp=max(newest, default=None),
    )


def _check_size(part: Path, expected: int, found: int) -> None:
    """Raise InvalidCopy if the files of `part` are not `expected` bytes together."""
    if found != expected:
        raise InvalidCopy(
            f"{part}: holds {found} bytes, but its {PART_METADATA} says {expected}: "
            "a file is truncated or missing, or there is one too many"
        )


def _part_metadata(part: Path) -> dict[str, object]:
    """Return the metadata of `part`; raises InvalidCopy."""
    if not _is_directory(part):
        raise InvalidCopy(f"{part}: is missing, though {PARTS_FILE} lists it")
    metadata = read_json(part / PART_METADATA, LARGEST_METADATA)
    if not isinstance(metadata, dict):
        raise InvalidCopy(f"{part / PART_METADATA}: is not a JSON object")
    return metadata


def _number(part: Path, metadata: dict[str, object], key: str, smallest: int = 0) -> int:
    value = metadata.get(key)
    if type(value) is not int or not smallest <= value <= LARGEST_NUMBER:
        raise InvalidCopy(f"{part / PART_METADATA}: has no number {key}")
    return value


def is_part_name(name: object) -> bool:
    """Say whether `name` can be the name of a part: of one directory, and printable."""
    return (
        isinstance(name, str)
        and name not in ("", ".", "..")
        and "/" not in name
        and name.isprintable()
    )


def _listed_parts(directory: Path) -> list[str]:
    """Return the part names that `directory`/parts.json lists; raises InvalidCopy.

    Empty if the file and parts are both missing: VictoriaLogs was killed while it made the
    partition, and makes the file when it starts (mustReadPartNames in its datadb.go).
    """
    path = directory / PARTS_FILE
    if not os.path.lexists(path) and not _directories(directory):
        return []
    names = read_json(path, LARGEST_PARTS_FILE)
    if names is None:
        # What Go writes for an empty list that was never filled.
        return []
    if not isinstance(names, list):
        raise InvalidCopy(f"{path}: is not a JSON list of part names")
    for name in names:
        if not is_part_name(name):
            raise InvalidCopy(f"{path}: lists {name!r}, which is not a part name")
    if len(set(names)) != len(names):
        # VictoriaLogs would serve its rows twice.
        raise InvalidCopy(f"{path}: lists a part twice")
    return names


def _directories(directory: Path) -> list[str]:
    with os.scandir(directory) as entries:
        return [
            entry.name
            for entry in entries
            if entry.is_dir(follow_symlinks=False) and entry.name != SNAPSHOTS
        ]


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False
