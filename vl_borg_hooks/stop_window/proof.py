"""The proof of a restore: VictoriaLogs serves what was put in place, except what it deletes itself."""

from __future__ import annotations

import time

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.runs.records import Expected
from vl_borg_hooks.transfer.progress import human_bytes
from vl_borg_hooks.victorialogs import limits, lock, stored
from vl_borg_hooks.victorialogs.http import Client
from vl_borg_hooks.victorialogs.limits import Limits

# How long VictoriaLogs may take to delete a day that is too old, of which it has begun to delete files.
DELETION_SECONDS = 10
POLL_SECONDS = 0.05


def prove(target: Target, expected: Expected) -> None:
    """Prove that VictoriaLogs, which was started, serves `expected`; raises OperatorError if not.

    There may be more: clients write again as soon as it serves. Its limits are asked of the server
    that was started. Without a `url`, or if it does not tell them, the metadata on the disk is the
    proof.
    """
    _refuse_other_data(target)
    client = target.client
    found = _limits(target, client) if client else None
    if client and found:
        _prove_served(target, client, found, expected)
    else:
        _prove_on_disk(target, expected)


def dropped_by(found: Limits, expected: Expected) -> str:
    """Return what of `expected` a server with these limits deletes, in words; empty if nothing.

    Raises OperatorError if that is all of it.
    """
    rows = expected.rows
    too_old = found.too_old(rows)
    said = []
    if too_old:
        count = sum(rows[day] for day in too_old)
        days = f"{len(too_old)} of {len(rows)} partitions ({count} rows)"
        if len(too_old) == len(rows):
            raise OperatorError(
                f"VictoriaLogs would delete all of the copy immediately: {days} are not from "
                f"{found.days.oldest} to {found.days.newest}, which its -retentionPeriod and "
                "-futureRetention keep",
                hint="start VictoriaLogs with a longer -retentionPeriod first",
            )
        said.append(
            f"{days} are past -retentionPeriod or -futureRetention: VictoriaLogs will delete them"
        )
    if found.bytes and expected.bytes > found.bytes:
        said.append(
            f"the copy has {human_bytes(expected.bytes)}, but VictoriaLogs keeps "
            f"{human_bytes(found.bytes)} (-retention.maxDiskSpaceUsageBytes, "
            "-retention.maxDiskUsagePercent): it will drop the oldest days"
        )
    return "; ".join(said)


def _refuse_other_data(target: Target) -> None:
    if not lock.is_held(target.host, target.data_directory):
        raise OperatorError(
            f"{target.service.description} runs, but not on {target.instance.data_path}",
            hint="check that data_path is what its -storageDataPath says",
        )


def _limits(target: Target, client: Client) -> Limits | None:
    """Return the limits of the server that was started; None if it does not tell them."""
    try:
        return limits.read(client, target.host, target.data_directory)
    except OperatorError as error:
        target.reporter.warn(f"what VictoriaLogs keeps is not known: {error}")
        return None


def _prove_served(target: Target, client: Client, found: Limits, expected: Expected) -> None:
    dropped = dropped_by(found, expected)
    needed = sum(found.kept(expected.rows, expected.bytes).values())
    served = client.stored_rows()
    if served < needed and not expected.deletions:
        raise OperatorError(
            f"VictoriaLogs serves {served:,} rows of the {needed:,} in the copy",
            hint="see its log",
        )
    if dropped:
        target.reporter.warn(dropped)
    _say_deletions(target, expected)
    target.reporter.result(f"VictoriaLogs serves {served:,} rows, {needed:,} of them expected")


def _prove_on_disk(target: Target, expected: Expected) -> None:
    """Count what is on the disk. The oldest days may be missing: a retention is not known."""
    if not expected.rows:
        return
    there = _settled(target, expected)
    # A server that could not use the data has ended by now, after it had the lock for a moment.
    _refuse_other_data(target)
    days = sorted(expected.rows)
    dropped = next((n for n, day in enumerate(days) if day in there), len(days))
    for day in days[dropped:]:
        if there.get(day, 0) < expected.rows[day] and not expected.deletions:
            raise OperatorError(
                f"VictoriaLogs has {there.get(day, 0)} rows of the {expected.rows[day]} of {day}",
                hint="see its log",
            )
    if dropped == len(days):
        raise OperatorError(
            "VictoriaLogs has deleted all of the copy",
            hint="start it with a longer -retentionPeriod",
        )
    if dropped:
        target.reporter.warn(
            f"VictoriaLogs has deleted {dropped} of {len(days)} partitions, the oldest: see its "
            "-retentionPeriod"
        )
    _say_deletions(target, expected)
    target.reporter.result(
        f"VictoriaLogs has {sum(there.values()):,} rows on its disk, "
        f"{sum(expected.rows[day] for day in days[dropped:]):,} of them expected"
    )


def _settled(target: Target, expected: Expected) -> dict[str, int]:
    """Return the rows on the disk, when no day of `expected` is incomplete, or not any more soon.

    A day that VictoriaLogs deletes as too old loses its files one after another.
    """
    deadline = time.monotonic() + DELETION_SECONDS
    while True:
        last = time.monotonic() >= deadline
        try:
            there = stored.rows_by_day(target.host, target.data_directory)
        except OperatorError:
            if last:
                raise
        else:
            complete = all(
                there[day] >= expected.rows[day] for day in there if day in expected.rows
            )
            if complete or expected.deletions or last:
                return there
        time.sleep(POLL_SECONDS)


def _say_deletions(target: Target, expected: Expected) -> None:
    if expected.deletions:
        target.reporter.warn(
            "the copy has deletions that were not finished: VictoriaLogs finishes them now, so it "
            "may serve fewer rows than the copy has"
        )
