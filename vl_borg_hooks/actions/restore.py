"""The way back: an extracted copy becomes what VictoriaLogs serves, or all stays as it was."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from pluggy import HookRelay

from vl_borg_hooks.actions import backup
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin import manager
from vl_borg_hooks.plugin.context import Restore
from vl_borg_hooks.runs.borgmatic import extract_destination
from vl_borg_hooks.runs.records import InstanceState, Journal
from vl_borg_hooks.services import State
from vl_borg_hooks.staging.copy import StagingCopy, find_copies
from vl_borg_hooks.staging.manifest import Manifest, Partition
from vl_borg_hooks.staging.verify import differences, verify
from vl_borg_hooks.staging.walk import walk
from vl_borg_hooks.stop_window import guard, window
from vl_borg_hooks.system import signals
from vl_borg_hooks.system.hosts import Owner
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import rsync
from vl_borg_hooks.transfer.progress import human_bytes
from vl_borg_hooks.victorialogs import lock
from vl_borg_hooks.victorialogs.layout import PARTITIONS
from vl_borg_hooks.victorialogs.swap import Swap, present

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig

Say = Callable[[str], None]

# VictoriaLogs' lib/flagutil/retention_duration.go: a bare number is months of 31 days.
_RETENTION = re.compile(r"(\d+(?:\.\d+)?)([hdwy]?)")
_RETENTION_DAYS = {"h": 1 / 24, "d": 1, "w": 7, "y": 365, "": 31}


def restore(
    loaded: LoadedConfig,
    instances: Sequence[Instance],
    root: Path,
    say: Say,
    *,
    start: bool,
    dry_run: bool,
    every: bool = False,
) -> None:
    """Restore each of `instances` that has a copy at or below `root`.

    With `start`, a VictoriaLogs that was found stopped is left running; with `every`, an instance
    without a copy is an error, before anything is touched. Raises OperatorError; the data that was
    to be replaced is then in place again.
    """
    copies = _copies_by_instance(root)
    chosen = [instance for instance in instances if instance.name in copies]
    missing = [instance.name for instance in instances if instance.name not in copies]
    if missing and chosen and not every:
        say(f"{root} holds no copy of {', '.join(missing)}: not restored")
    if not chosen or (missing and every):
        raise InvalidCopy(
            f"{root} holds copies of {', '.join(sorted(copies))}, none of {', '.join(missing)}",
            hint="is this the archive, and is this the config, that you mean?",
        )
    hook = manager.manager().hook
    for instance in chosen:
        target = Restore(
            **backup.target_fields(loaded, instance, say),
            copy=copies[instance.name],
            start_if_stopped=start,
        )
        with backup.run(loaded, target, "restore") as state, backup.explained(target):
            _restore_one(hook, target, state, dry_run=dry_run)


def restore_extracted(
    loaded: LoadedConfig, instances: Sequence[Instance], say: Say, *, dry_run: bool
) -> None:
    """Restore what borgmatic has just extracted, of the instances that say `on_extract: true`."""
    wanted = [instance for instance in instances if instance.restore.on_extract]
    if not wanted:
        say("restore: on_extract: is not set for any instance: nothing is restored")
        return
    restore(loaded, wanted, extract_destination(), say, start=False, dry_run=dry_run)


def _copies_by_instance(root: Path) -> dict[str, StagingCopy]:
    """Return the copies at or below `root` by instance; raises InvalidCopy for two of the same."""
    copies: dict[str, StagingCopy] = {}
    for copy in find_copies(root):
        name = copy.manifest().instance
        if name in copies:
            raise InvalidCopy(
                f"{root} holds two copies of {name}: {copies[name].path} and {copy.path}",
                hint="name one of them with --from",
            )
        copies[name] = copy
    return copies


def _restore_one(hook: HookRelay, target: Restore, state: InstanceState, *, dry_run: bool) -> None:
    target.reporter.say(f"verifying {target.copy.path}")
    # A stranger's tree may link to anything; our own staging copy links to the data.
    ours = target.copy.path.resolve() == Path(target.instance.staging_path).resolve()
    manifest = verify(target.copy, linked=ours).raise_problems()
    if not dry_run:
        backup.recover(hook, target, state)
    _check_ready(target, manifest)
    expired = _expired(target, manifest)
    error: BaseException | None = None
    try:
        hook.before_restore(restore=target)
        if dry_run:
            target.reporter.say(
                f"would restore {manifest.rows} rows, {human_bytes(manifest.bytes)}, "
                f"into {target.instance.data_path}"
            )
            return
        Swap(target.host, target.data_directory).discard_leftovers()
        try:
            target.placed = hook.place_copy(restore=target)
            _check_placed(target, manifest)
            # On disk, and while VictoriaLogs still runs: what it replaces is removed in the end.
            target.host.sync(target.incoming)
            _replace(hook, target, state, manifest, expired)
        finally:
            if state.journal() is None:
                Swap(target.host, target.data_directory).discard_leftovers()
    except BaseException as caught:
        error = caught
        raise
    finally:
        hook.after_restore(restore=target, error=error)


def _check_placed(target: Restore, manifest: Manifest) -> None:
    """Raise InvalidCopy where what lies ready to be put in place is not what was verified."""
    incoming = target.host.local_path(target.incoming)
    if incoming is not None:
        inventory = target.copy.read_inventory(manifest.inventory_sha256)
        for problem in differences(incoming, walk(incoming), inventory):
            raise InvalidCopy(f"the copy changed while it was restored: {problem}")


def _replace(
    hook: HookRelay,
    target: Restore,
    state: InstanceState,
    manifest: Manifest,
    expired: Sequence[Partition],
) -> None:
    """Put the copy in place, prove that VictoriaLogs serves it, or bring back what was there."""
    found_running = target.found is State.RUNNING
    try:
        if found_running:
            with window.stop_window(hook, target, state, "restore", settle=False):
                _wait_stopped(target)
                _swap(target, state)
        else:
            guard.arm(target)
            with lock.hold(target.host, target.data_directory):
                _swap(target, state)
            window.bring_back(hook, target)
        _prove(target, manifest, expired)
    except BaseException as error:
        with signals.held_back():
            undone = backup.recover(hook, target, state)
        told = error.error if isinstance(error, signals.Interrupted) else error
        if undone and isinstance(told, OperatorError):
            told.state = f"{window.describe_state(target)}, on the data that was there before"
        raise
    target.host.sync(target.data_directory)
    # From here on the restored data stays, whatever happens.
    state.note(Journal("restore", found_running or target.start_if_stopped))
    if not found_running and not target.start_if_stopped:
        window.stop_again(target)
        target.reporter.say(f"stopped, as it was found; to start: {target.service.start_command()}")
    Swap(target.host, target.data_directory).clean_up()
    state.clear_journal()
    away = "" if target.downtime is None else f"; VictoriaLogs was away for {target.downtime:.2f} s"
    target.reporter.say(
        f"restored: {manifest.rows} rows, {manifest.files} files, "
        f"{human_bytes(manifest.bytes)}{away}"
    )


def _swap(target: Restore, state: InstanceState) -> None:
    """Put the copy in place of what is there now that it is locked: a stop may write new files."""
    replaced = present(target.host, target.data_directory)
    state.note(Journal("restore", target.found is State.RUNNING, replaced))
    Swap(target.host, target.data_directory, replaced).do()


def _wait_stopped(target: Restore) -> None:
    """Have the service manager's word too: where the data was lost, so was the lock's file."""
    deadline = time.monotonic() + target.instance.stop_timeout
    while target.service.state() is not State.STOPPED:
        if time.monotonic() >= deadline:
            raise OperatorError(f"{target.service.description} did not stop")
        time.sleep(window.POLL_SECONDS)


def _prove(target: Restore, manifest: Manifest, expired: Sequence[Partition]) -> None:
    """Count the rows through the server; raises OperatorError where some are missing.

    There may be more than in the copy: clients write again the moment that it serves.
    """
    if not lock.is_held(target.host, target.data_directory):
        raise OperatorError(
            f"{target.service.description} runs, but not on {target.instance.data_path}",
            hint="is data_path what its -storageDataPath says?",
        )
    if target.client is None:
        target.reporter.say("healthy; without url: in the config its rows can't be counted")
        return
    expected = manifest.rows - sum(partition.rows for partition in expired)
    served = target.client.stored_rows()
    if served < expected:
        raise OperatorError(
            f"VictoriaLogs serves {served} rows of the {expected} in the copy",
            hint="see its log; is its -retentionPeriod shorter than the copy is old?",
        )
    target.reporter.say(f"VictoriaLogs serves {served} rows, {expected} of them expected")


def _check_ready(target: Restore, manifest: Manifest) -> None:
    """Find out whether the restore can succeed; raises OperatorError.

    Sets `target.found` and `target.owner`.
    """
    rsync.check_version(LocalHost(), target.host)
    target.found = target.service.state()
    if target.found is State.STOPPED and lock.is_held(target.host, target.data_directory):
        raise OperatorError(
            f"{target.service.description} is stopped, but a process holds the lock of "
            f"{target.data_directory} on {target.host.name}",
            hint="name under service: what really runs VictoriaLogs",
        )
    free = target.host.free_bytes(target.data_directory)
    if free < manifest.bytes:
        raise OperatorError(
            f"the copy needs {human_bytes(manifest.bytes)}, but the filesystem of "
            f"{target.instance.data_path} has {human_bytes(free)} free",
            hint="the data there is kept until the restored data is proved: make room for both",
        )
    target.owner = _needed_owner(target, manifest)


def _needed_owner(target: Restore, manifest: Manifest) -> Owner | None:
    """Return whom the restored files must belong to, None where that is whoever runs this.

    In this order: `restore: owner:`, the owner of the data that is there, the user that the service
    manager runs VictoriaLogs as, the owner of the data directory, that of the data which was backed
    up. Raises OperatorError where we may not give files away and would have to.
    """
    host = target.host
    owner = (
        _configured_owner(target)
        or host.owner(f"{target.data_directory}/{PARTITIONS}")
        or target.service.owner()
        or host.owner(target.data_directory)
        or (Owner(*manifest.owner) if manifest.owner else None)
    )
    user = host.effective_user()
    if user == 0 or owner is None:
        return owner
    if owner.user != user:
        raise OperatorError(
            f"the restored files must belong to user {owner.user}, but user {user} runs this",
            hint="run it as root or as that user",
        )
    return None


def _configured_owner(target: Restore) -> Owner | None:
    configured = target.instance.restore.owner
    if configured is None:
        return None
    user, _, group = configured.partition(":")
    owner = target.host.user_ids(user, group)
    if owner is None:
        raise OperatorError(
            f"{target.host.name} knows no {configured}, which restore: owner: names"
        )
    return owner


def _expired(target: Restore, manifest: Manifest) -> list[Partition]:
    """Return the partitions that the server will delete at once, as older than its retention.

    Asks the server that runs now. Raises OperatorError where nothing would be left of the copy.
    """
    if target.client is None or target.found is State.STOPPED:
        return []
    try:
        kept = _retention(target.client.flag("retentionPeriod"))
    except OperatorError:
        # Being broken is a reason to restore it, not a reason not to.
        return []
    if kept is None:
        return []
    # storage.go, getMinAllowedDay: whole days in UTC.
    oldest = (datetime.now(timezone.utc) - kept).strftime("%Y%m%d")
    expired = [partition for partition in manifest.partitions if partition.name < oldest]
    if not expired:
        return []
    rows = sum(partition.rows for partition in expired)
    what = f"{len(expired)} of {len(manifest.partitions)} partitions ({rows} rows)"
    if len(expired) == len(manifest.partitions):
        raise OperatorError(
            f"VictoriaLogs would delete all of the copy at once: {what} are before {oldest}, "
            "the end of its -retentionPeriod",
            hint="start VictoriaLogs with a longer -retentionPeriod first",
        )
    target.reporter.say(f"{what} are past -retentionPeriod: VictoriaLogs will delete them")
    return expired


def _retention(value: str) -> timedelta | None:
    """Return the time that VictoriaLogs' flag `value` keeps logs for, None where it can't be told."""
    found = _RETENTION.fullmatch(value)
    if not found:
        return None
    try:
        # storage.go: never less than a day.
        return max(timedelta(days=float(found[1]) * _RETENTION_DAYS[found[2]]), timedelta(days=1))
    except OverflowError:
        return None
