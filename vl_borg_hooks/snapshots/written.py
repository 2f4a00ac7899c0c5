"""The proof that what VictoriaLogs has acknowledged is on its disk, while it takes more.

Rows wait for up to a second in a buffer, then in parts that are in memory only, until a timer or a
snapshot writes them. But both pass over a part that a merge holds at that moment (read in datadb.go of
v1.51.1), so neither a flush nor a wait nor a snapshot shows that all of them are written. What does:
after a flush no row is in the buffer that was acknowledged before it, and rows never go from the disk
back to memory. So if no part at all is in memory at any moment after a flush, everything that was
acknowledged before the flush is on the disk. `/metrics` tells how many rows are in parts in memory; a
partition that is asked later than another only makes its own moment later.

The same goes for the index, which has the streams: `/metrics` counts its parts, on the disk and in memory
together, and its lists of parts say how many are on the disk.

Under ingestion such a moment is short. A snapshot of the days that change writes their parts, so it
comes immediately after one, mostly.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.snapshots.ours import Ours
from vl_borg_hooks.victorialogs import changes, lock
from vl_borg_hooks.victorialogs.changes import NOTHING, Listing
from vl_borg_hooks.victorialogs.http import Client, Metrics
from vl_borg_hooks.victorialogs.layout import INDEXDB

# The server answers with the same metrics for a second (lib/appmetrics of VictoriaMetrics).
CACHED_SECONDS = 1.02
# How long such a moment is waited for.
LONGEST_SECONDS = 60
# A day that takes rows writes a part in a few seconds, mostly.
RECENT_SECONDS = 60
MOST_RECENT_DAYS = 10
# At each so many tries, all days are made to write what is in memory: a day that has not changed on the
# disk yet can have rows there too.
ALL_DAYS_EACH = 4
_ROWS_IN_MEMORY = ("vl_storage_rows", 'type="storage/inmemory"')
_INDEX_PARTS = "vl_indexdb_parts"
_STARTED = "vm_app_start_timestamp"


class NotWritten(OperatorError):
    """VictoriaLogs could not be shown to have written what it has acknowledged."""


class Written:
    """What VictoriaLogs on `target` has written, as its own metrics and lists of parts show."""

    def __init__(
        self, target: Target, client: Client, ours: Ours, read: Callable[[], Listing]
    ) -> None:
        """`read` returns what the data directory holds of the partitions that are attached."""
        self._target = target
        self._read = read
        self._client = client
        self._ours = ours
        self._asked_at = time.monotonic()
        metrics = client.metrics()
        # Raises if this is not a server that tells.
        self._is_idle = metrics.number(*_ROWS_IN_MEMORY) == 0
        metrics.number(_INDEX_PARTS)
        self._started = metrics.number(_STARTED)
        self._process = lock.holder(target.host, target.data_directory)

    def flush(self) -> None:
        """Let the server gather what it has in its buffers: what follows is about all until now."""
        self._client.flush()
        self._asked_at = time.monotonic()

    def wait_for_rows(self) -> None:
        """Wait until all rows that were acknowledged before the last flush are on the disk.

        Raises NotWritten, or OperatorError.
        """
        self._wait(
            lambda metrics, _: metrics.number(*_ROWS_IN_MEMORY) == 0,
            "rows",
            first=not self._is_idle,
        )

    def wait_for_index(self) -> Listing:
        """Wait until the streams that were known at the last flush are on the disk.

        Returns a listing of the data directory that has them. Raises NotWritten, or OperatorError.
        """
        # New streams are rare, mostly: then there is nothing to write.
        return self._wait(self._has_index, "streams", first=False)

    def _has_index(self, metrics: Metrics, before: Listing) -> bool:
        """Say whether all of the index was on the disk when `metrics` were read, after `before`."""
        on_disk = _index(before)
        parts = sum(map(len, on_disk.values()))
        return metrics.number(_INDEX_PARTS) == parts and _index(self._read()) == on_disk

    def require_same_server(self, metrics: Metrics | None = None) -> None:
        """Raise OperatorError if VictoriaLogs was restarted: what it had in memory may be lost."""
        is_same = (metrics or self._client.metrics()).number(_STARTED) == self._started
        if is_same and metrics is None:
            # It tells whole seconds only, and it may have started just before us.
            is_same = lock.holder(self._target.host, self._target.data_directory) == self._process
        if not is_same:
            raise OperatorError(
                "VictoriaLogs was restarted during the backup, so what it had in memory may be lost",
                hint="run it again",
            )

    def _wait(
        self, holds: Callable[[Metrics, Listing], bool], what: str, *, first: bool
    ) -> Listing:
        """Make VictoriaLogs write what is in memory until `holds`; return the listing of before that.

        Without `first`, it is looked once before that.
        """
        started = time.monotonic()
        made = tries = 0
        while True:
            tries += 1
            self._wait_for_new_metrics()
            # The second one writes what a merge has held at the time of the first.
            times = 2 if tries > 1 else int(first)
            days = self._days(every=tries % ALL_DAYS_EACH == 0) if times else []
            try:
                for _ in range(times):
                    made += len(self._ours.begin(days))
                before = self._read() if what == "streams" else NOTHING
                self._asked_at = time.monotonic()
                metrics = self._client.metrics()
                is_so = holds(metrics, before)
            finally:
                self._ours.delete_all()
            self.require_same_server(metrics)
            seconds = time.monotonic() - started
            if is_so:
                self._target.reporter.say(
                    f"all {what} of before are on VictoriaLogs' disk: seen after {seconds:.2f} s, with "
                    f"{made} short snapshots"
                )
                return before
            if seconds > LONGEST_SECONDS:
                raise NotWritten(
                    f"in {seconds:.0f} s there was no moment at which VictoriaLogs had all {what} on "
                    "its disk: it takes in too much to show that nothing is missing",
                    hint="run it when less comes in, or set consistency: stop or auto",
                )

    def _days(self, *, every: bool) -> list[str]:
        """Return the days that may have something in memory; all of them with `every`."""
        now = self._read()
        if every:
            return sorted(now.partitions)
        return changes.recent(now, RECENT_SECONDS, MOST_RECENT_DAYS)

    def _wait_for_new_metrics(self) -> None:
        time.sleep(max(self._asked_at + CACHED_SECONDS - time.monotonic(), 0))


def _index(listing: Listing) -> dict[str, tuple[str, ...]]:
    """Return the parts of the index on the disk, by table."""
    return {
        path: table.parts for path, table in listing.tables.items() if path.endswith(f"/{INDEXDB}")
    }
