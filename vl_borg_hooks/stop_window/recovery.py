"""Recovery: bring VictoriaLogs and its data back to the state that a killed run found."""

from __future__ import annotations

import time
from dataclasses import replace

from vl_borg_hooks.errors import OperatorError, unexpected
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.records import Expected, Journal
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.stop_window import beforehand, proof, window
from vl_borg_hooks.stop_window.found import DOWN
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.victorialogs import lock, stored
from vl_borg_hooks.victorialogs.swap import INCOMING, RESTORED, Swap, holds_data


def recover(hooks: Hooks, target: Target, *, undo: bool = False) -> bool:
    """Bring VictoriaLogs back to the state that a killed run found; return whether there was one.

    Data that a restore has put in place stays, if VictoriaLogs is healthy on it and the proof can be
    made up for; with `undo`, it never stays. The caller holds the run lock, so the run that wrote
    the journal has ended, or is the caller's.
    """
    journal = target.records.journal()
    if journal is None:
        Swap(target.host, target.data_directory).discard_leftovers()
        return False
    # What is owed: a failure from here on tells if VictoriaLogs is down.
    target.found = ServiceState.RUNNING if journal.found_running else ServiceState.STOPPED
    target.detached = journal.detached
    how = "has failed" if undo else "was cut short"
    target.reporter.warn(f"a {journal.command} {how}: bringing VictoriaLogs back")
    if journal.replaced is not None:
        if not undo and _is_proved(hooks, target, journal):
            target.reporter.result("the restored data is served and stays")
            target.host.sync(target.data_directory)
            _note_settled(target, journal)
        else:
            _undo(target, journal)
        journal = replace(journal, replaced=None)
    if journal.found_running:
        window.bring_back(hooks, target)
    else:
        window.stop_again(target)
    settle(target, journal)
    window.clear_journal(target)
    state = ServiceState.RUNNING if journal.found_running else ServiceState.STOPPED
    target.reporter.result(f"VictoriaLogs is {state.value} again, as it was found")
    return True


def settle(target: Target, journal: Journal) -> None:
    """Keep the data that a restore has replaced, and data that was served, and remove the rest.

    To be called when the restore was proved or undone.
    """
    host, swap = target.host, swap_of(target, journal)
    if holds_data(host, swap.replaced) and not journal.discard:
        _tell_kept(target, swap.keep(swap.replaced), "the data that was replaced")
    if journal.expected and _has_taken_rows(host, swap.incoming, journal.expected):
        path = swap.keep(swap.incoming, RESTORED)
        _tell_kept(target, path, "the restored data, which has taken new rows,")
    swap.clean_up()
    if journal.expected:
        host.sync(target.data_directory)


def swap_of(target: Target, journal: Journal) -> Swap:
    """Return the swap that `journal` tells of."""
    return Swap(
        target.host, target.data_directory, journal.replaced or (), journal.source or INCOMING
    )


def _is_proved(hooks: Hooks, target: Target, journal: Journal) -> bool:
    """Say whether VictoriaLogs runs on all of what was put in place, and serves it."""
    if journal.expected is None or not swap_of(target, journal).is_done:
        return False
    if not lock.is_held(target.host, target.data_directory):
        return False
    deadline = time.monotonic() + target.instance.start_timeout
    if not window.becomes_healthy(hooks, target, deadline, []):
        return False
    try:
        beforehand.require_url(target)
        proof.prove(target, journal.expected)
    except OperatorError as error:
        target.reporter.warn(f"the restored data is not what is served: {error}")
        return False
    return True


def _undo(target: Target, journal: Journal) -> None:
    """Bring back what was there before the restore, with VictoriaLogs stopped."""
    window.stop_again(target)
    with window.locked(target):
        try:
            undo_locked(target, journal)
        except Exception as error:
            raise _not_undone(error, target, journal) from error


def undo_locked(target: Target, journal: Journal) -> None:
    """Bring back what was there before the restore; the caller holds the lock."""
    for path in swap_of(target, journal).undo():
        _tell_kept(target, path, "the data that was served in between, with the rows it has taken,")
    _note_settled(target, journal)


def _note_settled(target: Target, journal: Journal) -> None:
    """Note that the data stays as it is.

    A second undo would remove what a server makes from here on, as if the restore had made it.
    """
    try:
        target.records.note(replace(journal, replaced=None))
    except OperatorError as error:
        # A full disk takes no new file, but it can always let go of one.
        target.reporter.warn(f"going on without a journal: {error}")
        target.records.clear_journal()


def _not_undone(error: Exception, target: Target, journal: Journal) -> OperatorError:
    """Return the failure of an undo: a server that starts now could start on half of the data."""
    failure = error if isinstance(error, OperatorError) else unexpected(error)
    failure.what = (
        f"the data that a {journal.command} replaced could not be brought back: {failure.what}"
    )
    state = DOWN if journal.found_running else "VictoriaLogs is stopped"
    failure.victorialogs = (
        f"{state}, and must not be started on this data; what was there before is in "
        f"{swap_of(target, journal).replaced}, or in its place"
    )
    failure.hint = f"{failure.hint or 'correct that'}, then run: vl-borg-hooks recover"
    return failure


def _has_taken_rows(host: Host, directory: str, expected: Expected) -> bool:
    """Say whether data that was `expected` when it was put in place may have taken rows since."""
    if not holds_data(host, directory):
        return False
    try:
        rows = stored.rows_by_day(host, directory)
    except OperatorError:
        return True
    if expected.deletions:
        return rows != expected.rows
    return any(count > expected.rows.get(day, 0) for day, count in rows.items())


def _tell_kept(target: Target, path: str, what: str) -> None:
    target.reporter.warn(
        f"{what} is kept in {path}; to return to it: vl-borg-hooks restore --rollback; to remove "
        "it: vl-borg-hooks restore --discard-replaced"
    )
