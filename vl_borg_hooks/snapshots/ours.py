"""The snapshots that a run makes, and deletes whatever happens.

The server names a snapshot only when it has made it. So a record says before that for which day we ask
and which snapshots there were. A run that was killed may have left what came after that.

The server panics if a snapshot is removed that it makes or deletes at that moment. So it deletes them
itself; we remove one only if it is whole and the server refuses, or if no server runs.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.runs.records import Making, SnapshotRecord
from vl_borg_hooks.system.log import logger
from vl_borg_hooks.victorialogs import lock, snapshots
from vl_borg_hooks.victorialogs.http import Client, Refused
from vl_borg_hooks.victorialogs.layout import PARTITIONS, SNAPSHOTS
from vl_borg_hooks.victorialogs.snapshots import Snapshot

# How long one may take: the server writes what is in memory, and links the parts of a day. It deletes
# what it made if we have gone by then.
SNAPSHOT_SECONDS = 60
# Its name has the time at which the server began to make it: at once after it was asked, mostly. What
# others have made later than this is never taken for ours.
BEGIN_SECONDS = 3
# How far the clock of the server's host may be from ours, if it is another one.
CLOCK_SECONDS = 5
# After this time, the server has finished the one that it was asked for, or given it up.
WHOLE_SECONDS = 15 * 60


class Ours:
    """The snapshots of one run on `target`."""

    def __init__(self, target: Target, client: Client) -> None:
        self._target = target
        self._client = client
        self._made: list[Snapshot] = []
        self._making: list[Making] = []
        # The number of the last one that was made.
        self._last = 0
        self._is_seen = False

    def make(self, days: Sequence[str]) -> dict[str, Snapshot]:
        """Make and return a snapshot of each of `days`, but of those that are not attached any more.

        Raises OperatorError, also if the data path does not have what the server made.
        """
        made = self.begin(days)
        self.keep(made)
        return made

    def keep(self, made: Mapping[str, Snapshot]) -> None:
        """Note what `begin` has made, to copy it.

        Raises OperatorError, also if the data path does not have it.
        """
        self._note()
        for day, snapshot in made.items():
            self._require_seen(snapshot, day)

    def begin(self, days: Sequence[str]) -> dict[str, Snapshot]:
        """Do what `make` does, for snapshots that are deleted at once, mostly: not all have to be seen.

        One is enough to see that the server is the one on the data path.
        """
        if not days:
            return {}
        there = [snapshots.at(path) for path in self._client.snapshots()]
        made: dict[str, Snapshot] = {}
        for day in days:
            known = [other.name for other in there if other.day == day]
            self._making = [Making(day, time.time(), known, self._last)]
            self._note()
            for path in self._create(day):
                snapshot = snapshots.at(path)
                self._made.append(snapshot)
                self._last = snapshot.number
                made[day] = snapshot
                if not self._is_seen:
                    self._require_seen(snapshot, day)
                    self._is_seen = True
            self._making = []
        return made

    def delete_all(self) -> None:
        """Delete all that were made; warn of what is left, which the next run deletes."""
        _, record = _delete(self._target, self._client, self._made, self._making)
        self._made = [snapshots.at(path) for path in record.made]
        self._making = record.making
        try:
            self._note()
        except OperatorError as error:
            # It names what there is not any more: that does no harm.
            self._target.reporter.warn(str(error))

    def _create(self, day: str) -> list[str]:
        try:
            return self._client.create_snapshot(day, SNAPSHOT_SECONDS)
        except Refused:
            # It has made none.
            self._making = []
            raise

    def _require_seen(self, snapshot: Snapshot, day: str) -> None:
        path = f"{self._target.data_directory}/{snapshot.path}"
        if snapshot.day != day or not self._target.host.is_directory(path):
            raise OperatorError(
                f"VictoriaLogs at {self._client.url} made the snapshot {snapshot.server_path}, "
                f"but {path} is not there",
                hint="correct data_path or url: they are of two servers, or data_path is not where "
                "its -storageDataPath is on this machine",
            )

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
    made = [snapshots.at(path) for path in record.made]
    deleted, left = _delete(target, target.client, made, record.making)
    for snapshot in deleted:
        target.reporter.result(f"deleted the snapshot {snapshot.path} of a killed run")
    target.records.note_snapshots(left)


def _delete(
    target: Target, client: Client | None, made: Sequence[Snapshot], making: Sequence[Making]
) -> tuple[list[Snapshot], SnapshotRecord]:
    """Delete those that were `made`, and what came of `making`; warn of what is left.

    Returns what was deleted, and what is left to delete.
    """
    deleted: list[Snapshot] = []
    left = SnapshotRecord([], [])
    for snapshot in made:
        if left.made:
            # If it hangs, it is waited for once only. None is lost: they are recorded.
            left.made.append(snapshot.server_path)
            continue
        problem = delete(target, client, snapshot, is_whole=True)
        if problem:
            target.reporter.warn(problem)
            left.made.append(snapshot.server_path)
        else:
            deleted.append(snapshot)
    known = {one.name for one in made}
    for wanted in making:
        try:
            found = _unrecorded(target, wanted, known)
            if client and lock.is_held(target.host, target.data_directory):
                # If it hangs, this fails: it may still make the snapshot.
                found = _as_served(client, found)
            is_whole = time.time() - wanted.since > WHOLE_SECONDS
            problems = [delete(target, client, one, is_whole=is_whole) for one in found]
        except OperatorError as error:
            problems = [f"a snapshot of {wanted.day} may be left until the next run: {error}"]
        if any(problems):
            target.reporter.warn("; ".join(filter(None, problems)))
            left.making.append(wanted)
        else:
            deleted += found
    return deleted, left


def _as_served(client: Client, found: Sequence[Snapshot]) -> list[Snapshot]:
    """Return the snapshots that were `found`, with the paths that the server has for them."""
    served = [snapshots.at(path) for path in client.snapshots()]
    paths = {(one.day, one.name): one.server_path for one in served}
    return [replace(one, server_path=paths.get((one.day, one.name), one.path)) for one in found]


def delete(target: Target, client: Client | None, snapshot: Snapshot, *, is_whole: bool) -> str:
    """Delete `snapshot`; return why that failed, empty if it did not.

    Servers before v1.44 delete none, and one that is stopped doesn't either: then it is removed, if
    `is_whole` says that it is not being made any more.
    """
    path = f"{target.data_directory}/{snapshot.path}"
    failure: OperatorError | None = None
    try:
        if client:
            client.delete_snapshot(snapshot.server_path)
    except OperatorError as error:
        logger.debug("%s: VictoriaLogs did not delete a snapshot: %s", target.name, error)
        failure = error
    try:
        if not target.host.is_directory(path) or (client and failure is None):
            return ""
        is_refused = failure is None or isinstance(failure, Refused)
        if (is_refused and is_whole) or not lock.is_held(target.host, target.data_directory):
            target.host.remove_tree(path)
            return ""
    except OperatorError as error:
        failure = error
    return f"the snapshot {path} is left until the next run: {failure}"


def _unrecorded(target: Target, wanted: Making, made: set[str]) -> list[Snapshot]:
    """Return what the server has made for us that no record names, if anything.

    Others may have made some since. Ours was begun at once, and is the one that the server has made
    next, which its number says. If that can't be told, all are left.
    """
    directory = f"{target.data_directory}/{PARTITIONS}/{wanted.day}/{SNAPSHOTS}"
    names = set(target.host.entries(directory)) - {*wanted.known, *made}
    found = [snapshot for name in sorted(names) for snapshot in _at(f"{directory}/{name}")]
    found = [snapshot for snapshot in found if _may_be(target, snapshot, wanted)]
    if wanted.after:
        return [snapshot for snapshot in found if snapshot.number == wanted.after + 1]
    if len(found) > 1:
        target.reporter.warn(
            f"one of the snapshots {', '.join(one.name for one in found)} in {directory} may be left "
            "by a killed run, and the others are not ours: all are left, until -snapshotsMaxAge or "
            "until you delete them"
        )
        return []
    return found


def _at(path: str) -> list[Snapshot]:
    """Return the snapshot at `path`, none if something else is there."""
    try:
        return [snapshots.at(path)]
    except OperatorError:
        return []


def _may_be(target: Target, snapshot: Snapshot, wanted: Making) -> bool:
    """Say whether `snapshot` was made when `wanted` was asked for; its name has whole seconds."""
    is_here = target.host.local_path("/") is not None
    clock = 0 if is_here else CLOCK_SECONDS
    seconds = snapshot.made_at - wanted.since
    return -1 - clock <= seconds <= BEGIN_SECONDS + clock
