"""`before-create`: the order of the steps of a backup. Each step is in its plugin."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting, exclusive, explained, require
from vl_borg_hooks.errors import Busy, InvalidCopy
from vl_borg_hooks.plugin.context import Backup, Copied
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.borgmatic import calling_process
from vl_borg_hooks.runs.records import Holder
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.stop_window.found import describe_state
from vl_borg_hooks.stop_window.recovery import recover
from vl_borg_hooks.transfer.progress import human_bytes

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


@dataclass
class _Outcome:
    """What the backup of one instance has done so far, for `after_backup`."""

    backup: Backup
    copied: Copied | None = None
    manifest: Manifest | None = None
    is_reported: bool = False

    def report(self, hooks: Hooks, error: BaseException | None) -> None:
        """Call `after_backup`, once."""
        if self.is_reported:
            return
        self.is_reported = True
        hooks.after_backup(self.backup, self.copied, self.manifest, error)


def back_up(loaded: LoadedConfig, instances: Sequence[Instance], *, dry_run: bool) -> None:
    """Make and publish a staging copy of each of `instances`, for the borgmatic that runs us.

    Raises Busy if another run or another borgmatic holds one of them, OperatorError for any other
    failure. Then nothing is published.
    """
    setting = Setting(loaded)
    holder = calling_process()
    backups = [setting.backup(instance) for instance in instances]
    with contextlib.ExitStack() as stack:
        for backup in backups:
            stack.enter_context(exclusive(backup, "before-create"))
        for backup in backups:
            with explained(backup):
                _refuse_leased(backup, holder)
        if dry_run:
            _look(setting.hooks, backups)
        else:
            _back_up_all(setting.hooks, backups, holder)


def _look(hooks: Hooks, backups: Sequence[Backup]) -> None:
    """Run the checks and change nothing."""
    for backup in backups:
        with explained(backup):
            require(backup, hooks.backup_checks(backup))
        backup.reporter.result(f"ready: {describe_state(backup)}")


def _back_up_all(hooks: Hooks, backups: Sequence[Backup], holder: Holder) -> None:
    outcomes: list[_Outcome] = []
    may_be_published = False
    try:
        for backup in backups:
            outcomes.append(_Outcome(backup))
            with explained(backup):
                hooks.before_backup(backup)
        for backup in backups:
            with explained(backup):
                recover(hooks, backup)
                started = time.monotonic()
                require(backup, hooks.backup_checks(backup))
                seconds = time.monotonic() - started
                backup.reporter.say(f"ready: {describe_state(backup)}; checked in {seconds:.2f} s")
        may_be_published = True
        for outcome in outcomes:
            with explained(outcome.backup):
                _back_up_one(hooks, outcome)
        for backup in backups:
            backup.records.take_lease(holder)
        for outcome in outcomes:
            with explained(outcome.backup):
                outcome.report(hooks, None)
    except BaseException as error:
        if may_be_published:
            _withdraw(backups)
        for outcome in outcomes:
            _report_failure(hooks, outcome, error)
        raise


def _withdraw(backups: Sequence[Backup]) -> None:
    """Unpublish all of `backups`: a part of the instances is not a backup.

    Raises nothing, because the operator has to read the failure that came first.
    """
    for backup in backups:
        with contextlib.suppress(Exception):
            backup.staging.unpublish()
        with contextlib.suppress(Exception):
            backup.records.release_lease()


def _report_failure(hooks: Hooks, outcome: _Outcome, error: BaseException) -> None:
    try:
        outcome.report(hooks, error)
    except BaseException as further:  # noqa: BLE001 - the first failure is what the operator reads
        outcome.backup.reporter.warn(f"a plugin's after_backup failed too: {further}")


def _back_up_one(hooks: Hooks, outcome: _Outcome) -> None:
    backup = outcome.backup
    backup.staging.create()
    with contextlib.suppress(InvalidCopy):
        backup.last_manifest = backup.staging.manifest()
    backup.staging.unpublish()
    outcome.copied = hooks.make_copy(backup)
    outcome.manifest = manifest = hooks.publish(backup, outcome.copied)
    backup.reporter.result(
        f"published: {manifest.rows:,} rows, {manifest.files:,} files, "
        f"{human_bytes(manifest.bytes)}; {_downtime(backup)}"
    )


def _downtime(backup: Backup) -> str:
    if backup.found is ServiceState.STOPPED:
        return "VictoriaLogs was found stopped and stays stopped"
    if backup.downtime is None:
        return "VictoriaLogs was not stopped"
    return f"VictoriaLogs was away for {backup.downtime:.2f} s"


def _refuse_leased(backup: Backup, holder: Holder) -> None:
    """Raise Busy if another running borgmatic still archives the staging copy."""
    lease = backup.records.lease_holder()
    if lease and lease.pid != holder.pid:
        raise Busy(
            f"the staging copy {backup.staging.path} is still being archived by {lease}",
            hint="wait until it has ended",
        )
