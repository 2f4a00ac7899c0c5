"""Snapshots of partitions: where they are, and what is in them.

VictoriaLogs makes them in `partitions/DAY/snapshots/NAME/`, of hard links to the parts of the day.
Source: partition.go and storage.go of VictoriaLogs, and lib/snapshot/snapshotutil of VictoriaMetrics.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timezone

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.victorialogs.changes import Table, listed_parts
from vl_borg_hooks.victorialogs.layout import DATADB, INDEXDB, PARTITIONS, PARTS_FILE, SNAPSHOTS

# `partitions/DAY/snapshots/NAME` at the end of a path. A name is a time in UTC and a number, which
# the server counts up.
_PATH = re.compile(
    rf"(?:.*/)?{PARTITIONS}/(?P<day>\d{{8}})/{SNAPSHOTS}/(?P<name>\d{{14}}-[0-9A-Fa-f]{{1,32}})/?",
    re.ASCII | re.DOTALL,
)
# How far below a snapshot its lists of parts are: datadb/parts.json.
_PARTS_DEPTH = 2
# What filesystems with hard links are called by stat(1) of GNU coreutils.
_WITH_HARD_LINKS = frozenset(
    {
        "ext2/ext3",
        "xfs",
        "btrfs",
        "zfs",
        "f2fs",
        "bcachefs",
        "tmpfs",
        "overlayfs",
        "nfs",
        "reiserfs",
    }
)


@dataclass(frozen=True)
class Snapshot:
    """A snapshot of one day. `server_path` is its path as the server sees it."""

    day: str
    name: str
    server_path: str

    @property
    def path(self) -> str:
        """Its path in a data directory."""
        return f"{PARTITIONS}/{self.day}/{SNAPSHOTS}/{self.name}"

    @property
    def made_at(self) -> float:
        """When it was made, in whole seconds since 1970, by the clock of the server."""
        moment = datetime.strptime(self.name.partition("-")[0], "%Y%m%d%H%M%S")
        return moment.replace(tzinfo=timezone.utc).timestamp()

    @property
    def number(self) -> int:
        """The number at the end of its name: the server counts up, from the time of its start."""
        return int(self.name.partition("-")[2], 16)


def at(server_path: str) -> Snapshot:
    """Return the snapshot at `server_path`; raises OperatorError if that is not the path of one."""
    found = _PATH.fullmatch(server_path)
    try:
        if found:
            snapshot = Snapshot(found["day"], found["name"], server_path)
            snapshot.made_at  # noqa: B018 - the name must be a time
            return snapshot
    except ValueError:
        pass
    raise OperatorError(
        f"VictoriaLogs calls {server_path[:200]!r} a snapshot, which is not partitions/DAY/snapshots/NAME"
    )


def tables(host: Host, directory: str) -> dict[str, Table]:
    """Return the tables of the snapshot in `directory`, by name; raises OperatorError.

    A snapshot has both tables with their lists. If one is missing, it is being deleted.
    """
    try:
        tree = host.tree(directory, depth=_PARTS_DEPTH, contents=[PARTS_FILE], without=())
        for kind in (DATADB, INDEXDB):
            tree.content(f"{kind}/{PARTS_FILE}")
        return {kind: Table(listed_parts(tree, kind), 0) for kind in (DATADB, INDEXDB)}
    except (OSError, ValueError) as error:
        raise OperatorError(f"could not list the snapshot {directory}: {error}") from None


def is_known_for_hard_links(host: Host, path: str) -> bool:
    """Say whether the filesystem of `path` is of a kind that always has hard links.

    Without them, a snapshot makes the server panic (MustHardLinkFiles in lib/fs). Raises OperatorError.
    """
    said = host.run(["stat", "--file-system", "--format=%T", "--", path]).stdout.strip()
    return said in _WITH_HARD_LINKS
