"""What is stored in a data directory, by VictoriaLogs' own metadata, on any host and with no server."""

from __future__ import annotations

import json

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host, Tree
from vl_borg_hooks.victorialogs.changes import listed_parts
from vl_borg_hooks.victorialogs.layout import (
    DATADB,
    DELETE_TASKS,
    NOT_REPLACED,
    PART_METADATA,
    PARTITIONS,
    PARTS_FILE,
)

# How far below a data directory its metadata is: partitions/DAY/datadb/PART/metadata.json.
METADATA_DEPTH = 5
# A running server merges parts while we read their metadata: then all of it is read again.
ATTEMPTS = 5


def days(host: Host, data_directory: str) -> list[str]:
    """Return the partitions in `data_directory` on `host`, oldest first; raises OperatorError."""
    path = f"{data_directory}/{PARTITIONS}"
    names = host.entries(path) if host.is_directory(path) else []
    return sorted(name for name in names if not name.startswith("."))


def rows_by_day(host: Host, data_directory: str) -> dict[str, int]:
    """Return the rows on disk in each partition of `data_directory`; raises OperatorError.

    A running server also has rows in memory, for some seconds.
    """
    if not _exists(host, data_directory):
        return {}
    for attempt in range(1, ATTEMPTS + 1):
        try:
            tree = host.tree(
                data_directory,
                depth=METADATA_DEPTH,
                contents=[PARTS_FILE, PART_METADATA],
                without=NOT_REPLACED,
            )
            return {day: _rows(tree, f"{PARTITIONS}/{day}/{DATADB}") for day in _partitions(tree)}
        except (OSError, ValueError, KeyError, TypeError) as error:
            if attempt == ATTEMPTS:
                raise OperatorError(
                    f"could not count the rows in {data_directory}: {error}"
                ) from None
    raise AssertionError("the last attempt returns or raises")


def has_deletions(host: Host, data_directory: str) -> bool:
    """Say whether VictoriaLogs has still to delete rows there, which it does as soon as it runs."""
    if not _exists(host, data_directory):
        return False
    try:
        tree = host.tree(
            data_directory, depth=1, contents=[DELETE_TASKS], without=[*NOT_REPLACED, PARTITIONS]
        )
        return bool(json.loads(tree.content(DELETE_TASKS)))
    except (OSError, ValueError):
        return False


def deleted_since(host: Host, data_directory: str, moment: float) -> bool:
    """Say whether rows were deleted, or their deletion was asked for, after `moment` (since 1970)."""
    if not _exists(host, data_directory):
        return False
    try:
        tree = host.tree(data_directory, depth=1, contents=[], without=[*NOT_REPLACED, PARTITIONS])
        return tree.modified(DELETE_TASKS) > moment * 1e9
    except OSError:
        return False


def disk_bytes(host: Host, directory: str) -> int:
    """Return how many bytes `directory` takes on the disk; raises OperatorError."""
    return int(host.run(["du", "-s", "--block-size=1", "--", directory]).stdout.split()[0])


def _exists(host: Host, directory: str) -> bool:
    """Say whether there is anything at `directory`: on a new machine there is not."""
    return host.identity(directory) is not None


def _partitions(tree: Tree) -> list[str]:
    try:
        return [name for name in tree.names(PARTITIONS) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _rows(tree: Tree, table: str) -> int:
    return sum(
        int(json.loads(tree.content(f"{table}/{part}/{PART_METADATA}"))["RowsCount"])
        for part in listed_parts(tree, table)
    )
