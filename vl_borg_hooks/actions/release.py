"""`after-create`: the end of a backup. It is called often, so it imports little."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from vl_borg_hooks import PLUGINS
from vl_borg_hooks.runs.borgmatic import calling_process
from vl_borg_hooks.runs.records import RunRecords
from vl_borg_hooks.system.log import logger

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


def release(loaded: LoadedConfig, instances: Sequence[Instance]) -> None:
    """Release the leases of the borgmatic that runs us; safe at any time, any number of times."""
    holder = calling_process()
    released: list[Instance] = []
    for instance in instances:
        records = RunRecords(loaded.config.state_directory, instance.name)
        records.create()
        lease = records.lease_holder()
        # Another running borgmatic still archives, so it keeps its lease.
        if lease is None or lease.pid == holder.pid:
            records.release_lease()
            released.append(instance)
        else:
            logger.warning("%s: %s keeps its lease", instance.name, lease)
    # Most have none, and to import what loads them takes longer than all of the above.
    if entry_points(group=PLUGINS):
        _tell_plugins(loaded, released)


def _tell_plugins(loaded: LoadedConfig, released: Sequence[Instance]) -> None:
    """Call `after_release`; raises OperatorError for a plugin that can't be loaded."""
    from vl_borg_hooks.plugin import manager
    from vl_borg_hooks.plugin.context import Release

    # Without our own steps: none of them does anything here.
    hooks = manager.load(())
    additions = manager.additions(hooks, loaded, loaded.config.plugins)
    for instance in released:
        hooks.after_release(Release(instance, additions))
