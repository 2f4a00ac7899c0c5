"""How a restore puts its copy in place: all of the data is replaced, or all of it stays."""

from __future__ import annotations

from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Restore
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.records import Journal
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.staging.verify import differences
from vl_borg_hooks.staging.walk import walk
from vl_borg_hooks.stop_window import guard, window
from vl_borg_hooks.stop_window.found import describe_state
from vl_borg_hooks.stop_window.recovery import recover
from vl_borg_hooks.system import signals
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import PassResult, rsync
from vl_borg_hooks.victorialogs import lock
from vl_borg_hooks.victorialogs.layout import NOT_COPIED
from vl_borg_hooks.victorialogs.swap import Swap, present, refuse_planted


@hookimpl
def put_in_place(restore: Restore, hooks: Hooks) -> PassResult:
    """Put the copy beside the data, exchange the two in a stop window, and prove the result."""
    window.refuse_second_stop(restore, "put_in_place")
    refuse_planted(restore.host, restore.data_directory)
    swap = Swap(restore.host, restore.data_directory)
    swap.discard_leftovers()
    try:
        placed = _place(restore, swap.incoming)
        _check_placed(restore, swap.incoming)
        # On the disk before VictoriaLogs stops: the data that it replaces is removed in the end.
        restore.host.sync(swap.incoming)
        _exchange(hooks, restore)
        return placed
    finally:
        if restore.records.journal() is None:
            swap.discard_leftovers()


@hookimpl
def prove_restore(restore: Restore) -> None:
    """Count the rows through the server; raises OperatorError if some are missing.

    There may be more than in the copy: clients write again as soon as it serves.
    """
    if not lock.is_held(restore.host, restore.data_directory):
        raise OperatorError(
            f"{restore.service.description} runs, but not on {restore.instance.data_path}",
            hint="check that data_path is what its -storageDataPath says",
        )
    if restore.client is None:
        restore.reporter.warn("healthy; without url: in the config its rows can't be counted")
        return
    expected = restore.expected_rows
    served = restore.client.stored_rows()
    if served < expected:
        raise OperatorError(
            f"VictoriaLogs serves {served} rows of the {expected} in the copy",
            hint="see its log, and check that its -retentionPeriod is longer than the age of the copy",
        )
    restore.reporter.say(f"VictoriaLogs serves {served} rows, {expected} of them expected")


def _place(restore: Restore, incoming: str) -> PassResult:
    """Copy the verified copy to `incoming`, from where a rename can put it in place."""
    host, owner = restore.host, restore.owner
    if host.owner(restore.data_directory) is None:
        host.make_directory(restore.data_directory, 0o755)
        if owner:
            host.set_owner(restore.data_directory, owner)
    lock.ensure_file(host, restore.data_directory)
    host.make_directory(incoming, 0o755)
    result = _copy(restore, incoming)
    if owner:
        host.set_owner(incoming, owner)
    return result


def _copy(restore: Restore, incoming: str, *, checksum: bool = False) -> PassResult:
    """Make `incoming` equal to the copy; with `checksum`, by content."""
    return rsync.copy(
        (LocalHost(), str(restore.copy.data)),
        (restore.host, incoming),
        name="restore pass",
        reporter=restore.reporter,
        exclude=NOT_COPIED,
        checksum=checksum,
        owner=str(restore.owner) if restore.owner else "",
    )


def _check_placed(restore: Restore, placed: str) -> None:
    """Read what is in `placed`, and raise InvalidCopy if it is not what was backed up."""
    incoming = restore.host.local_path(placed)
    if incoming is None:
        # There, rsync reads it. The copy here was read when it was verified.
        if _copy(restore, placed, checksum=True).files:
            raise InvalidCopy(f"the copy changed while it was restored: {restore.copy.path}")
        return
    inventory = restore.copy.read_inventory(restore.manifest.inventory_sha256)
    for problem in differences(incoming, walk(incoming), inventory):
        raise InvalidCopy(
            f"what was placed is not what was backed up: {problem}",
            hint=f"run: vl-borg-hooks verify {restore.copy.path}",
        )


def _exchange(hooks: Hooks, restore: Restore) -> None:
    """Put the copy in place and prove that VictoriaLogs serves it, or bring back what was there."""
    found_running = restore.found is ServiceState.RUNNING
    try:
        if found_running:
            with window.stop_window(hooks, restore, settle=False):
                _swap(restore)
        else:
            guard.arm(restore)
            with lock.hold(restore.host, restore.data_directory):
                _swap(restore)
            window.bring_back(hooks, restore)
        hooks.prove_restore(restore)
    except BaseException as error:
        with signals.held_back():
            undone = recover(hooks, restore)
        failure = error.error if isinstance(error, signals.Interrupted) else error
        if undone and isinstance(failure, OperatorError):
            failure.victorialogs = f"{describe_state(restore)}, on the data that was there before"
        raise
    restore.host.sync(restore.data_directory)
    # From here on the restored data stays, whatever happens.
    restore.records.note(Journal(restore.command, found_running or restore.start_if_stopped))
    if not found_running and not restore.start_if_stopped:
        window.stop_again(restore)
        restore.reporter.say(
            f"stopped, as it was found; to start: {restore.service.start_command()}"
        )
    Swap(restore.host, restore.data_directory).clean_up()
    restore.records.clear_journal()


def _swap(restore: Restore) -> None:
    """Put the copy in place of what is there; listed only now, because a stop may write files."""
    replaced = present(restore.host, restore.data_directory)
    found_running = restore.found is ServiceState.RUNNING
    restore.records.note(Journal(restore.command, found_running, replaced))
    Swap(restore.host, restore.data_directory, replaced).do()
