"""`before-create`: the order of the steps of a backup. Each step is in its plugin."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting, exclusive, explained, require
from vl_borg_hooks.errors import Busy, InvalidCopy
from vl_borg_hooks.plugin.context import Backup, Copied
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs import borgmatic
from vl_borg_hooks.runs.caller import calling_process
from vl_borg_hooks.runs.holder import Holder
from vl_borg_hooks.runs.records import FORCE_RELEASE, Published
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.snapshots.ours import clean_up
from vl_borg_hooks.staging.last_published import LastPublished
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.stop_window.found import describe_state
from vl_borg_hooks.stop_window.recovery import recover
from vl_borg_hooks.system.log import RESULT, logger
from vl_borg_hooks.transfer.progress import human_bytes

if TYPE_CHECKING:
    from vl_borg_hooks.archiving.look import Look
    from vl_borg_hooks.config import Instance, LoadedConfig

# With `when_busy: skip`. A backup that lasts longer than this is a failure of those that wait for it.
LONGEST_SKIPPED_SECONDS = 24 * 3600


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


def back_up(
    loaded: LoadedConfig,
    instances: Sequence[Instance],
    *,
    dry_run: bool,
    look: Look | None = None,
) -> None:
    """Make and publish a staging copy of each of `instances`, for the borgmatic that runs us.

    A copy that was published for that same borgmatic is archived once more, as it is. `look` is at
    what that borgmatic archives: if it makes no archive at all, nothing is done.

    Raises Busy if another run or another borgmatic holds one of them, OperatorError for any other
    failure. Then nothing of what was made is published.
    """
    setting = Setting(loaded)
    backups = [setting.backup(instance) for instance in instances]
    if look and not look.makes_archives():
        # Whoever skips the action knows. If a name is mistyped, the backup must not cease silently.
        level = logging.WARNING if look.is_narrowed else RESULT
        logger.log(level, "borgmatic makes no archive with %s, so no copy is made", look.file)
        return
    try:
        with contextlib.ExitStack() as stack:
            for backup in backups:
                stack.enter_context(exclusive(backup, "before-create"))
            _back_up(setting, backups, look, dry_run=dry_run)
    except Busy as busy:
        if loaded.config.when_busy == "skip" and _may_be_skipped(busy):
            busy.exit_status = os.EX_TEMPFAIL
        raise


def _may_be_skipped(busy: Busy) -> bool:
    """Say whether borgmatic may pass over this run: a backup must not cease for ever, unnoticed."""
    if busy.seconds > LONGEST_SKIPPED_SECONDS:
        busy.hint += f"; no run is skipped after {LONGEST_SKIPPED_SECONDS // 3600} hours"
        return False
    found = borgmatic.running()
    if found and not borgmatic.skips(found):
        busy.hint += f"; not skipped, as borgmatic {borgmatic.GOES_ON} would archive all the same"
        return False
    return True


def _back_up(
    setting: Setting, backups: Sequence[Backup], look: Look | None, *, dry_run: bool
) -> None:
    """Make what has to be made of `backups`, with the run locks held."""
    holder = calling_process()
    for backup in backups:
        with explained(backup):
            _refuse_leased(backup, holder)
    if look:
        look.begin([backup.instance for backup in backups])
    if dry_run:
        _look(setting.hooks, backups, look)
        return
    # Several config files of one borgmatic may include us: that is one stop, not one for each.
    is_borgmatic = borgmatic.running() is not None
    again = [each for each in backups if is_borgmatic and _is_published_for(setting, each, holder)]
    for backup in again:
        with explained(backup):
            _require_archived(backup, look)
    _back_up_all(setting, [each for each in backups if each not in again], holder, look)
    for backup in again:
        backup.records.take_lease(holder)


def _published(setting: Setting, backup: Backup, holder: Holder) -> Published | None:
    """Return what is published of `backup` now, for `holder`; None if nothing is."""
    try:
        manifest = backup.staging.manifest_path.read_bytes()
    except OSError:
        return None
    config = f"{backup.instance.model_dump_json()} {setting.loaded.config.plugins}".encode()
    return Published(holder, *(hashlib.sha256(text).hexdigest() for text in (manifest, config)))


def _is_published_for(setting: Setting, backup: Backup, holder: Holder) -> bool:
    """Say whether the staging copy is as it was published for this same borgmatic."""
    last = backup.records.published()
    if last is None or not last.holder.is_same(holder) or backup.records.has_journal:
        return False
    if _published(setting, backup, last.holder) != last:
        return False
    manifest = backup.staging.manifest()
    known = LastPublished.of(backup.staging, manifest, backup.records.directory)
    if known is None or not known.look(every=backup.instance.reread_seconds).is_as_published:
        return False
    backup.reporter.result(
        f"published already for this run of borgmatic, at {manifest.created}: VictoriaLogs is not "
        "stopped again"
    )
    return True


def _look(hooks: Hooks, backups: Sequence[Backup], look: Look | None) -> None:
    """Run the checks and change nothing."""
    for backup in backups:
        with explained(backup):
            _check(hooks, backup, look)
        backup.reporter.result(f"ready: {describe_state(backup)}")


def _check(hooks: Hooks, backup: Backup, look: Look | None) -> None:
    """Raise OperatorError if anything is not in place for the backup of this instance."""
    require(backup, hooks.backup_checks(backup))
    _require_archived(backup, look)


def _require_archived(backup: Backup, look: Look | None) -> None:
    """Raise OperatorError if borgmatic would not archive the staging copy."""
    for problem in look.require(backup.instance) if look else ():
        backup.reporter.warn(problem)


def _back_up_all(
    setting: Setting, backups: Sequence[Backup], holder: Holder, look: Look | None
) -> None:
    hooks = setting.hooks
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
                clean_up(backup)
                started = time.monotonic()
                _check(hooks, backup, look)
                seconds = time.monotonic() - started
                backup.reporter.say(f"ready: {describe_state(backup)}; checked in {seconds:.2f} s")
        may_be_published = True
        for outcome in outcomes:
            with explained(outcome.backup):
                _back_up_one(hooks, outcome)
        for backup in backups:
            backup.records.take_lease(holder)
            published = _published(setting, backup, holder)
            if published:
                backup.records.note_published(published)
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
        return f"VictoriaLogs was not stopped ({backup.consistency_why})"
    why = f" ({backup.consistency_why})" if backup.instance.consistency == "auto" else ""
    return f"VictoriaLogs was away for {backup.downtime:.2f} s{why}"


def _refuse_leased(backup: Backup, holder: Holder) -> None:
    """Raise Busy if anybody else still archives the staging copy."""
    lease = backup.records.lease_holder()
    if lease and not lease.is_same(holder):
        raise Busy(
            f"the staging copy {backup.staging.path} is still being archived by {lease}",
            hint=f"wait until it has ended; if nothing archives it: {FORCE_RELEASE}",
            seconds=lease.age,
        )
