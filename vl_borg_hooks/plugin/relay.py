"""The hooks as typed calls, because the calls of pluggy's own relay have no types."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Any

from vl_borg_hooks.errors import PLUGIN, OperatorError

if TYPE_CHECKING:
    import pluggy
    from pydantic import BaseModel

    from vl_borg_hooks.plugin.checks import Check
    from vl_borg_hooks.plugin.context import Backup, Copied, Release, Restore, Target
    from vl_borg_hooks.services import ServiceFactory
    from vl_borg_hooks.staging.manifest import Manifest
    from vl_borg_hooks.transfer import PassResult

# How the names of our own steps begin, and where all our code is.
OURS = "vl_borg_hooks."
_PACKAGE = Path(__file__).parents[1]


class Hooks:
    """Calls each hook of all plugins; hookspecs says what each hook is for."""

    def __init__(self, relay: pluggy.HookRelay) -> None:
        self._relay = relay

    def _hook(self, name: str, **arguments: object) -> Any:
        """Call the hook `name` of all plugins; an exception then knows which plugin it came out of."""
        hook: pluggy.HookCaller = getattr(self._relay, name)
        try:
            return hook(**arguments)
        except BaseException as error:
            _name_plugin(hook, error)
            raise

    def service_managers(self) -> list[Mapping[str, ServiceFactory]]:
        """Call the hook; the results of later plugins, which win, come last."""
        return list(reversed(self._hook("service_managers")))

    def plugin_options(self) -> list[Mapping[str, type[BaseModel]]]:
        """Call the hook; the results of later plugins come last."""
        return list(reversed(self._hook("plugin_options")))

    def before_backup(self, backup: Backup) -> None:
        """Call the hook."""
        self._hook("before_backup", backup=backup)

    def backup_checks(self, backup: Backup) -> list[Check]:
        """Call the hook; ours come first."""
        return _all(self._hook("backup_checks", backup=backup))

    def make_copy(self, backup: Backup) -> Copied:
        """Call the hook."""
        # Imported here: `after-create`, which is called often, does not need it.
        from vl_borg_hooks.plugin.context import Copied

        copied = self._hook("make_copy", backup=backup, hooks=self)
        if not isinstance(copied, Copied):
            raise OperatorError(
                f"make_copy of a plugin returned {copied!r}, which is not a Copied",
                hint="correct or uninstall that plugin",
            )
        return copied

    def before_stop(self, target: Target) -> None:
        """Call the hook."""
        self._hook("before_stop", target=target)

    def stop_service(self, target: Target) -> None:
        """Call the hook."""
        self._hook("stop_service", target=target)

    def start_service(self, target: Target) -> None:
        """Call the hook."""
        self._hook("start_service", target=target)

    def is_healthy(self, target: Target) -> bool:
        """Call the hook."""
        return bool(self._hook("is_healthy", target=target))

    def after_start(self, target: Target) -> None:
        """Call the hook."""
        self._hook("after_start", target=target)

    def publish(self, backup: Backup, copied: Copied) -> Manifest:
        """Call the hook."""
        manifest: Manifest = self._hook("publish", backup=backup, copied=copied)
        return manifest

    def after_backup(
        self,
        backup: Backup,
        copied: Copied | None,
        manifest: Manifest | None,
        error: BaseException | None,
    ) -> None:
        """Call the hook."""
        self._hook("after_backup", backup=backup, copied=copied, manifest=manifest, error=error)

    def after_release(self, release: Release) -> None:
        """Call the hook."""
        self._hook("after_release", release=release)

    def before_restore(self, restore: Restore) -> None:
        """Call the hook."""
        self._hook("before_restore", restore=restore)

    def restore_checks(self, restore: Restore) -> list[Check]:
        """Call the hook; ours come first."""
        return _all(self._hook("restore_checks", restore=restore))

    def put_in_place(self, restore: Restore) -> PassResult:
        """Call the hook."""
        result: PassResult = self._hook("put_in_place", restore=restore, hooks=self)
        return result

    def prove_restore(self, restore: Restore) -> None:
        """Call the hook."""
        self._hook("prove_restore", restore=restore)

    def after_restore(self, restore: Restore, error: BaseException | None) -> None:
        """Call the hook."""
        self._hook("after_restore", restore=restore, error=error)


def _name_plugin(hook: pluggy.HookCaller, error: BaseException) -> None:
    """Note which plugin `error` came out of, if it is not one of ours.

    If that is an OperatorError which the plugin's own code raised, its text says so. One that our code
    raised, which the plugin has called, is about something else.
    """
    if hasattr(error, PLUGIN):
        return
    names = {_code(each.function): each.plugin_name for each in hook.get_hookimpls()}
    frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
    found = [index for index, code in enumerate(frames) if code in names]
    # The last one: a wrapper of another plugin may be around it.
    name = names[frames[found[-1]]] if found else ""
    if not name or name.startswith(OURS):
        return
    setattr(error, PLUGIN, name)
    inside = frames[found[-1] :]
    if isinstance(error, OperatorError) and not any(map(_is_ours, inside)):
        error.what = f"the plugin {name}: {error.what}"


def _code(function: Callable[..., object]) -> object:
    return getattr(function, "__code__", None)


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(f"{_PACKAGE}/")


def _all(results: list[Iterable[Check]]) -> list[Check]:
    """Return the checks of all plugins; pluggy calls the last registered first."""
    return [check for result in reversed(results) for check in result]
