"""`config validate`: not only is the file well formed, but is what it names there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vl_borg_hooks.actions import backup
from vl_borg_hooks.config import ConfigError, describe
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


def problems(loaded: LoadedConfig, instances: Sequence[Instance]) -> list[str]:
    """Return what is wrong with what the config names for `instances`, one line each."""
    found: list[str] = []
    for instance in instances:
        location = ("instances", loaded.config.instances.index(instance))
        try:
            backup.check_ready(Target(**backup.target_fields(loaded, instance, _silent)))
        except ConfigError as error:
            found += error.errors
        except OperatorError as error:
            found.append(describe(loaded.path, loaded.lines, location, str(error)))
    return found


def _silent(message: str) -> None:
    """Take the progress of a check, which has none."""
