"""How a restore puts its copy in place: all of the data is replaced, or all of it stays."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.context import Restore, Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.records import Expected, Journal
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.staging.verify import differences
from vl_borg_hooks.staging.walk import walk
from vl_borg_hooks.stop_window import beforehand, guard, proof, window
from vl_borg_hooks.stop_window.found import describe_state
from vl_borg_hooks.stop_window.recovery import recover, settle, swap_of, undo_locked
from vl_borg_hooks.system import signals
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import PassResult, rsync
from vl_borg_hooks.victorialogs import lock
from vl_borg_hooks.victorialogs.layout import NOT_COPIED
from vl_borg_hooks.victorialogs.swap import INCOMING, Swap, present, refuse_planted


@dataclass(frozen=True)
class Exchange:
    """What is put in the place of the data of `target`, by its name in our working directory.

    `expected` and `prove` say when it is served. `start_if_stopped` leaves a VictoriaLogs that was
    found stopped running; `discard` removes what was replaced after the proof.
    """

    target: Target
    source: str
    expected: Expected
    prove: Callable[[], None]
    start_if_stopped: bool
    discard: bool

    def journal(self, replaced: list[str] | None, *, running: bool) -> Journal:
        """Return the journal of this exchange."""
        return Journal(
            self.target.command,
            running,
            replaced,
            source=self.source,
            expected=self.expected,
            discard=self.discard,
        )


@hookimpl
def put_in_place(restore: Restore, hooks: Hooks) -> PassResult:
    """Put the copy beside the data, exchange the two in a stop window, and prove the result."""
    window.refuse_second_stop(restore, "put_in_place")
    refuse_planted(restore.host, restore.data_directory)
    swap = Swap(restore.host, restore.data_directory)
    swap.discard_leftovers()
    try:
        placed = _place(restore, swap.incoming)
        restore.reporter.say(f"restore pass: {placed}")
        started = time.monotonic()
        check_placed(restore, swap.incoming)
        restore.reporter.say(f"what was placed was checked in {time.monotonic() - started:.2f} s")
        # On the disk before VictoriaLogs stops: the data that it replaces may be removed in the end.
        restore.host.sync(swap.incoming)
        exchange(
            hooks,
            Exchange(
                target=restore,
                source=INCOMING,
                expected=restore.expected,
                prove=lambda: hooks.prove_restore(restore),
                start_if_stopped=restore.start_if_stopped,
                discard=restore.discard_replaced,
            ),
        )
        return placed
    finally:
        if restore.records.journal() is None:
            swap.discard_leftovers()


@hookimpl
def prove_restore(restore: Restore) -> None:
    """Prove that VictoriaLogs serves the rows of the copy; raises OperatorError if it does not."""
    proof.prove(restore, restore.expected)


def _place(restore: Restore, incoming: str) -> PassResult:
    """Copy the verified copy to `incoming`, from where a rename can put it in place."""
    host, owner = restore.host, restore.owner
    if host.owner(restore.data_directory) is None:
        host.make_directory(restore.data_directory, 0o755)
        if owner:
            host.set_owner(restore.data_directory, owner)
    lock.ensure_file(host, restore.data_directory)
    host.make_directory(incoming, 0o755)
    result = copy_to(restore, incoming)
    if owner:
        host.set_owner(incoming, owner)
    return result


def copy_to(restore: Restore, incoming: str, *, checksum: bool = False) -> PassResult:
    """Make `incoming` equal to the copy; with `checksum`, by content."""
    return rsync.copy(
        (LocalHost(), str(restore.copy.data)),
        (restore.host, incoming),
        name="restore pass",
        reporter=restore.reporter,
        exclude=NOT_COPIED,
        checksum=checksum,
        all_new=not checksum,
        owner=str(restore.owner) if restore.owner else "",
    )


def check_placed(restore: Restore, placed: str) -> None:
    """Read what is in `placed`, and raise InvalidCopy if it is not what was backed up."""
    incoming = restore.host.local_path(placed)
    if incoming is None:
        # There, rsync reads it. The copy here was read when it was verified.
        if copy_to(restore, placed, checksum=True).files:
            raise InvalidCopy(f"the copy changed while it was restored: {restore.copy.path}")
        return
    inventory = restore.copy.read_inventory(restore.manifest.inventory_sha256)
    with restore.reporter.counting("what was placed", "checked", restore.manifest.bytes) as on_read:
        for problem in differences(incoming, walk(incoming), inventory, on_read=on_read):
            raise InvalidCopy(
                f"what was placed is not what was backed up: {problem}",
                hint=f"run: vl-borg-hooks verify {restore.copy.path}",
            )


def exchange(hooks: Hooks, wanted: Exchange) -> None:
    """Put the source in place and prove that VictoriaLogs serves it, or bring back what was there."""
    target = wanted.target
    found_running = target.found is ServiceState.RUNNING
    try:
        if found_running:
            with window.stop_window(hooks, target, settle=False):
                _swap(wanted)
        else:
            guard.arm(target)
            with lock.hold(target.host, target.data_directory):
                window.refuse_url_of_another(target)
                _swap(wanted)
            window.bring_back(hooks, target)
        # A server that was stopped or ill before could not be asked then.
        beforehand.require_url(target)
        wanted.prove()
    except BaseException as error:
        with signals.held_back():
            undone = _undo(hooks, target, error)
        failure = error.error if isinstance(error, signals.Interrupted) else error
        if undone and isinstance(failure, OperatorError):
            failure.victorialogs = f"{describe_state(target)}, on the data that was there before"
        raise
    target.host.sync(target.data_directory)
    # From here on the restored data stays, whatever happens.
    journal = wanted.journal(None, running=found_running or wanted.start_if_stopped)
    target.records.note(journal)
    if not found_running and not wanted.start_if_stopped:
        window.stop_again(target)
        target.reporter.result(
            f"stopped, as it was found; to start: {target.service.start_command()}"
        )
    settle(target, journal)
    target.records.clear_journal()


def _undo(hooks: Hooks, target: Target, error: BaseException) -> bool:
    """Bring back what was there; if that fails too, say why it was necessary."""
    try:
        return recover(hooks, target, undo=True)
    except OperatorError as failure:
        failure.what = f"{error}; and then {failure.what}"
        raise


def _swap(wanted: Exchange) -> None:
    """Put the source in place of what is there; listed only now, because a stop may write files.

    If that fails, all of what was there is back before a server can start on half of it.
    """
    target = wanted.target
    replaced = present(target.host, target.data_directory)
    journal = wanted.journal(replaced, running=target.found is ServiceState.RUNNING)
    target.records.note(journal)
    try:
        swap_of(target, journal).do()
    except BaseException:
        with signals.held_back():
            try:
                undo_locked(target, journal)
            except OperatorError as failure:
                # It is tried again, with VictoriaLogs stopped once more.
                target.reporter.warn(f"what was there could not be brought back yet: {failure}")
        raise
