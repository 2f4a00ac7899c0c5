"""`after-create`: the end of a backup. It is called often, so it imports little."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from vl_borg_hooks import PLUGINS
from vl_borg_hooks.runs.caller import calling_process
from vl_borg_hooks.runs.records import FORCE_RELEASE, RunRecords
from vl_borg_hooks.system.log import logger

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig
    from vl_borg_hooks.runs.holder import Holder


def release(loaded: LoadedConfig, instances: Sequence[Instance], *, force: bool) -> None:
    """Release the leases of whoever calls us; safe at any time, any number of times.

    With `force`, those of anybody.
    """
    holder = calling_process()
    released: list[Instance] = []
    for instance in instances:
        records = RunRecords(loaded.config.state_directory, instance.name)
        records.create()
        if force or _is_over(instance, records.lease_holder(), holder):
            records.release_lease()
            released.append(instance)
    # Most have none, and to import what loads them takes longer than all of the above.
    if entry_points(group=PLUGINS):
        _tell_plugins(loaded, released)


def _is_over(instance: Instance, lease: Holder | None, caller: Holder) -> bool:
    """Say whether `caller` may release `lease`; if not, say who has it."""
    if lease is None or lease.is_same(caller):
        return True
    # Called by hand or from afar, as `before-create` was: nothing else can tell that it is over.
    if lease.is_limited and caller.is_limited:
        return True
    logger.warning(
        "%s: %s keeps its lease; if nothing archives the staging copy: %s",
        *(instance.name, lease, FORCE_RELEASE),
    )
    return False


def _tell_plugins(loaded: LoadedConfig, released: Sequence[Instance]) -> None:
    """Call `after_release`; raises OperatorError for a plugin that can't be loaded."""
    from vl_borg_hooks.plugin import manager
    from vl_borg_hooks.plugin.context import Release

    # Without our own steps: none of them does anything here.
    hooks = manager.load(())
    additions = manager.additions(hooks, loaded, loaded.config.plugins)
    for instance in released:
        hooks.after_release(Release(instance, additions))
