"""What changed in a data directory since a warm pass began, told without looking at every file.

A part's files are written once, before `parts.json` lists the part, and `parts.json` is replaced by
a rename. So a part that was listed before a warm pass and still is has been copied whole, and all
that a final pass has to copy are the parts that are listed only now, and the few small files beside
them. A directory whose modification time is what it was has seen no rename: two stats a partition
tell that nothing is new in it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host, SshHost
from vl_borg_hooks.victorialogs.layout import (
    DATADB,
    DELETE_TASKS,
    INDEXDB,
    NOT_REPLACED,
    PARTITIONS,
    PARTS_FILE,
    SNAPSHOTS,
)
from vl_borg_hooks.victorialogs.parts import is_part_name

# The kernel stamps files with the time of its last tick, some milliseconds old: a directory that
# changed this shortly before it was looked at may change again and keep its time.
TOO_YOUNG_NANOSECONDS = 2_000_000_000
# What find on another host prints before the time of the last deletion, and before a path.
_DELETIONS = "deletions:"
_ENTRY = "entry:"


@dataclass(frozen=True)
class Table:
    """One `datadb` or `indexdb`: the parts that count, and when its directory last changed."""

    # In the order of the file: a list that was only turned round is copied again too.
    parts: tuple[str, ...]
    modified: int


@dataclass(frozen=True)
class Listing:
    """What a data directory holds, by its own lists. Paths are relative to it."""

    tables: dict[str, Table]
    # Files and directories that are neither parts nor partitions, such as delete_tasks.json.
    others: frozenset[str]
    # When the listing was begun, and when DELETE_TASKS last changed: nanoseconds since 1970.
    taken: int = 0
    deletions: int = 0

    @property
    def partitions(self) -> frozenset[str]:
        """The names of the partitions."""
        return frozenset(path.split("/")[1] for path in self.tables)


@dataclass(frozen=True)
class Delta:
    """What makes a copy that was complete for one listing complete for a later one."""

    # Parts, whole directories, and small files to copy; paths relative to the data directory.
    copied: list[str]
    # What is no longer there.
    removed: list[str]


def read(host: Host, data_directory: str, before: Listing | None = None) -> Listing:
    """Return what `data_directory` on `host` holds now; raises OperatorError.

    Tables that have not changed since `before` are the same objects as there, and not read again.
    """
    try:
        if isinstance(host, SshHost):
            return _read_over_ssh(host, data_directory, before)
        return _read_here(data_directory, before)
    except (OSError, ValueError) as error:
        raise OperatorError(f"could not list {data_directory}: {error}") from None


def delta(before: Listing, now: Listing) -> Delta | None:
    """Return what has to be copied and removed to get from `before` to `now`.

    None where rows were deleted meanwhile, which newer versions note in parts that stay as they are.
    """
    if now.deletions != before.deletions:
        return None
    copied = sorted(now.others)
    for path, table in sorted(now.tables.items()):
        known = before.tables.get(path)
        if known and known.parts == table.parts:
            continue
        new = set(table.parts) - set(known.parts if known else ())
        copied += [f"{path}/{part}" for part in sorted(new)]
        copied.append(f"{path}/{PARTS_FILE}")
    removed = [f"{PARTITIONS}/{name}" for name in sorted(before.partitions - now.partitions)]
    return Delta(copied, removed + sorted(before.others - now.others))


def gone_parts(before: Listing, now: Listing) -> list[str]:
    """Return the parts of `before` that no longer count, in tables that are still there."""
    return [
        f"{path}/{part}"
        for path, table in before.tables.items()
        if path in now.tables
        for part in sorted(set(table.parts) - set(now.tables[path].parts))
    ]


def _read_here(data_directory: str, before: Listing | None) -> Listing:
    taken = time.time_ns()
    tables: dict[str, Table] = {}
    partitions = os.path.join(data_directory, PARTITIONS)
    for name in os.listdir(partitions):
        for kind in (DATADB, INDEXDB):
            path = f"{PARTITIONS}/{name}/{kind}"
            try:
                modified = os.stat(f"{partitions}/{name}/{kind}").st_mtime_ns
            except FileNotFoundError:
                # Made or deleted at this moment; the final pass sees how it ended.
                continue
            known = before.tables.get(path) if before else None
            if (
                before
                and known
                and known.modified == modified
                and modified < before.taken - TOO_YOUNG_NANOSECONDS
            ):
                tables[path] = known
            else:
                parts = _parts(f"{partitions}/{name}/{kind}")
                same = known is not None and known.parts == parts
                tables[path] = known if known and same else Table(parts, modified)
    others = frozenset(_others_here(data_directory, tables, before))
    try:
        deletions = os.stat(f"{data_directory}/{DELETE_TASKS}").st_mtime_ns
    except FileNotFoundError:
        deletions = 0
    return Listing(tables, others, taken, deletions)


def _parts(directory: str) -> tuple[str, ...]:
    try:
        with open(f"{directory}/{PARTS_FILE}", "rb") as file:
            return _names(file.read())
    except FileNotFoundError:
        return ()


def _names(content: bytes | str) -> tuple[str, ...]:
    names = json.loads(content) or []
    if not isinstance(names, list) or not all(map(is_part_name, names)):
        raise ValueError(f"{PARTS_FILE} is no list of part names")
    return tuple(names)


def _others_here(
    data_directory: str, tables: dict[str, Table], before: Listing | None
) -> Iterator[str]:
    """Yield what is beside the partitions, and beside the tables in them."""
    for name in os.listdir(data_directory):
        if name != PARTITIONS and name not in NOT_REPLACED:
            yield name
    known = before.tables if before else {}
    changed = {path.split("/")[1] for path in tables if known.get(path) is not tables[path]}
    for partition in changed:
        for name in os.listdir(f"{data_directory}/{PARTITIONS}/{partition}"):
            if name not in (DATADB, INDEXDB, SNAPSHOTS):
                yield f"{PARTITIONS}/{partition}/{name}"
    for path in before.others if before else ():
        top, _, rest = path.partition("/")
        if top == PARTITIONS and rest.partition("/")[0] not in changed:
            yield path


def _read_over_ssh(host: SshHost, data_directory: str, before: Listing | None) -> Listing:
    """List all in one round trip, with the content of every parts.json.

    find starts `cat` for many files at once, when it has enough of them or is done: the lists come
    in the order of the files, before whichever entry is printed next.
    """
    not_entered = [word for name in NOT_REPLACED for word in ("-o", "-name", name)]
    not_entered += ["-o", "-path", f"*/{PARTITIONS}/*/{SNAPSHOTS}"]
    printed = host.run(
        [
            *("find", data_directory, "-mindepth", "1", "-maxdepth", "4"),
            *("(", *not_entered[1:], ")", "-prune", "-o", "-printf", f"{_ENTRY}%P\\0"),
            *("(", "-name", PARTS_FILE, "-exec", "cat", "{}", "+"),
            *("-o", "-name", DELETE_TASKS, "-printf", f"{_DELETIONS}%T@\\0", ")"),
        ]
    )
    tables: dict[str, Table] = {}
    others: set[str] = set()
    listed: list[str] = []
    lists: list[tuple[str, ...]] = []
    deletions = 0
    for record in printed.stdout.split("\0"):
        record = _take_lists(record, lists)
        if record.startswith(_DELETIONS):
            deletions = _nanoseconds(record.removeprefix(_DELETIONS))
        elif record.startswith(_ENTRY):
            top, *names = record.removeprefix(_ENTRY).split("/")
            path = "/".join((top, *names))
            if os.path.basename(path) == PARTS_FILE:
                listed.append(os.path.dirname(path))
            if top != PARTITIONS:
                others |= {path} if not names else set()
            elif len(names) == 2:
                if names[1] in (DATADB, INDEXDB):
                    tables[path] = Table((), 0)
                else:
                    others.add(path)
    for path, parts in zip(listed, lists, strict=True):
        if path in tables:
            tables[path] = Table(parts, 0)
    for path, known in before.tables.items() if before else ():
        if path in tables and tables[path].parts == known.parts:
            tables[path] = known
    return Listing(tables, frozenset(others), deletions=deletions)


def _nanoseconds(text: str) -> int:
    """Return a time as find prints it, all of it: it is compared with one that the kernel told."""
    seconds, _, fraction = text.partition(".")
    return int(seconds) * 1_000_000_000 + int(fraction[:9].ljust(9, "0"))


def _take_lists(record: str, lists: list[tuple[str, ...]]) -> str:
    """Move the lists that `record` begins with to `lists`, and return the rest of it."""
    decoder = json.JSONDecoder()
    while record.startswith(("[", "null")):
        _, end = decoder.raw_decode(record)
        lists.append(_names(record[:end]))
        record = record[end:].lstrip()
    return record
