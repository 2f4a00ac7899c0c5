"""The order of things: backup and recovery. What each step does is in its plugin."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pluggy import HookRelay

from vl_borg_hooks.config import OptionsError
from vl_borg_hooks.errors import Busy, OperatorError, unexpected
from vl_borg_hooks.plugin import manager
from vl_borg_hooks.plugin.context import Backup, Target
from vl_borg_hooks.runs.borgmatic import calling_process
from vl_borg_hooks.runs.records import InstanceState, Journal
from vl_borg_hooks.services import ServiceManager, State
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.known import Known
from vl_borg_hooks.stop_window import guard, window
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.system.signals import Interrupted
from vl_borg_hooks.transfer import rsync
from vl_borg_hooks.transfer.progress import Reporter, human_bytes
from vl_borg_hooks.victorialogs import changes, freeze, lock
from vl_borg_hooks.victorialogs.layout import PARTITIONS
from vl_borg_hooks.victorialogs.swap import Swap

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig

Say = Callable[[str], None]

# Another warm pass is made, where the final one is made in the stop window, as long as the last one
# copied more than this and less than half of the one before: it then has less to copy again.
ENOUGH_BYTES = 16_000_000
MOST_WARM_PASSES = 5
# How long a copy is only added to before all of it is compared with the data again: a week.
COMPARED_SECONDS = 7 * 24 * 3600


def back_up(
    loaded: LoadedConfig, instances: Sequence[Instance], say: Say, *, dry_run: bool
) -> None:
    """Make and publish a staging copy of each of `instances`, for the borgmatic that runs us.

    Raises Busy where another run or another borgmatic has one of them, OperatorError for all else;
    nothing is published then.
    """
    hook = manager.manager().hook
    holder = calling_process()
    backups = [
        Backup(
            **target_fields(loaded, instance, say),
            staging=StagingCopy(Path(instance.staging_path)),
        )
        for instance in instances
    ]
    with contextlib.ExitStack() as stack:
        states = [stack.enter_context(run(loaded, backup, "before-create")) for backup in backups]
        for backup, state in zip(backups, states, strict=True):
            _refuse_leased(backup, state, holder.pid)
            with explained(backup):
                if not dry_run:
                    recover(hook, backup, state)
                check_ready(backup)
                hook.before_backup(backup=backup)
        if dry_run:
            for backup in backups:
                backup.reporter.say(f"ready: VictoriaLogs is {backup.found.value}")
            return
        try:
            for backup, state in zip(backups, states, strict=True):
                _back_up_one(hook, backup, state)
            for state in states:
                state.take_lease(holder)
        except BaseException:
            for backup in backups:
                # Half of the instances is no backup: borgmatic won't archive, so nothing may. Where
                # a manifest can't be removed, the failure that we are in is what there is to say.
                with contextlib.suppress(OperatorError):
                    backup.staging.unpublish()
            for state in states:
                with contextlib.suppress(OperatorError):
                    state.release_lease()
            raise


def _back_up_one(hook: HookRelay, backup: Backup, state: InstanceState) -> None:
    error: BaseException | None = None
    try:
        with explained(backup):
            backup.staging.create()
            backup.known = Known.of(backup.staging, state.directory)
            backup.staging.unpublish()
            try:
                _copy(hook, backup, state)
            finally:
                Swap(backup.host, backup.data_directory).discard_leftovers()
            manifest = hook.publish(backup=backup)
            if backup.notes is not None:
                backup.notes.keep(state.directory, manifest.inventory_sha256, backup.compared)
        backup.reporter.say(
            f"published: {manifest.rows} rows, {manifest.files} files, "
            f"{human_bytes(manifest.bytes)}; {_downtime(backup)}"
        )
    except BaseException as caught:
        error = caught
        raise
    finally:
        hook.after_backup(backup=backup, error=error)


def _copy(hook: HookRelay, backup: Backup, state: InstanceState) -> None:
    """Bring the staging copy up to date, in two passes around a stop or in one where stopped."""
    if backup.found is State.STOPPED:
        lock.ensure_file(backup.host, backup.data_directory)
        with lock.hold(backup.host, backup.data_directory):
            backup.final = hook.final_pass(backup=backup)
        return
    _prepare_freezing(backup)
    if backup.known:
        _look_at_copy(backup, backup.known)
    _warm_up(hook, backup)
    # Left to the kernel, gigabytes may be written just when VictoriaLogs stops and waits for the
    # disk itself.
    LocalHost().sync(str(backup.staging.path))
    with window.stop_window(hook, backup, state, "before-create"):
        if backup.listing is not None:
            now = changes.read(backup.host, backup.data_directory, backup.listing)
            backup.delta = changes.delta(backup.listing, now)
        backup.is_frozen = hook.freeze(backup=backup)
        if not backup.is_frozen:
            backup.final = hook.final_pass(backup=backup)
    if backup.is_frozen:
        backup.final = hook.final_pass(backup=backup)
    when = "frozen, after the start" if backup.is_frozen else "while it was stopped"
    backup.reporter.say(f"final pass, {when}: {describe_pass(backup.final)}")


def _prepare_freezing(backup: Backup) -> None:
    """Find out, before the stop, whether the final pass can wait until after it."""
    wanted = backup.instance.final_pass
    if wanted == "stopped":
        return
    lock.ensure_file(backup.host, backup.data_directory)
    backup.can_freeze = freeze.is_possible(backup.host, backup.data_directory, backup.frozen)
    if wanted == "frozen" and not backup.can_freeze:
        raise OperatorError(
            f"no hard links can be made in {backup.instance.data_path}, as final_pass: frozen wants",
            hint="say final_pass: auto, or let this user write there",
        )


def _look_at_copy(backup: Backup, known: Known) -> None:
    """Find out whether the last copy is still what was published: then it need not be compared."""
    started = time.monotonic()
    backup.is_as_published = known.look()
    seconds = time.monotonic() - started
    found = "is as it was published" if backup.is_as_published else "has changed since"
    backup.reporter.say(f"the last copy {found}: looked at in {seconds:.2f} s")
    backup.compared = known.compared
    # Of files in the data that anybody but VictoriaLogs has changed, only that tells.
    if not 0 <= time.time() - known.compared < COMPARED_SECONDS:
        backup.is_as_published = False


def _warm_up(hook: HookRelay, backup: Backup) -> None:
    """Do warm passes until little is left for a final pass that VictoriaLogs has to wait for."""
    copied: float = math.inf
    for _ in range(MOST_WARM_PASSES):
        backup.listed_before = backup.listing
        backup.listing = changes.read(backup.host, backup.data_directory)
        backup.warm = hook.warm_pass(backup=backup)
        backup.reporter.say(f"warm pass: {describe_pass(backup.warm)}")
        shrinks = backup.warm.bytes < copied / 2
        copied = backup.warm.bytes
        if backup.can_freeze or copied < ENOUGH_BYTES or not shrinks:
            return


def describe_pass(result: Any) -> str:
    """Return what a pass did, in words."""
    return f"{result.files} files, {human_bytes(result.bytes)} in {result.seconds:.2f} s"


def _downtime(target: Target) -> str:
    if target.downtime is None:
        return "VictoriaLogs was found stopped and stays stopped"
    return f"VictoriaLogs was away for {target.downtime:.2f} s"


def recover_all(
    loaded: LoadedConfig, instances: Sequence[Instance], say: Say, *, wait: bool
) -> None:
    """Finish what a killed run left of `instances`; with `wait`, once the run that is on has ended.

    Without `wait` a run that is on is no error: it finishes by itself.
    """
    hook = manager.manager().hook
    for instance in instances:
        target = Target(**target_fields(loaded, instance, say))
        state = InstanceState(loaded.config.state_directory, instance.name)
        alone = partial(state.run_lock, "recover", wait=None)
        try:
            with explained(target):
                if wait:
                    guard.on_guard()
                with alone() if wait else state.run_lock("recover", wait=0):
                    seconds = _recover_one(hook, target, state)
                # Not alone: whoever wants to begin a backup now need not wait for us.
                window.watch(hook, target, seconds, alone)
        except Busy as busy:
            say(f"{busy}: nothing to recover")


def _recover_one(hook: HookRelay, target: Target, state: InstanceState) -> float:
    """Recover and return for how many seconds VictoriaLogs is to be watched after that."""
    seconds = 0.0
    journal = state.journal()
    if journal is None:
        target.reporter.say("nothing to recover")
    elif journal.found_running:
        seconds = window.stop_may_come(target)
    recover(hook, target, state)
    if state.lease_holder() is None:
        state.release_lease()
    return seconds


def recover(hook: HookRelay, target: Target, state: InstanceState) -> bool:
    """Bring VictoriaLogs back to the state that a killed run found it in; tell if there was one.

    The caller holds the run lock, so the run that wrote the journal has ended.
    """
    journal = state.journal()
    if journal is None:
        Swap(target.host, target.data_directory).discard_leftovers()
        return False
    swap = Swap(target.host, target.data_directory, journal.replaced or ())
    target.reporter.say(f"a {journal.command} was killed: bringing VictoriaLogs back")
    if journal.replaced is not None:
        window.stop_again(target)
        with window.locked(target):
            swap.undo()
            # Undone for good: to undo it again would take what a server makes from here on for
            # the restore's.
            state.note(Journal(journal.command, journal.found_running))
    if journal.found_running:
        window.bring_back(hook, target)
    else:
        window.stop_again(target)
    swap.clean_up()
    window.clear_journal(target, state)
    target.reporter.say(f"VictoriaLogs is {target.service.state().value} again, as it was found")
    return True


def check_ready(target: Target) -> None:
    """Find out whether a backup can succeed, before anything is touched; sets `target.found`.

    Raises OperatorError for whatever is missing.
    """
    rsync.check_version(LocalHost(), target.host)
    target.host.check()
    if not target.host.is_directory(f"{target.data_directory}/{PARTITIONS}"):
        raise OperatorError(
            f"{target.instance.data_path} is no VictoriaLogs data directory: "
            f"it has no {PARTITIONS} directory",
            hint="data_path should be what -storageDataPath of VictoriaLogs says",
        )
    target.service.check()
    target.found = window.find_state(target)


@contextlib.contextmanager
def run(loaded: LoadedConfig, target: Target, command: str) -> Iterator[InstanceState]:
    """Be the only run on `target`'s instance and yield its state; raises Busy."""
    state = InstanceState(loaded.config.state_directory, target.name)
    try:
        with state.run_lock(command), target.host.connected():
            yield state
    except Busy as busy:
        busy.instance = busy.instance or target.name
        raise


def _refuse_leased(backup: Backup, state: InstanceState, own_pid: int) -> None:
    """Raise Busy where another living borgmatic still archives the staging copy."""
    lease = state.lease_holder()
    if lease and lease.pid != own_pid:
        busy = Busy(
            f"the staging copy {backup.staging.path} is still being archived by {lease}",
            hint="wait until it has ended",
        )
        busy.instance = backup.name
        raise busy


@contextlib.contextmanager
def explained(target: Target) -> Iterator[None]:
    """Add instance and state of VictoriaLogs to any failure in this block, a plugin's too."""
    try:
        yield
    except Interrupted as interrupted:
        _explain(target, interrupted.error)
        raise
    except Exception as caught:
        error = caught if isinstance(caught, OperatorError) else unexpected(caught)
        _explain(target, error)
        if error is caught:
            raise
        raise error from caught


def _explain(target: Target, error: OperatorError) -> None:
    error.instance = error.instance or target.name
    error.state = error.state or window.describe_state(target)


def target_fields(loaded: LoadedConfig, instance: Instance, say: Say) -> dict[str, Any]:
    """Return the fields that every Target of `instance` has; raises ConfigError."""
    host = instance.host
    return {
        "instance": instance,
        "host": host,
        "service": _service(loaded, instance, host),
        "reporter": Reporter(instance.name, say=say),
        "config_path": loaded.path.absolute(),
    }


def _service(loaded: LoadedConfig, instance: Instance, host: Host) -> ServiceManager:
    """Return the service manager that the config names for `instance`."""
    index = loaded.config.instances.index(instance)
    ((kind, options),) = instance.service.items()
    location = ("instances", index, "service", kind)
    factories = manager.service_factories()
    if kind not in factories:
        raise loaded.error(
            location, f"is no service manager; there are: {', '.join(sorted(factories))}"
        )
    try:
        return factories[kind](options, host)
    except OptionsError as error:
        raise loaded.error((*location, *error.location), str(error)) from None
