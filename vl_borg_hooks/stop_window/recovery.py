"""Recovery: bring VictoriaLogs and its data back to the state that a killed run found."""

from __future__ import annotations

from vl_borg_hooks.errors import OperatorError, unexpected
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.records import Journal
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.stop_window import window
from vl_borg_hooks.stop_window.found import DOWN
from vl_borg_hooks.victorialogs.swap import Swap


def recover(hooks: Hooks, target: Target) -> bool:
    """Bring VictoriaLogs back to the state that a killed run found; return whether there was one.

    The caller holds the run lock, so the run that wrote the journal has ended, or is the caller's.
    """
    journal = target.records.journal()
    if journal is None:
        Swap(target.host, target.data_directory).discard_leftovers()
        return False
    # What is owed: a failure from here on tells if VictoriaLogs is down.
    target.found = ServiceState.RUNNING if journal.found_running else ServiceState.STOPPED
    swap = Swap(target.host, target.data_directory, journal.replaced or ())
    target.detached = journal.detached
    target.reporter.warn(f"a {journal.command} was cut short: bringing VictoriaLogs back")
    if journal.replaced is not None:
        window.stop_again(target)
        with window.locked(target):
            try:
                swap.undo()
            except Exception as error:
                raise _not_undone(error, journal) from error
            _note_undone(target, journal)
    if journal.found_running:
        window.bring_back(hooks, target)
    else:
        window.stop_again(target)
    swap.clean_up()
    window.clear_journal(target)
    state = ServiceState.RUNNING if journal.found_running else ServiceState.STOPPED
    target.reporter.say(f"VictoriaLogs is {state.value} again, as it was found")
    return True


def _note_undone(target: Target, journal: Journal) -> None:
    """Note that the undo is complete.

    A second one would remove what a server makes from here on, as if the restore had made it.
    """
    try:
        target.records.note(Journal(journal.command, journal.found_running))
    except OperatorError as error:
        # A full disk takes no new file, but it can always let go of one.
        target.reporter.warn(f"going on without a journal: {error}")
        target.records.clear_journal()


def _not_undone(error: Exception, journal: Journal) -> OperatorError:
    """Return the failure of an undo: a server that starts now could start on half of the data."""
    failure = error if isinstance(error, OperatorError) else unexpected(error)
    failure.what = (
        f"the data that a {journal.command} replaced could not be brought back: {failure.what}"
    )
    state = DOWN if journal.found_running else "VictoriaLogs is stopped"
    failure.victorialogs = f"{state}, and must not be started on this data"
    failure.hint = f"{failure.hint or 'correct that'}, then run: vl-borg-hooks recover"
    return failure
