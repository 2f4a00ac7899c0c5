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
from dataclasses import dataclass, field

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.hosts import Host, SshHost
from vl_borg_hooks.victorialogs.layout import (
    DATADB,
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
# What find on another host prints before a path, and before the content of the parts.json there.
_ENTRY = "entry:"
_CONTENT = "content:"


@dataclass(frozen=True)
class Table:
    """One `datadb` or `indexdb`: the parts that count, and when its directory last changed."""

    parts: frozenset[str]
    modified: int


@dataclass(frozen=True)
class Listing:
    """What a data directory holds, by its own lists. Paths are relative to it."""

    tables: dict[str, Table]
    # Files and directories that are neither parts nor partitions, such as delete_tasks.json.
    others: frozenset[str]
    taken: int = field(default_factory=time.time_ns)

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


def delta(before: Listing, now: Listing) -> Delta:
    """Return what has to be copied and removed to get from `before` to `now`."""
    copied = sorted(now.others)
    for path, table in sorted(now.tables.items()):
        known = before.tables.get(path)
        if known is table:
            continue
        new = table.parts - (known.parts if known else frozenset())
        copied += [f"{path}/{part}" for part in sorted(new)]
        copied.append(f"{path}/{PARTS_FILE}")
    removed = [f"{PARTITIONS}/{name}" for name in sorted(before.partitions - now.partitions)]
    return Delta(copied, removed + sorted(before.others - now.others))


def _read_here(data_directory: str, before: Listing | None) -> Listing:
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
                tables[path] = Table(_parts(f"{partitions}/{name}/{kind}"), modified)
    return Listing(tables, frozenset(_others_here(data_directory, tables, before)))


def _parts(directory: str) -> frozenset[str]:
    try:
        with open(f"{directory}/{PARTS_FILE}", "rb") as file:
            return _names(file.read())
    except FileNotFoundError:
        return frozenset()


def _names(content: bytes | str) -> frozenset[str]:
    names = json.loads(content) or []
    if not isinstance(names, list) or not all(map(is_part_name, names)):
        raise ValueError(f"{PARTS_FILE} is no list of part names")
    return frozenset(names)


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
    """List all in one round trip, with the content of each parts.json that may be new."""
    not_entered = [word for name in (*NOT_REPLACED, SNAPSHOTS) for word in ("-o", "-name", name)]
    seconds = (before.taken - TOO_YOUNG_NANOSECONDS) // 1_000_000_000 if before else 0
    printed = host.run(
        [
            *("find", data_directory, "-mindepth", "1", "-maxdepth", "4"),
            *("(", *not_entered[1:], ")", "-prune", "-o", "-printf", f"{_ENTRY}%P\\0"),
            *("-name", PARTS_FILE, "-newermt", f"@{seconds}"),
            *("-printf", _CONTENT, "-exec", "cat", "{}", ";", "-printf", "\\0"),
        ]
    )
    known = before.tables if before else {}
    tables: dict[str, Table] = {}
    others: set[str] = set()
    path = ""
    for record in printed.stdout.split("\0"):
        if record.startswith(_CONTENT):
            table = os.path.dirname(path)
            parts = _names(record.removeprefix(_CONTENT))
            if table not in known or known[table].parts != parts:
                tables[table] = Table(parts, 0)
        elif record.startswith(_ENTRY):
            path = record.removeprefix(_ENTRY)
            top, *names = path.split("/")
            if top != PARTITIONS:
                others |= {path} if not names else set()
            elif len(names) == 2 and names[1] in (DATADB, INDEXDB):
                tables[path] = known.get(path) or Table(frozenset(), 0)
            elif len(names) == 2:
                others.add(path)
    return Listing(tables, frozenset(others))
