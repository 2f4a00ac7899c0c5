"""The hooks, as pluggy specifications: the public API for plugins.

The hooks are in the order in which they are called. Write a module with functions of these names,
mark them with `vl_borg_hooks.plugin.hookimpl`, and name the module under the entry-point group
`vl_borg_hooks`. A function may leave out arguments that it does not need.

Hooks that are marked `firstresult` are steps. Plugins are called until one returns something other
than None: then the step is done, and no more are called; ours come last. All others are occasions:
every plugin is called. No two hooks run at the same time.

With several instances, each hook of a backup is called for each of them. `start_service` and
`is_healthy` are called again until VictoriaLogs serves; `backup_checks` is also called by
`config validate` and by dry runs, which call no other hook of a backup. If the installed plugins
can't be used, `recover` goes on without them, to bring VictoriaLogs back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pluggy

from vl_borg_hooks import PLUGINS

if TYPE_CHECKING:
    from pydantic import BaseModel

    from vl_borg_hooks.plugin.checks import Check
    from vl_borg_hooks.plugin.context import Backup, Copied, Release, Restore, Target
    from vl_borg_hooks.plugin.relay import Hooks
    from vl_borg_hooks.services import ServiceFactory
    from vl_borg_hooks.staging.manifest import Manifest
    from vl_borg_hooks.transfer import PassResult

hookspec = pluggy.HookspecMarker(PLUGINS)
hookimpl = pluggy.HookimplMarker(PLUGINS)


@hookspec
def service_managers() -> Mapping[str, ServiceFactory]:  # type: ignore[empty-body]
    """Offer service managers by the name that they have under `service:` in the config.

    Called after the config was read. An exception makes every command that uses plugins fail.
    """


@hookspec
def plugin_options() -> Mapping[str, type[BaseModel]]:  # type: ignore[empty-body]
    """Offer sections of the config by the name that they have under `plugins:`, with their model.

    A section is validated with the rest of the config; `target.options(Model)` returns it. If the
    config does not have the section, an empty one is validated. Each section has its own model. An
    exception makes every command that uses plugins fail.
    """


@hookspec
def before_backup(backup: Backup) -> None:
    """Prepare for the backup of this instance; nothing was checked or changed yet.

    Called for every instance before anything else, but not for one whose copy this same borgmatic has
    had published already, for another config file. An exception ends the run, as a failed check does;
    `after_backup` is called.
    """


@hookspec
def backup_checks(backup: Backup) -> Iterable[Check]:  # type: ignore[empty-body]
    """Check whether the backup of this instance can succeed; change nothing.

    Called for every instance before the first of them is backed up. If a check is not ok, or after
    an exception, the run ends: no VictoriaLogs is stopped, every staging copy stays as it is.
    """


@hookspec(firstresult=True)
def make_copy(backup: Backup, hooks: Hooks) -> Copied | None:
    """Step: make `backup.staging.data` a consistent copy of the data path.

    The staging copy is unpublished. It may hold the last copy, perhaps as hard links to the live
    files: replace files, never write into them, and remove what is gone from the data path. The
    names in `vl_borg_hooks.victorialogs.layout.NOT_COPIED` do not belong in a copy. The data path is
    `backup.data_directory` on `backup.host`; `backup.remaining_downtime()` is the time that a copy
    in the stop window may still take.

    Ours makes a warm pass, stops VictoriaLogs, keeps or copies what has changed, and starts it again.
    It calls the hooks from `before_stop` to `after_start`. If `backup.consistency` is `snapshot`, it
    stops nothing, and copies what has changed from snapshots that VictoriaLogs makes. A plugin that needs VictoriaLogs stopped
    uses `with vl_borg_hooks.stop_window.window.stop_window(hooks, backup):`, which stops it, calls
    the same hooks, holds its lock, and starts it again whatever happens; if it was found stopped, it
    only holds the lock. An exception ends the run; the staging copy stays unpublished.
    """


@hookspec
def before_stop(target: Target) -> None:
    """Prepare for the stop window of a backup or a restore, for example silence alerts.

    Not called if VictoriaLogs was found stopped. An exception ends the run; VictoriaLogs was not
    stopped, and `after_start` is called.
    """


@hookspec(firstresult=True)
def stop_service(target: Target) -> bool | None:
    """Step: ask VictoriaLogs to stop; return True without waiting until it has.

    We then take the lock of its data directory, which proves that it has stopped. An exception ends
    the run, after VictoriaLogs was started again.
    """


@hookspec(firstresult=True)
def start_service(target: Target) -> bool | None:
    """Step: ask VictoriaLogs to start; return True without waiting until it serves.

    The lock of the data directory is free again. An exception is logged, and the step is tried
    again until `start_timeout` is over.
    """


@hookspec(firstresult=True)
def is_healthy(target: Target) -> bool | None:
    """Step: say whether VictoriaLogs serves again; called every few milliseconds after the start.

    An exception counts as no.
    """


@hookspec
def after_start(target: Target) -> None:
    """Undo what `before_stop` did: VictoriaLogs runs again, or could not be started.

    Called after every `before_stop`, whatever happened in between. An exception makes the run fail,
    unless it has failed already: then it is logged, and the first failure is what the operator reads.
    """


@hookspec(firstresult=True)
def publish(backup: Backup, copied: Copied) -> Manifest | None:
    """Step: verify the staging copy and write its manifest, last and atomically.

    VictoriaLogs is back in the state it was found in. An exception ends the run; the staging copy
    stays unpublished and borgmatic archives nothing.
    """


@hookspec
def after_backup(
    backup: Backup,
    copied: Copied | None,
    manifest: Manifest | None,
    error: BaseException | None,
) -> None:
    """React to the end of the backup of this instance.

    Called after all instances are done, for each one that `before_backup` was called for. Without
    an `error`, the copy with this `manifest` is published and will be archived. With an `error`,
    nothing will be archived, whichever instance failed; `copied` and `manifest` are None if this
    instance did not get that far. An exception makes the run fail, and nothing is archived;
    an instance that the hook was called for before that has seen no `error`. If `error` is an
    OperatorError, its `instance` says which instance failed.
    """


@hookspec
def after_release(release: Release) -> None:
    """React to the end of borgmatic: the staging copy may change again.

    Called by `after-create`, for every instance that it releases, also after a failure, and again for
    each config file of a borgmatic. An exception makes `after-create` fail; the lease is released
    before that.
    """


@hookspec
def before_restore(restore: Restore) -> None:
    """Prepare for the restore; the copy was verified, and a killed run was recovered from.

    An exception ends the run, as a failed check does; `after_restore` is called.
    """


@hookspec
def restore_checks(restore: Restore) -> Iterable[Check]:  # type: ignore[empty-body]
    """Check whether the restore can succeed; change nothing. Also called by dry runs.

    If a check is not ok, or after an exception, the run ends; nothing was changed.
    """


@hookspec(firstresult=True)
def put_in_place(restore: Restore, hooks: Hooks) -> PassResult | None:
    """Step: make VictoriaLogs serve `restore.copy.data`, or bring back what was there before.

    Ours copies it beside the data while VictoriaLogs runs, stops VictoriaLogs, exchanges the two,
    starts it, and calls `prove_restore`. If that or anything else fails, the step must bring back
    the data that was there, with VictoriaLogs as it was found, before it raises the exception. If
    the run is killed, `recover` brings VictoriaLogs back after any stop window, and undoes our
    exchange, or finishes it if VictoriaLogs serves the restored data already; it does not know what
    another plugin has done to the data. `restore --rollback` makes our exchange without this hook and
    the three around it.
    """


@hookspec
def prove_restore(restore: Restore) -> None:
    """Prove that VictoriaLogs serves what was restored; the data that was there is still kept.

    An exception undoes the restore. If the run is killed, `recover` makes only our own proof.
    """


@hookspec
def after_restore(restore: Restore, error: BaseException | None) -> None:
    """React to the end of the restore: `error` is None if VictoriaLogs serves the restored data.

    Always called if `before_restore` was called, as the last hook. An exception makes the run fail.
    """
