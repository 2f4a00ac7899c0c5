"""The lifecycle as pluggy specifications: the public API for plugins.

The hooks stand in the order in which they are called. Write a module with functions of these names,
mark them with `pluggy.HookimplMarker("vl_borg_hooks")`, and name the module under the entry-point
group `vl_borg_hooks`. A function may leave out arguments that it doesn't need.

Hooks that are marked `firstresult` are steps: the first plugin that returns something other than
None has done the step, and those after it, ours included, aren't asked. All others are occasions:
every plugin is called. No hook is called twice for one occasion, and none runs in parallel with
another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from vl_borg_hooks.plugin.context import Backup, Restore, Target
    from vl_borg_hooks.services import ServiceFactory
    from vl_borg_hooks.staging.manifest import Manifest
    from vl_borg_hooks.transfer import PassResult

hookspec = pluggy.HookspecMarker("vl_borg_hooks")


@hookspec
def service_managers() -> Mapping[str, ServiceFactory]:  # type: ignore[empty-body]
    """Offer service managers by the name they have under `service:` in the config.

    Called whenever a config is read, perhaps several times. An exception makes every command fail.
    """


@hookspec
def before_backup(backup: Backup) -> None:
    """Look whether the backup of this instance can succeed; nothing has been touched yet.

    Called for every instance before the first one's backup begins. An exception ends the run:
    no VictoriaLogs is stopped, every staging copy stays as it was.
    """


@hookspec(firstresult=True)
def warm_pass(backup: Backup) -> PassResult | None:
    """Step: copy the data path to `backup.staging.data` while VictoriaLogs runs.

    Not called where VictoriaLogs was found stopped. The staging copy is unpublished by now. An
    exception ends the run; VictoriaLogs has not been stopped.
    """


@hookspec
def before_stop(target: Target) -> None:
    """Prepare for the stop window, such as by silencing alerts; a backup's or a restore's.

    Not called where VictoriaLogs was found stopped. An exception ends the run; VictoriaLogs has
    not been stopped, and `after_start` is called.
    """


@hookspec(firstresult=True)
def stop_service(target: Target) -> bool | None:
    """Step: ask VictoriaLogs to stop; return True without waiting until it has.

    That it has stopped is then proved by taking the lock of its data directory. An exception ends
    the run after VictoriaLogs was started again.
    """


@hookspec(firstresult=True)
def freeze(backup: Backup) -> bool | None:
    """Step: keep what the final pass has to copy such that VictoriaLogs can start before that.

    In the stop window, the data directory locked. Return False where that can't be done: the final
    pass then comes before the start. An exception ends the run after VictoriaLogs was started
    again; the staging copy stays unpublished.
    """


@hookspec(firstresult=True)
def final_pass(backup: Backup) -> PassResult | None:
    """Step: bring `backup.staging.data` up to date, exactly.

    Where `backup.is_frozen`, from `backup.frozen` while VictoriaLogs serves again; otherwise from
    the data directory, locked, in the stop window or with VictoriaLogs found stopped. Where
    `backup.delta` is None all is to be looked at, else only that. An exception ends the run, with
    VictoriaLogs back in the state it was found in; the staging copy stays unpublished.
    """


@hookspec(firstresult=True)
def start_service(target: Target) -> bool | None:
    """Step: ask VictoriaLogs to start; return True without waiting until it serves.

    The lock of the data directory is free again. An exception is logged and the step is tried
    again until `start_timeout` is over.
    """


@hookspec(firstresult=True)
def is_healthy(target: Target) -> bool | None:
    """Step: tell whether VictoriaLogs serves again; asked every few milliseconds after the start.

    An exception counts as no.
    """


@hookspec
def after_start(target: Target) -> None:
    """Undo what `before_stop` did: VictoriaLogs runs again, or could not be started.

    Called after every `before_stop`, whatever happened in between. An exception makes the run fail.
    """


@hookspec(firstresult=True)
def publish(backup: Backup) -> Manifest | None:
    """Step: verify the staging copy and write its manifest, last and atomically.

    VictoriaLogs is back in the state it was found in. An exception ends the run; the staging copy
    stays unpublished and borgmatic archives nothing.
    """


@hookspec
def after_backup(backup: Backup, error: BaseException | None) -> None:
    """Learn how the backup of this instance went: `error` is None where its copy was published.

    Called whenever the backup itself was begun, as its last hook. An exception makes the run fail.
    """


@hookspec
def before_restore(restore: Restore) -> None:
    """Look whether the restore can succeed; the copy is verified, nothing has been touched yet.

    An exception ends the run.
    """


@hookspec(firstresult=True)
def place_copy(restore: Restore) -> PassResult | None:
    """Step: copy `restore.copy.data` to `restore.incoming` on the data's own filesystem.

    VictoriaLogs still runs on the data that is to be replaced. An exception ends the run;
    VictoriaLogs has not been stopped.
    """


@hookspec
def after_restore(restore: Restore, error: BaseException | None) -> None:
    """Learn how the restore went: `error` is None where VictoriaLogs serves the restored data.

    Always called once `before_restore` was, as the last hook. An exception makes the run fail.
    """
