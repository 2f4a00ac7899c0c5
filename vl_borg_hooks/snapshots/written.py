"""The proof that what VictoriaLogs has acknowledged is on its disk, while it takes more.

Rows wait for up to a second in a buffer, then in parts that are in memory only, until a timer or a
snapshot writes them. But both pass over a part that a merge holds at that moment (read in datadb.go of
v1.51.1), so neither a flush nor a wait nor a snapshot shows that all of them are written. What does:
after a flush no row is in the buffer that was acknowledged before it, and rows never go from the disk
back to memory. So if no part at all is in memory at any moment after a flush, everything that was
acknowledged before the flush is on the disk. `/metrics` tells how many rows are in parts in memory; a
partition that is asked later than another only makes its own moment later.

The same goes for the index, which has the streams: `/metrics` counts its parts, on the disk and in memory
together, and its lists of parts say how many are on the disk. As long as no stream is new, parts of the
index only become fewer. So if as many are on the disk as there were, all are.

Under ingestion such a moment is short. After a flush, new rows wait in a buffer for a second, unless that
gets full (some 2 MB). A snapshot of the days that change writes their parts. So after both of them such a
moment comes, mostly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.snapshots.ours import Ours
from vl_borg_hooks.victorialogs import changes, lock, stored
from vl_borg_hooks.victorialogs.changes import Listing
from vl_borg_hooks.victorialogs.http import Client, Flush, Metrics
from vl_borg_hooks.victorialogs.layout import INDEXDB
from vl_borg_hooks.victorialogs.snapshots import Snapshot

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
_ROWS_ON_DISK = (
    ("vl_storage_rows", 'type="storage/small"'),
    ("vl_storage_rows", 'type="storage/big"'),
)
_INDEX_PARTS = "vl_indexdb_parts"
_STREAMS = "vl_streams_created_total"
_STARTED = "vm_app_start_timestamp"


class NotWritten(OperatorError):
    """VictoriaLogs could not be shown to have written what it has acknowledged."""


@dataclass(frozen=True)
class Moment:
    """A moment at which all rows that were acknowledged before a flush were on the disk.

    `snapshots` were made immediately before it, `listing` is of after it. `has_index` says that all
    streams of both were on the disk too.
    """

    snapshots: Mapping[str, Snapshot]
    listing: Listing
    has_index: bool


@dataclass(frozen=True)
class _Look:
    """What was seen at one look, after VictoriaLogs was made to write what is in memory."""

    metrics: Metrics
    # What the data directory held just before `metrics` were asked for.
    before: Listing
    snapshots: Mapping[str, Snapshot]
    # How long all looks have taken so far, in words.
    so_far: str


class Written:
    """What VictoriaLogs on `target` has written, as its own metrics and lists of parts show."""

    def __init__(
        self,
        target: Target,
        client: Client,
        ours: Ours,
        read: Callable[[], Listing],
        flush: Flush | None,
    ) -> None:
        """`read` returns what the data directory holds of the partitions that are attached.

        `flush` is one that was made in this run; without it, it is made now. Raises OperatorError.
        """
        self._target, self._client, self._ours, self._read = target, client, ours, read
        self._flush = flush or begin(target, client)
        self._asked_at = self._flush.at
        before = self._flush.before
        # Raises if this is not a server that tells.
        self._started = before.number(_STARTED)
        self._streams = before.number(_STREAMS)
        self._is_idle = before.number(*_ROWS_IN_MEMORY) == 0
        before.number(_INDEX_PARTS)

    def wait_for_rows(self) -> Moment:
        """Wait until all rows that were acknowledged before the flush are on the disk.

        The snapshots of the moment that is returned are not deleted. Raises NotWritten, or OperatorError.
        """
        for look in self._looks("rows", first=not self._is_idle):
            if look.metrics.number(*_ROWS_IN_MEMORY) == 0:
                break
        now = self._read()
        self._target.reporter.say(f"all rows of before are on VictoriaLogs' disk: {look.so_far}")
        # A stream that is new since the flush may still be on its way to a part. Days that come and go
        # change how many there are too.
        is_same = look.metrics.number(_STREAMS) == self._streams and now.partitions == set(
            self._flush.days
        )
        has_index = is_same and _has_index(look, now) and self._has_same_rows(look.metrics)
        return Moment(look.snapshots, now, has_index)

    def wait_for_index(self) -> Listing:
        """Wait until the streams that are known now are on the disk.

        Returns a listing of the data directory that has them. Raises NotWritten, or OperatorError.
        """
        self._client.flush()
        before = self._read()
        self._asked_at = time.monotonic()
        # New streams are rare, mostly: then there is nothing to write.
        for look in self._looks("streams", first=False):
            # The first look is a second after this listing, so its metrics can't be of before it.
            look = look if look.snapshots else replace(look, before=before)
            if _has_index(look, self._read()) and (
                not look.snapshots or self._has_same_rows(look.metrics)
            ):
                break
        self._target.reporter.say(f"all streams of before are on VictoriaLogs' disk: {look.so_far}")
        return look.before

    def _has_same_rows(self, metrics: Metrics) -> bool:
        """Say whether the rows on the disk are now as many as they were when `metrics` were new.

        Then no row has been written since, so nothing that was just copied is newer than `metrics`: if
        somebody else asks for them too, ours may be a second old.
        """
        host, directory = self._target.host, self._target.data_directory
        attached = self._client.attached_days()
        rows = stored.rows_by_day(host, directory)
        return sum(metrics.number(*kind) for kind in _ROWS_ON_DISK) == sum(
            rows[day] for day in rows if day in attached
        )

    def _require_same_server(self, metrics: Metrics) -> None:
        """Raise OperatorError if VictoriaLogs was restarted: what it had in memory may be lost."""
        # The time of its start is in whole seconds, and it may have been started just before us.
        process = lock.holder(self._target.host, self._target.data_directory)
        if metrics.number(_STARTED) != self._started or process != self._flush.process:
            raise OperatorError(
                "VictoriaLogs was restarted during the backup, so what it had in memory may be lost",
                hint="run it again",
            )

    def _looks(self, what: str, *, first: bool) -> Iterator[_Look]:
        """Yield what is seen after VictoriaLogs was made to write what is in memory, once a second.

        Without `first`, it is looked once before that. Raises NotWritten after a minute, OperatorError
        if VictoriaLogs was restarted: what it had in memory may be lost.
        """
        started = time.monotonic()
        made = tries = 0
        while True:
            tries += 1
            time.sleep(max(self._asked_at + CACHED_SECONDS - time.monotonic(), 0))
            before = self._read()
            written: Mapping[str, Snapshot] = {}
            # The second time writes what a merge has held at the first.
            times = 2 if tries > 1 else int(first)
            if times:
                # So that nothing comes to the parts in memory until the metrics are asked for.
                self._client.flush()
            for _ in range(times):
                written = self._ours.begin(_days(before, every=tries % ALL_DAYS_EACH == 0))
                made += len(written)
            if what == "streams":
                before = self._read()
            self._asked_at = time.monotonic()
            metrics = self._client.metrics()
            self._require_same_server(metrics)
            seconds = time.monotonic() - started
            so_far = f"seen after {seconds:.2f} s, with {made} short snapshots"
            yield _Look(metrics, before, written, so_far)
            self._ours.delete_all()
            if seconds > LONGEST_SECONDS:
                raise NotWritten(
                    f"in {seconds:.0f} s there was no moment at which VictoriaLogs had all {what} on "
                    "its disk: it takes in too much to show that nothing is missing",
                    hint="run it when less comes in, or set consistency: stop or auto",
                )


def begin(target: Target, client: Client) -> Flush:
    """Let the server gather what it has in its buffers: a proof is about all until then.

    Raises OperatorError.
    """
    process = lock.holder(target.host, target.data_directory)
    before, days = client.metrics(), client.attached_days()
    client.flush()
    return Flush(time.monotonic(), before, days, process)


def _days(now: Listing, *, every: bool) -> list[str]:
    """Return the days of `now` that may have something in memory; all of them with `every`."""
    return (
        sorted(now.partitions) if every else changes.recent(now, RECENT_SECONDS, MOST_RECENT_DAYS)
    )


def _has_index(look: _Look, after: Listing) -> bool:
    """Say whether all parts of the index were on the disk at a look: not one in memory only."""
    on_disk = _index(look.before)
    parts = sum(map(len, on_disk.values()))
    return look.metrics.number(_INDEX_PARTS) == parts and _index(after) == on_disk


def _index(listing: Listing) -> dict[str, tuple[str, ...]]:
    """Return the parts of the index on the disk, by table."""
    return {
        path: table.parts for path, table in listing.tables.items() if path.endswith(f"/{INDEXDB}")
    }
