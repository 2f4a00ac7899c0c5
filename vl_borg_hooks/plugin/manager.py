"""The plugin manager: the built-in steps, then all installed plugins, in the same way."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points

import pluggy
from pydantic import BaseModel

from vl_borg_hooks import PLUGINS, config
from vl_borg_hooks.config import LoadedConfig, OptionsError
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin import hookspecs
from vl_borg_hooks.plugin.context import Additions
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.system.yaml import Location


def load(built_in: Iterable[str], *, installed: bool = True) -> Hooks:
    """Return the hooks of the modules `built_in` and, if wanted, of all plugins that are `installed`.

    Installed plugins are registered after the built-in ones, so pluggy calls them first: their step
    replaces ours if it returns a result, and runs before ours if it returns None. Raises
    OperatorError if a plugin can't be loaded, because a backup that silently goes on without it
    might not be a backup.
    """
    manager = pluggy.PluginManager(PLUGINS)
    manager.add_hookspecs(hookspecs)
    for name in built_in:
        manager.register(importlib.import_module(name), name)
    try:
        if installed:
            manager.load_setuptools_entrypoints(PLUGINS)
        manager.check_pending()
    except Exception as error:
        name = _that_can_not_be_loaded()
        raise OperatorError(
            f"the plugin {name} could not be loaded: {error}"
            if name
            else f"a plugin could not be loaded: {error}",
            hint="fix or uninstall that plugin",
        ) from error
    return Hooks(manager.hook)


def _that_can_not_be_loaded() -> str:
    """Return the name of the plugin that can't be loaded, empty if that is not why it failed."""
    for plugin in entry_points(group=PLUGINS):
        try:
            plugin.load()
        except Exception:  # noqa: BLE001 - whatever a plugin may raise
            return plugin.name
    return ""


def additions(hooks: Hooks, loaded: LoadedConfig, sections: Mapping[str, object]) -> Additions:
    """Return what the plugins add to the config, which has the `sections` under `plugins:`.

    Raises ConfigError for wrong sections, OperatorError if two plugins have the same one.
    """
    services = {
        name: make for offered in hooks.service_managers() for name, make in offered.items()
    }
    models: dict[str, type[BaseModel]] = {}
    for name, model in [pair for offered in hooks.plugin_options() for pair in offered.items()]:
        if name in models or model in models.values():
            raise OperatorError(
                f"two plugins have options under plugins: {name}:", hint="uninstall one of them"
            )
        models[name] = model
    problems: list[tuple[Location, str]] = [
        (("plugins", name), _unknown(name, list(models))) for name in sections if name not in models
    ]
    options: dict[type[BaseModel], BaseModel] = {}
    for name, model in models.items():
        try:
            options[model] = config.options(model, sections.get(name, {}))
        except OptionsError as error:
            problems += error.below(("plugins", name))
    if problems:
        raise loaded.errors(problems)
    return Additions(services, options)


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return "no installed plugin has options"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0)
    return f"no plugin has this section; the nearest is {nearest[0]}"
