"""`config validate`: check the config file and what it names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting
from vl_borg_hooks.config import ConfigError, describe
from vl_borg_hooks.errors import OperatorError

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


def problems(loaded: LoadedConfig, instances: Sequence[Instance]) -> list[str]:
    """Return what is wrong with what the config names for `instances`, one line each.

    Raises ConfigError if the section of a plugin is wrong.
    """
    setting = Setting(loaded)
    found: list[str] = []
    for instance in instances:
        try:
            checks = setting.hooks.backup_checks(setting.backup(instance))
        except ConfigError as error:
            found += error.errors
        else:
            location = ("instances", loaded.config.instances.index(instance))
            found += [
                describe(
                    loaded.path,
                    loaded.lines,
                    location,
                    str(OperatorError(check.what, hint=check.hint)),
                )
                for check in checks
                if not check.ok
            ]
    return found
