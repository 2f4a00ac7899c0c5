"""`recover`: finish what a killed run left. The guard runs it too."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting, explained
from vl_borg_hooks.errors import Busy
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.stop_window import guard, window
from vl_borg_hooks.stop_window.recovery import recover
from vl_borg_hooks.system.log import logger

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


def recover_all(loaded: LoadedConfig, instances: Sequence[Instance], *, wait: bool) -> None:
    """Finish what a killed run left of `instances`; with `wait`, wait for the current run first.

    Without `wait`, a current run is not an error: it finishes by itself.
    """
    setting = _setting(loaded)
    for instance in instances:
        target = setting.target(instance)
        records = target.records
        alone = partial(records.run_lock, "recover", wait=None)
        try:
            with explained(target):
                if wait:
                    guard.on_guard()
                with alone() if wait else records.run_lock("recover", wait=0):
                    seconds = _recover_one(setting.hooks, target)
                # Without the run lock: a new backup does not have to wait for us.
                window.watch(setting.hooks, target, seconds, alone)
        except Busy as busy:
            logger.info("%s: nothing to recover", busy)


def _setting(loaded: LoadedConfig) -> Setting:
    """Return the config with its plugins, or if they can't be used without the installed ones.

    A broken plugin must not be the reason that VictoriaLogs stays down.
    """
    try:
        return Setting(loaded)
    except Exception as error:  # noqa: BLE001 - whatever a plugin may raise
        logger.warning("recovering without plugins: %s", error)
        return Setting(loaded, installed=False)


def _recover_one(hooks: Hooks, target: Target) -> float:
    """Recover, and return for how many seconds VictoriaLogs has to be watched after that."""
    seconds = 0.0
    journal = target.records.journal()
    if journal is None:
        target.reporter.say("nothing to recover")
    elif journal.found_running:
        seconds = window.stop_may_come(target)
    recover(hooks, target)
    if target.records.lease_holder() is None:
        target.records.release_lease()
    return seconds
