"""How a backup makes its copy with `consistency: snapshot`: VictoriaLogs keeps serving.

Warm passes come first, as with a stop. Then what was acknowledged before is proved to be on
VictoriaLogs' disk. Only the days that have changed since the warm passes are copied from snapshots; all
others are in the copy already.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Backup, Copied
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.snapshots.ours import Ours
from vl_borg_hooks.snapshots.written import NotWritten, Written
from vl_borg_hooks.steps.passes import Passes
from vl_borg_hooks.stop_window.window import refuse_second_stop
from vl_borg_hooks.system import signals
from vl_borg_hooks.transfer import PassResult
from vl_borg_hooks.victorialogs import changes, snapshots, stored
from vl_borg_hooks.victorialogs.changes import Listing
from vl_borg_hooks.victorialogs.http import Client
from vl_borg_hooks.victorialogs.layout import DATADB, INDEXDB, PARTITIONS
from vl_borg_hooks.victorialogs.snapshots import Snapshot


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
        self._ours = Ours(backup, client)
        present = set(stored.days(backup.host, backup.data_directory))
        detached = sorted(present - client.attached_days())
        self._passes = Passes(backup, without=detached)
        self._written = Written(backup, client, self._ours, self._passes.read)
        if detached:
            backup.reporter.warn(
                f"these days are detached, so they are not copied: {', '.join(detached)}"
            )

    def copy(self) -> Copied:
        """Make the copy; all snapshots are deleted when this returns or raises."""
        # What is acknowledged until here is what the copy is proved to have.
        self._written.flush()
        self._passes.look_at_copy()
        warm = self._passes.warm_up()
        try:
            self._written.wait_for_rows()
            rows = self._copy_rows()
            streams = self._copy_index()
            self._written.require_same_server()
        finally:
            with signals.held_back():
                self._ours.delete_all()
        final = streams.after(rows)
        self._backup.reporter.say(f"final pass, from snapshots: {final}")
        return self._passes.copied(warm, final, "snapshot")

    def _copy_rows(self) -> PassResult:
        """Copy the days that have changed, from a snapshot of each."""
        now = self._passes.read()
        days = changes.changed(self._passes.listing or changes.NOTHING, now)
        return self._copy(days, now, (DATADB, INDEXDB))

    def _copy_index(self) -> PassResult:
        """Copy the index once more where it has changed: a row must not come without its stream.

        In a snapshot the index is older than the rows, and what a merge holds in memory is not in it.
        """
        copied = self._passes.listing or changes.NOTHING
        self._written.flush()
        now = self._written.wait_for_index()
        is_index = re.compile(rf"{PARTITIONS}/(.*)/{INDEXDB}")
        behind = [
            found[1]
            for path, table in copied.tables.items()
            if (found := is_index.fullmatch(path))
            and path in now.tables
            and now.tables[path].parts != table.parts
        ]
        return self._copy(behind, copied, (INDEXDB,))

    def _copy(self, days: Sequence[str], now: Listing, kinds: Sequence[str]) -> PassResult:
        """Make the copy one of `now`, but with the tables of these `kinds` as in snapshots of `days`.

        A day that is not attached any more, and is gone, is left out.
        """
        made = self._ours.make(days)
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

    def _without(self, now: Listing, days: Sequence[str]) -> Listing:
        for day in days:
            self._backup.reporter.warn(
                f"{day} was dropped or detached meanwhile, so it is not in the copy"
            )
        return changes.without(now, days)

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
