"""Recovery: bring VictoriaLogs and its data back to the state that a killed run found."""

from __future__ import annotations

from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.records import Journal
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.stop_window import window
from vl_borg_hooks.victorialogs.swap import Swap


def recover(hooks: Hooks, target: Target) -> bool:
    """Bring VictoriaLogs back to the state that a killed run found; return whether there was one.

    The caller holds the run lock, so the run that wrote the journal has ended, or is the caller's.
    """
    journal = target.records.journal()
    if journal is None:
        Swap(target.host, target.data_directory).discard_leftovers()
        return False
    swap = Swap(target.host, target.data_directory, journal.replaced or ())
    target.detached = journal.detached
    target.reporter.warn(f"a {journal.command} was cut short: bringing VictoriaLogs back")
    if journal.replaced is not None:
        window.stop_again(target)
        with window.locked(target):
            swap.undo()
            # The undo is complete. A second one would remove what a server makes from here on, as if
            # the restore had made it.
            target.records.note(Journal(journal.command, journal.found_running))
    if journal.found_running:
        window.bring_back(hooks, target)
    else:
        window.stop_again(target)
    swap.clean_up()
    window.clear_journal(target)
    state = ServiceState.RUNNING if journal.found_running else ServiceState.STOPPED
    target.reporter.say(f"VictoriaLogs is {state.value} again, as it was found")
    return True
