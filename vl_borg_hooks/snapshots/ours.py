"""The snapshots that a run makes, and deletes whatever happens.

The server names a snapshot only when it has made it. So a record says before that for which days we ask
and which snapshots there were. A run that was killed may have left what came after that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.runs.records import Making, SnapshotRecord
from vl_borg_hooks.system.log import logger
from vl_borg_hooks.victorialogs import snapshots
from vl_borg_hooks.victorialogs.http import Client
from vl_borg_hooks.victorialogs.layout import PARTITIONS, SNAPSHOTS
from vl_borg_hooks.victorialogs.snapshots import Snapshot

# How long one may take: the server writes what is in memory, and links the parts of a day. It deletes
# what it made if we have gone by then.
SNAPSHOT_SECONDS = 60
# How far the clock of the server's host may be from ours.
CLOCK_SECONDS = 5


class Ours:
    """The snapshots of one run on `target`."""

    def __init__(self, target: Target, client: Client) -> None:
        self._target = target
        self._client = client
        self._made: list[Snapshot] = []
        self._making: list[Making] = []

    def make(self, days: Sequence[str]) -> dict[str, Snapshot]:
        """Make and return a snapshot of each of `days`, but of those that are not attached any more.

        Raises OperatorError, also if the data path does not have what the server made.
        """
        made = self.begin(days)
        self._note()
        for day, snapshot in made.items():
            self._require_seen(snapshot, day)
        return made

    def begin(self, days: Sequence[str]) -> dict[str, Snapshot]:
        """Do what `make` does, for snapshots that are deleted at once: they are not noted one by one."""
        if not days:
            return {}
        there = [snapshots.at(path) for path in self._client.snapshots()]
        self._making = [
            Making(day, time.time(), [other.name for other in there if other.day == day])
            for day in days
        ]
        self._note()
        made: dict[str, Snapshot] = {}
        for day in days:
            for path in self._client.create_snapshot(day, SNAPSHOT_SECONDS):
                snapshot = snapshots.at(path)
                self._made.append(snapshot)
                made[day] = snapshot
        self._making = []
        return made

    def delete_all(self) -> None:
        """Delete all that were made; warn of what is left, which the next run deletes."""
        self._made = [snapshot for snapshot in self._made if not self._delete(snapshot)]
        if self._making:
            self._made += _unrecorded(self._target, self._making, {one.name for one in self._made})
            self._making = []
            self._made = [snapshot for snapshot in self._made if not self._delete(snapshot)]
        try:
            self._note()
        except OperatorError as error:
            # It names what there is not any more: that does no harm.
            self._target.reporter.warn(str(error))

    def _require_seen(self, snapshot: Snapshot, day: str) -> None:
        path = f"{self._target.data_directory}/{snapshot.path}"
        if snapshot.day != day or not self._target.host.is_directory(path):
            raise OperatorError(
                f"VictoriaLogs at {self._client.url} made the snapshot {snapshot.server_path}, "
                f"but {path} is not there",
                hint="correct data_path or url: they are of two servers, or data_path is not where "
                "its -storageDataPath is on this machine",
            )

    def _delete(self, snapshot: Snapshot) -> bool:
        problem = delete(self._target, self._client, snapshot)
        if problem:
            self._target.reporter.warn(problem)
        return not problem

    def _note(self) -> None:
        self._target.records.note_snapshots(
            SnapshotRecord([one.server_path for one in self._made], self._making)
        )


def clean_up(target: Target) -> None:
    """Delete the snapshots that a killed run has left; warn of what can't be deleted.

    The caller holds the run lock. Raises OperatorError if the record of them can't be read.
    """
    record = target.records.snapshots()
    if record is None:
        return
    left = [snapshots.at(path) for path in record.made]
    left += _unrecorded(target, record.making, {one.name for one in left})
    kept = []
    for snapshot in left:
        problem = delete(target, target.client, snapshot)
        if problem:
            target.reporter.warn(problem)
            kept.append(snapshot.server_path)
        else:
            target.reporter.result(f"deleted the snapshot {snapshot.path} of a killed run")
    target.records.note_snapshots(SnapshotRecord(kept, []))


def delete(target: Target, client: Client | None, snapshot: Snapshot) -> str:
    """Delete `snapshot`, by the server, or ourselves; return why that failed, empty if it did not.

    Servers before v1.44 delete none, and one that is stopped doesn't either.
    """
    path = f"{target.data_directory}/{snapshot.path}"
    try:
        if client:
            client.delete_snapshot(snapshot.server_path)
    except OperatorError as error:
        logger.debug("%s: VictoriaLogs did not delete a snapshot: %s", target.name, error)
    try:
        if target.host.is_directory(path):
            target.host.remove_tree(path)
    except OperatorError as error:
        return f"the snapshot {path} is left until the next run: {error}"
    return ""


def _unrecorded(target: Target, making: Sequence[Making], known: set[str]) -> Iterator[Snapshot]:
    """Yield what the server has made for us that no record names.

    If others have made some at the same time, it can't be told which is whose: then all are left.
    """
    for wanted in making:
        directory = f"{target.data_directory}/{PARTITIONS}/{wanted.day}/{SNAPSHOTS}"
        names = set(target.host.entries(directory)) - {*wanted.known, *known}
        found = [snapshot for name in sorted(names) for snapshot in _at(f"{directory}/{name}")]
        found = [snapshot for snapshot in found if _may_be(snapshot, wanted)]
        if len(found) == 1:
            yield from found
        elif found:
            target.reporter.warn(
                f"one of the snapshots {', '.join(one.name for one in found)} in {directory} is left "
                "by a killed run, and the others are not ours: all are left, until "
                "-snapshotsMaxAge or until you delete them"
            )


def _at(path: str) -> list[Snapshot]:
    """Return the snapshot at `path`, none if something else is there."""
    try:
        return [snapshots.at(path)]
    except OperatorError:
        return []


def _may_be(snapshot: Snapshot, wanted: Making) -> bool:
    """Say whether `snapshot` was made when `wanted` was asked for; its name has whole seconds."""
    seconds = snapshot.made_at - wanted.since
    return -1 - CLOCK_SECONDS <= seconds <= SNAPSHOT_SECONDS + CLOCK_SECONDS
