"""`recover`: finish what a killed run left. The guard runs it too, with `--wait`."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting, explained
from vl_borg_hooks.errors import Busy, InvalidCopy, OperatorError, unexpected
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.records import RECOVERY, Journal
from vl_borg_hooks.snapshots.ours import clean_up
from vl_borg_hooks.stop_window import guard, window
from vl_borg_hooks.stop_window.found import describe_state
from vl_borg_hooks.stop_window.recovery import recover
from vl_borg_hooks.system import log
from vl_borg_hooks.system.log import logger

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig

# Between two tries of a guard. In this time a new run can take the run lock, and recovers itself.
FIRST_PAUSE_SECONDS = 1
LONGEST_PAUSE_SECONDS = 30
PAUSE_POLL_SECONDS = 1


def recover_all(
    loaded: LoadedConfig, instances: Sequence[Instance], *, wait: bool, dry_run: bool
) -> bool:
    """Finish what a killed run left of `instances`; return whether that was possible for all.

    A failure is logged, and the next instance has its turn. Without `wait`, a current run is not an
    error: it finishes by itself. With `wait`, the current run is waited for, and what is still left
    then is tried again and again, without limit. With `dry_run`, only say what would be done.
    """
    setting = _setting(loaded)
    do = _say_what_is_left if dry_run else partial(_recover, wait=wait)
    again = wait and not dry_run
    if again and guard.is_guard():
        _be_on_guard(setting, instances)
    said: dict[str, str] = {}
    all_done, pause, left = True, FIRST_PAUSE_SECONDS, list(instances)
    while left:
        failed = [instance for instance in left if not _try(setting, instance, do, said)]
        left = [instance for instance in failed if again and _is_owed(setting, instance)]
        all_done = all_done and left == failed
        _pause(setting, left, pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
    return all_done


def _setting(loaded: LoadedConfig) -> Setting:
    """Return the config with its plugins, or if they can't be used without the installed ones.

    A broken plugin must not be the reason that VictoriaLogs stays down.
    """
    try:
        return Setting(loaded)
    except Exception as error:  # noqa: BLE001 - whatever a plugin may raise
        logger.warning("recovering without plugins: %s", error)
        return Setting(loaded, installed=False)


def _be_on_guard(setting: Setting, instances: Sequence[Instance]) -> None:
    """Report to the run that we wait; raises OperatorError if we lack something that we will need."""
    log.add_time_in_a_file()
    for instance in instances:
        # Asked for its password too, which may come from the environment.
        setting.target(instance).client  # noqa: B018
    guard.on_guard()


def _try(
    setting: Setting,
    instance: Instance,
    do: Callable[[Hooks, Target], None],
    said: dict[str, str],
) -> bool:
    """Do `do` for `instance`; return whether it succeeded, and log why not.

    `said` is what was logged last for each instance: a guard may have to try for days.
    """
    try:
        do(setting.hooks, setting.target(instance))
        return True
    except Busy as busy:
        logger.log(log.RESULT, "%s: %s: nothing to recover", instance.name, busy)
        return True
    except Exception as caught:  # noqa: BLE001 - the next instance may be down too
        error = caught if isinstance(caught, OperatorError) else unexpected(caught)
        error.instance = error.instance or instance.name
        if said.get(instance.name) != str(error):
            traced = error if logger.isEnabledFor(logging.DEBUG) else None
            logger.error("%s", error, exc_info=traced)
        said[instance.name] = str(error)
        return False


def _is_owed(setting: Setting, instance: Instance) -> bool:
    """Say whether something is left to finish; if that can't be found out, it may be."""
    try:
        return setting.records(instance).has_journal
    except OperatorError:
        return True


def _pause(setting: Setting, owed: Sequence[Instance], seconds: float) -> None:
    """Wait `seconds`, or until another run has finished all that is owed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(_is_owed(setting, instance) for instance in owed):
        time.sleep(PAUSE_POLL_SECONDS)


def _say_what_is_left(hooks: Hooks, target: Target) -> None:
    """Say what would be done now; change nothing."""
    run = target.records.run_that_is_on()
    if run:
        target.reporter.result(f"a run is in progress: {run}: nothing to recover")
        return
    with explained(target):
        journal = target.records.journal()
        if target.records.has_snapshots:
            target.reporter.result("a before-create was cut short: would delete its snapshots")
        elif journal is None:
            target.reporter.result("nothing to recover")
        if journal is None:
            return
        undo = "" if journal.replaced is None else "bring back the data that it replaced, and "
        done = "start" if journal.found_running else "stop"
        target.reporter.result(
            f"a {journal.command} was cut short: would {undo}{done} VictoriaLogs if it is not "
            f"{'running' if journal.found_running else 'stopped'}; now {describe_state(target)}"
        )


def _recover(hooks: Hooks, target: Target, *, wait: bool) -> None:
    """Finish what a killed run left, and see that VictoriaLogs stays up for as long as needed."""
    records = target.records
    with (
        records.run_lock(
            RECOVERY, wait=None if wait else 0, for_recovery=target.instance.longest_recovery
        ),
        explained(target),
        target.host.connected(),
    ):
        seconds = 0.0
        journal = records.journal()
        if journal is None and not wait and not records.has_snapshots:
            target.reporter.result("nothing to recover")
        elif journal is not None and journal.found_running:
            seconds = window.stop_may_come(target)
        recover(hooks, target)
        clean_up(target)
        _drop_lease(target)
    # Without the run lock: a new backup does not have to wait for us.
    if not seconds:
        return
    with explained(target), target.host.connected():
        window.watch(hooks, target, seconds, partial(_alone, hooks, target))


def _drop_lease(target: Target) -> None:
    """Drop the lease of who has ended."""
    try:
        lease = target.records.lease()
        if lease and target.records.lease_holder() is None:
            target.records.release_lease()
            target.reporter.result(f"dropped the lease of {lease}, which has ended")
    except InvalidCopy as error:
        # The next backup refuses it. VictoriaLogs has to be watched all the same.
        target.reporter.warn(str(error))


@contextlib.contextmanager
def _alone(hooks: Hooks, target: Target) -> Iterator[None]:
    """Be the only run in this block, which brings VictoriaLogs back; if it fails, that is owed."""
    with target.records.run_lock(RECOVERY, wait=None):
        if target.records.has_journal:
            # Another run was killed meanwhile.
            recover(hooks, target)
        target.records.note(Journal(RECOVERY, found_running=True))
        yield
        target.records.clear_journal()
