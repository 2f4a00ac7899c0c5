"""The plugin manager: the built-in steps, then everybody else's, by the same door."""

from __future__ import annotations

import importlib
from functools import cache
from typing import TYPE_CHECKING

import pluggy

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin import hookspecs

if TYPE_CHECKING:
    from vl_borg_hooks.services import ServiceFactory

PROJECT = "vl_borg_hooks"
hookimpl = pluggy.HookimplMarker(PROJECT)

BUILT_IN = (
    "vl_borg_hooks.services.systemd",
    "vl_borg_hooks.services.command",
    "vl_borg_hooks.stop_window.window",
    "vl_borg_hooks.steps.space",
    "vl_borg_hooks.steps.passes",
    "vl_borg_hooks.steps.publish",
)


@cache
def manager() -> pluggy.PluginManager:
    """Return the plugin manager with all plugins registered.

    Plugins that were installed by others come after the built-in ones, so that pluggy asks them
    first: a third party's step takes the place of ours by answering, and stands beside it by
    returning None. Raises OperatorError for a plugin that can't be loaded, since a backup that
    silently does without one might be no backup.
    """
    plugin_manager = pluggy.PluginManager(PROJECT)
    plugin_manager.add_hookspecs(hookspecs)
    for name in BUILT_IN:
        plugin_manager.register(importlib.import_module(name), name)
    try:
        plugin_manager.load_setuptools_entrypoints(PROJECT)
        plugin_manager.check_pending()
    except Exception as error:
        raise OperatorError(
            f"a plugin could not be loaded: {error}", hint="mend or uninstall that plugin"
        ) from error
    return plugin_manager


def service_factories() -> dict[str, ServiceFactory]:
    """Return the service managers of all plugins by the name that the config gives them."""
    factories: dict[str, ServiceFactory] = {}
    # pluggy asks the last registered first; reversed, a third party's entry wins over ours.
    for offered in reversed(manager().hook.service_managers()):
        factories.update(offered)
    return factories
