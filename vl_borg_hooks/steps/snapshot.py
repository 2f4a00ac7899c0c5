"""How a backup makes its copy with `consistency: snapshot`: VictoriaLogs keeps serving.

Warm passes come first, as with a stop. Then what was acknowledged before is proved to be on
VictoriaLogs' disk. Only the days that have changed since the warm passes are copied from snapshots; all
others are in the copy already.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Backup, Copied
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.snapshots import written
from vl_borg_hooks.snapshots.ours import Ours
from vl_borg_hooks.snapshots.written import Moment, NotWritten, Written
from vl_borg_hooks.steps.passes import Passes
from vl_borg_hooks.stop_window.window import refuse_second_stop
from vl_borg_hooks.system import signals
from vl_borg_hooks.transfer import PassResult
from vl_borg_hooks.victorialogs import changes, snapshots, stored
from vl_borg_hooks.victorialogs.changes import Listing, Table
from vl_borg_hooks.victorialogs.http import Client
from vl_borg_hooks.victorialogs.layout import DATADB, INDEXDB, PARTITIONS
from vl_borg_hooks.victorialogs.snapshots import Snapshot

NONE = Table((), 0)


@hookimpl
def before_backup(backup: Backup) -> None:
    """Flush VictoriaLogs: the copy is proved to have what was acknowledged until here.

    Only to save time: what the flush needs is asked for a second later. If it fails, `make_copy` tells.
    """
    if backup.instance.consistency != "stop":
        with contextlib.suppress(OperatorError):
            backup.flush = written.begin(backup, backup.client) if backup.client else None


@hookimpl
def make_copy(backup: Backup) -> Copied | None:
    """Update the staging copy with snapshots, if it is made with them; nothing is stopped."""
    client = backup.client
    if backup.consistency == "stop" or backup.found is ServiceState.STOPPED or client is None:
        return None
    refuse_second_stop(backup, "make_copy")
    try:
        return _Copying(backup, client).copy()
    except NotWritten as error:
        if backup.instance.consistency != "auto":
            raise
        backup.consistency, backup.consistency_why = "stop", error.what
        backup.reporter.warn(f"VictoriaLogs is stopped for the final pass: {error.what}")
        return None


class _Copying:
    """The making of one copy with snapshots."""

    def __init__(self, backup: Backup, client: Client) -> None:
        self._backup = backup
        self._client = client
        self._ours = Ours(backup, client)
        detached = sorted(self._detached())
        self._passes = Passes(backup, without=detached)
        # Days that are left out since, as they were dropped or detached meanwhile.
        self._gone: set[str] = set()
        self._written = Written(backup, client, self._ours, self._read, backup.flush)
        if detached:
            backup.reporter.warn(
                f"these days are detached, so they are not copied: {', '.join(detached)}"
            )

    def copy(self) -> Copied:
        """Make the copy; all snapshots are deleted when this returns or raises."""
        self._passes.look_at_copy()
        warm = self._passes.warm_up()
        # Tasks to delete rows come before the rows: one that ends meanwhile has no more to delete after
        # a restore, but one that is lost leaves what it has not come to yet.
        self._passes.copy_others(self._read())
        try:
            final = self._copy_what_is_new(self._written.wait_for_rows())
        finally:
            with signals.held_back():
                self._ours.delete_all()
        self._backup.reporter.say(f"final pass, from snapshots: {final}")
        return self._passes.copied(warm, final, "snapshot")

    def _copy_what_is_new(self, moment: Moment) -> PassResult:
        """Copy the days that have changed since the warm passes, from a snapshot of each.

        The snapshots of the moment are good for those that have not changed after them.
        """
        days = changes.changed(self._passes.listing or changes.NOTHING, moment.listing)
        good = {
            day: snapshot
            for day, snapshot in moment.snapshots.items()
            if day in days and self._is_still(snapshot, moment.listing)
        }
        self._ours.keep(good)
        more = self._ours.make([day for day in days if day not in good])
        rows = self._copy(days, {**good, **more}, moment.listing, (DATADB, INDEXDB))
        if moment.has_index and not more:
            return rows
        return self._copy_index().after(rows)

    def _is_still(self, snapshot: Snapshot, now: Listing) -> bool:
        """Say whether `snapshot` is there, and `now` has what is in it and no more of its day."""
        try:
            found = snapshots.tables(self._backup.host, self._path(snapshot))
        except OperatorError:
            return False
        return all(
            now.tables.get(f"{PARTITIONS}/{snapshot.day}/{kind}", NONE).parts == table.parts
            for kind, table in found.items()
        )

    def _detached(self) -> set[str]:
        """Return the days that are there and not attached; raises OperatorError if none is attached.

        Or if the server has attached days that are not there: it is another one.
        """
        backup = self._backup
        before = self._client.attached_days()
        present = set(stored.days(backup.host, backup.data_directory))
        attached = self._client.attached_days()
        # One that is dropped or made meanwhile is in only one of the answers.
        if (before & attached) - present or (present and not attached):
            raise OperatorError(
                f"the VictoriaLogs that answers at {self._client.url} has attached none of the days in "
                f"{backup.instance.data_path}, or days that are not there",
                hint="correct url if it is another server's, or attach the days",
            )
        return present - attached

    def _read(self) -> Listing:
        """Return what the data directory holds of the days that are attached now.

        Of a day that is not attached, /metrics tells nothing, and what it has in memory is not known.
        """
        now = self._passes.read()
        return self._without(now, now.partitions - self._client.attached_days())

    def _copy_index(self) -> PassResult:
        """Copy the index once more where it has changed: a row must not come without its stream.

        In a snapshot the index is older than the rows, and what a merge holds in memory is not in it.
        """
        copied = self._passes.listing or changes.NOTHING
        now = self._written.wait_for_index()
        is_index = re.compile(rf"{PARTITIONS}/(.*)/{INDEXDB}")
        behind = [
            found[1]
            for path, table in copied.tables.items()
            if (found := is_index.fullmatch(path))
            and path in now.tables
            and now.tables[path].parts != table.parts
        ]
        return self._copy(behind, self._ours.make(behind), copied, (INDEXDB,))

    def _copy(
        self,
        days: Sequence[str],
        made: Mapping[str, Snapshot],
        now: Listing,
        kinds: Sequence[str],
    ) -> PassResult:
        """Make the copy one of `now`, but with the tables of these `kinds` of `days` as in snapshots.

        A day that has none is not attached any more: it is left out, and one that is gone meanwhile.
        """
        now = self._without(now, [day for day in days if day not in made])
        while True:
            try:
                return self._passes.copy_from(
                    {day: self._path(snapshot) for day, snapshot in made.items()},
                    self._with_snapshots(now, made, kinds),
                )
            except OperatorError:
                gone = [day for day in made if not self._is_there(day)]
                if not gone:
                    self._require_there(made)
                    raise
                now = self._without(now, gone)
                made = {day: made[day] for day in made if day not in gone}

    def _without(self, now: Listing, days: Collection[str]) -> Listing:
        for day in sorted({*days} - self._gone):
            self._backup.reporter.warn(
                f"{day} was dropped or detached meanwhile, so it is not in the copy"
            )
        # What was not attached at one moment may lack rows, whatever comes later.
        self._gone.update(days)
        return changes.without(now, self._gone)

    def _with_snapshots(
        self, now: Listing, made: Mapping[str, Snapshot], kinds: Sequence[str]
    ) -> Listing:
        """Return `now` with the tables of these `kinds` as in the snapshots; raises OperatorError."""
        tables = dict(now.tables)
        for day, snapshot in made.items():
            found = snapshots.tables(self._backup.host, self._path(snapshot))
            tables.update({f"{PARTITIONS}/{day}/{kind}": found[kind] for kind in kinds})
        return replace(now, tables=tables)

    def _path(self, snapshot: Snapshot) -> str:
        return f"{self._backup.data_directory}/{snapshot.path}"

    def _is_there(self, day: str) -> bool:
        """Say whether `day` is there; if retention drops it, its snapshots go with it."""
        return self._backup.host.is_directory(f"{self._backup.data_directory}/{PARTITIONS}/{day}")

    def _require_there(self, made: Mapping[str, Snapshot]) -> None:
        """Raise OperatorError if a snapshot was deleted by somebody else."""
        for snapshot in made.values():
            if not self._backup.host.is_directory(self._path(snapshot)):
                raise OperatorError(
                    f"the snapshot {self._path(snapshot)} was deleted while it was copied",
                    hint="see -snapshotsMaxAge of VictoriaLogs, and who else deletes snapshots there",
                )
