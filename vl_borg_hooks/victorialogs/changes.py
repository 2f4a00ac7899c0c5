"""What changed in a data directory since a warm pass began, found without a look at every file.

A part's files are written once, before `parts.json` lists the part, and `parts.json` is replaced by
a rename. So a part that was listed before a warm pass and is still listed has been copied whole. A
final pass only has to copy the parts that are listed only now, and the few small files beside them.
If the modification time of a directory has not changed, there was no rename in it: two stats per
partition show that nothing is new in it.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host, Tree
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
# How far below a data directory its lists of parts are: partitions/DAY/datadb/parts.json.
PARTS_DEPTH = 4


@dataclass(frozen=True)
class Table:
    """One `datadb` or `indexdb`: the parts that count, and when its directory last changed."""

    # In the order of the file: a list with only another order is copied again too.
    parts: tuple[str, ...]
    modified: int


@dataclass(frozen=True)
class Listing:
    """What a data directory holds, by its own lists. Paths are relative to it."""

    tables: dict[str, Table]
    # Files and directories that are neither parts nor partitions, such as delete_tasks.json.
    others: frozenset[str]
    # When the listing was begun, in nanoseconds since 1970; 0 if the data's clock is not ours.
    taken: int = 0

    @property
    def partitions(self) -> frozenset[str]:
        """The names of the partitions."""
        return frozenset(path.split("/")[1] for path in self.tables)


NOTHING = Listing({}, frozenset())


@dataclass(frozen=True)
class Delta:
    """What has to change in a copy that is complete for one listing, for a later listing."""

    # Parts, whole directories, and small files to copy; paths relative to the data directory.
    copied: list[str]
    # What is no longer there.
    removed: list[str]


def read(host: Host, data_directory: str, before: Listing | None = None) -> Listing:
    """Return what `data_directory` on `host` holds now; raises OperatorError.

    Tables that have not changed since `before` are the same objects as there. Their lists are not
    read again, unless the times on `host` are of a clock that is not ours.
    """
    try:
        tree = host.tree(
            data_directory, depth=PARTS_DEPTH, contents=[PARTS_FILE], without=NOT_REPLACED
        )
        return _read(tree, before)
    except (OSError, ValueError) as error:
        raise OperatorError(f"could not list {data_directory}: {error}") from None


def without(listing: Listing, partitions: Collection[str]) -> Listing:
    """Return `listing` without these `partitions`."""
    if not partitions:
        return listing

    def is_kept(path: str) -> bool:
        top, _, rest = path.partition("/")
        return top != PARTITIONS or rest.partition("/")[0] not in partitions

    return replace(
        listing,
        tables={path: table for path, table in listing.tables.items() if is_kept(path)},
        others=frozenset(filter(is_kept, listing.others)),
    )


def changed(before: Listing, now: Listing) -> list[str]:
    """Return the partitions of `now` that are not as in `before`, oldest first."""
    names = {
        path.split("/")[1]
        for path, table in now.tables.items()
        if path not in before.tables or before.tables[path].parts != table.parts
    }
    return sorted(names)


def recent(listing: Listing, seconds: float, most: int) -> list[str]:
    """Return the partitions that changed at most `seconds` before the newest change, oldest first.

    If they are more than `most`, those that changed last.
    """
    changed_at: dict[str, int] = {}
    for path, table in listing.tables.items():
        name = path.split("/")[1]
        changed_at[name] = max(changed_at.get(name, 0), table.modified)
    oldest = max(changed_at.values(), default=0) - seconds * 1e9
    names = sorted(changed_at, key=lambda name: changed_at[name])[-most:]
    return sorted(name for name in names if changed_at[name] >= oldest)


def delta(before: Listing, now: Listing) -> Delta:
    """Return what has to be copied and removed to get from `before` to `now`."""
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


def _read(tree: Tree, before: Listing | None) -> Listing:
    """Return what `tree` holds, with two requests for each partition unchanged since `before`."""
    known = before.tables if before else {}
    settled = before.taken - TOO_YOUNG_NANOSECONDS if before else 0
    tables: dict[str, Table] = {}
    looked_into: set[str] = set()
    for name in tree.names(PARTITIONS):
        if name.startswith("."):
            # Not copied.
            continue
        for kind in (DATADB, INDEXDB):
            path = f"{PARTITIONS}/{name}/{kind}"
            try:
                modified = tree.modified(path)
            except FileNotFoundError:
                # Being made or deleted right now; the final pass sees the result.
                continue
            table = known.get(path)
            if table is None or table.modified != modified or modified >= settled:
                looked_into.add(name)
                parts = listed_parts(tree, path)
                table = table if table and table.parts == parts else Table(parts, modified)
            tables[path] = table
    others = frozenset(_others(tree, looked_into, before))
    return Listing(tables, others, tree.taken)


def listed_parts(tree: Tree, table: str) -> tuple[str, ...]:
    """Return the parts of `table` that count, by its own list; raises ValueError for no list."""
    try:
        names = json.loads(tree.content(f"{table}/{PARTS_FILE}"))
    except FileNotFoundError:
        return ()
    if names is None:
        # What Go writes for an empty list that was never filled.
        return ()
    if not isinstance(names, list) or not all(map(is_part_name, names)):
        raise ValueError(f"{PARTS_FILE} is not a list of part names")
    return tuple(names)


def _others(tree: Tree, looked_into: set[str], before: Listing | None) -> Iterator[str]:
    """Yield what is beside the partitions, and beside the tables in them.

    For the partitions that were not `looked_into`, that is taken from `before`.
    """
    for name in tree.names(""):
        if name != PARTITIONS and name not in NOT_REPLACED:
            yield name
    for partition in looked_into:
        for name in tree.names(f"{PARTITIONS}/{partition}"):
            if name not in (DATADB, INDEXDB, SNAPSHOTS):
                yield f"{PARTITIONS}/{partition}/{name}"
    for path in before.others if before else ():
        top, _, rest = path.partition("/")
        if top == PARTITIONS and rest.partition("/")[0] not in looked_into:
            yield path
