"""What in a data directory keeps VictoriaLogs from starting.

A running server does not mind any of it, so only a restart finds out. Source: storage.go,
partition.go and datadb.go of VictoriaLogs, and lib/mergeset/table.go of VictoriaMetrics, v1.51.1; all
was tried on it. Only names are looked at: a file that is missing in a part is found by the checks of
the copy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host, Tree
from vl_borg_hooks.victorialogs.layout import (
    DATADB,
    DELETE_TASKS,
    INDEXDB,
    NOT_REPLACED,
    PARTITION_NAME,
    PARTITIONS,
    PARTS_FILE,
)
from vl_borg_hooks.victorialogs.parts import is_part_name

# From this version on, names in partitions/ that begin with a dot are skipped, and directories that
# are empty or half removed are removed, whatever they are called.
LENIENT_SINCE = (1, 50)
# In a directory that such a version is removing (dir_remover.go); and in the name of one that an
# older version is removing.
REMOVAL_MARK = ".delete-this-dir"
REMOVAL_NAME = ".must-remove."
# How far below a data directory its parts are: partitions/DAY/datadb/PART.
PARTS_DEPTH = 4
_VERSION = re.compile(r"v(\d+)\.(\d+)")


def look(host: Host, data_directory: str) -> Tree:
    """Return what the other functions ask; raises OperatorError."""
    return host.tree(
        data_directory,
        depth=PARTS_DEPTH,
        contents=[PARTS_FILE, DELETE_TASKS],
        without=NOT_REPLACED,
    )


def days(tree: Tree) -> set[str]:
    """Return the days that a server which starts on `tree` attaches; raises OperatorError."""
    try:
        names = [name for name in _present(tree, PARTITIONS) if _is_day(name)]
        return {name for name in names if _present(tree, f"{PARTITIONS}/{name}")}
    except OSError as error:
        raise OperatorError(f"could not look through the partitions: {error}") from None


def obstacles(tree: Tree, version: str) -> set[str]:
    """Return what keeps a server of `version` from starting on `tree`, each as `PATH: why`.

    Paths are relative to `tree`. An empty `version` is one that is not known, which may panic at what
    only older versions panic at. A server that runs changes its data meanwhile: what is found only
    once may have been a moment of that. Raises OperatorError.
    """
    try:
        return set(_obstacles(tree, _is_lenient(version)))
    except OSError as error:
        raise OperatorError(f"could not look through the partitions: {error}") from None


def _obstacles(tree: Tree, is_lenient: bool) -> Iterator[str]:
    tasks = _read(tree, DELETE_TASKS)
    if tasks is not None and not isinstance(tasks, list):
        yield f"{DELETE_TASKS}: is not a JSON list"
    for name in _present(tree, PARTITIONS):
        path = f"{PARTITIONS}/{name}"
        if REMOVAL_NAME in name or (is_lenient and name.startswith(".")):
            continue
        if not tree.is_directory(path):
            yield f"{path}: is not a directory"
            continue
        inside = _present(tree, path)
        if is_lenient and (not inside or REMOVAL_MARK in inside):
            continue
        if not _is_day(name):
            yield f"{path}: is not the partition of a day (YYYYMMDD)"
            continue
        if DATADB in inside and INDEXDB not in inside:
            yield f"{path}: has no {INDEXDB}"
        for table in {DATADB, INDEXDB}.intersection(inside):
            yield from _in_table(tree, f"{path}/{table}")


def _in_table(tree: Tree, table: str) -> Iterator[str]:
    """Yield what is wrong with one `datadb` or `indexdb`."""
    listed = _read(tree, f"{table}/{PARTS_FILE}")
    if listed is None:
        # `null`, or missing. A server makes a missing one, but for a datadb that has parts.
        is_missing = PARTS_FILE not in _present(tree, table)
        if is_missing and table.endswith(DATADB) and _has_directories(tree, table):
            yield f"{table}: has parts, but no {PARTS_FILE}"
        return
    if not isinstance(listed, list) or not all(map(is_part_name, listed)):
        yield f"{table}/{PARTS_FILE}: is not a JSON list of part names"
        return
    for part in listed:
        if not tree.is_directory(f"{table}/{part}"):
            yield f"{table}/{part}: is missing, though {PARTS_FILE} lists it"


def _has_directories(tree: Tree, path: str) -> bool:
    return any(tree.is_directory(f"{path}/{name}") for name in _present(tree, path))


def _present(tree: Tree, path: str) -> list[str]:
    """Return the names in directory `path`; empty if it has gone meanwhile, or is no directory."""
    try:
        return tree.names(path)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(tree: Tree, path: str) -> object:
    """Return the content of the JSON file `path`; None if it is missing, its text if it is no JSON."""
    try:
        content = tree.content(path)
    except FileNotFoundError:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return str(content)


def _is_lenient(version: str) -> bool:
    found = _VERSION.match(version)
    return found is not None and (int(found[1]), int(found[2])) >= LENIENT_SINCE


def _is_day(name: str) -> bool:
    """Say whether Go's time.Parse takes `name` for a day as 20060102."""
    # Python's \d matches other digits too, and its %m takes one digit.
    if not (name.isascii() and PARTITION_NAME.fullmatch(name)):
        return False
    try:
        datetime.strptime(name, "%Y%m%d")
    except ValueError:
        # Year 0 is a day for Go alone; no server has it.
        return False
    return True
