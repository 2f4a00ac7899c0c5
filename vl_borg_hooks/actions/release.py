"""`after-create`: the way out of a backup.

Apart from backup.py, whose imports would be most of the time that this takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from vl_borg_hooks.runs.borgmatic import calling_process
from vl_borg_hooks.runs.records import InstanceState

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig

Say = Callable[[str], None]


def release(loaded: LoadedConfig, instances: Sequence[Instance], say: Say) -> None:
    """Give back the leases that the borgmatic which runs us has; safe at any time, any number."""
    holder = calling_process()
    for instance in instances:
        state = InstanceState(loaded.config.state_directory, instance.name)
        lease = state.lease_holder()
        # The lease of another living borgmatic isn't ours to give back: it still archives.
        if lease is None or lease.pid == holder.pid:
            state.release_lease()
        else:
            say(f"{instance.name}: {lease} keeps its lease")
