"""The hooks as typed calls, because the calls of pluggy's own relay have no types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from vl_borg_hooks.errors import OperatorError

if TYPE_CHECKING:
    import pluggy
    from pydantic import BaseModel

    from vl_borg_hooks.plugin.checks import Check
    from vl_borg_hooks.plugin.context import Backup, Copied, Release, Restore, Target
    from vl_borg_hooks.services import ServiceFactory
    from vl_borg_hooks.staging.manifest import Manifest
    from vl_borg_hooks.transfer import PassResult


class Hooks:
    """Calls each hook of all plugins; hookspecs says what each hook is for."""

    def __init__(self, relay: pluggy.HookRelay) -> None:
        self._relay = relay

    def service_managers(self) -> list[Mapping[str, ServiceFactory]]:
        """Call the hook; the results of later plugins, which win, come last."""
        return list(reversed(self._relay.service_managers()))

    def plugin_options(self) -> list[Mapping[str, type[BaseModel]]]:
        """Call the hook; the results of later plugins come last."""
        return list(reversed(self._relay.plugin_options()))

    def before_backup(self, backup: Backup) -> None:
        """Call the hook."""
        self._relay.before_backup(backup=backup)

    def backup_checks(self, backup: Backup) -> list[Check]:
        """Call the hook; ours come first."""
        return _all(self._relay.backup_checks(backup=backup))

    def make_copy(self, backup: Backup) -> Copied:
        """Call the hook."""
        # Imported here: `after-create`, which is called often, does not need it.
        from vl_borg_hooks.plugin.context import Copied

        copied = self._relay.make_copy(backup=backup, hooks=self)
        if not isinstance(copied, Copied):
            raise OperatorError(
                f"make_copy of a plugin returned {copied!r}, which is not a Copied",
                hint="correct or uninstall that plugin",
            )
        return copied

    def before_stop(self, target: Target) -> None:
        """Call the hook."""
        self._relay.before_stop(target=target)

    def stop_service(self, target: Target) -> None:
        """Call the hook."""
        self._relay.stop_service(target=target)

    def start_service(self, target: Target) -> None:
        """Call the hook."""
        self._relay.start_service(target=target)

    def is_healthy(self, target: Target) -> bool:
        """Call the hook."""
        return bool(self._relay.is_healthy(target=target))

    def after_start(self, target: Target) -> None:
        """Call the hook."""
        self._relay.after_start(target=target)

    def publish(self, backup: Backup, copied: Copied) -> Manifest:
        """Call the hook."""
        manifest: Manifest = self._relay.publish(backup=backup, copied=copied)
        return manifest

    def after_backup(
        self,
        backup: Backup,
        copied: Copied | None,
        manifest: Manifest | None,
        error: BaseException | None,
    ) -> None:
        """Call the hook."""
        self._relay.after_backup(backup=backup, copied=copied, manifest=manifest, error=error)

    def after_release(self, release: Release) -> None:
        """Call the hook."""
        self._relay.after_release(release=release)

    def before_restore(self, restore: Restore) -> None:
        """Call the hook."""
        self._relay.before_restore(restore=restore)

    def restore_checks(self, restore: Restore) -> list[Check]:
        """Call the hook; ours come first."""
        return _all(self._relay.restore_checks(restore=restore))

    def put_in_place(self, restore: Restore) -> PassResult:
        """Call the hook."""
        result: PassResult = self._relay.put_in_place(restore=restore, hooks=self)
        return result

    def prove_restore(self, restore: Restore) -> None:
        """Call the hook."""
        self._relay.prove_restore(restore=restore)

    def after_restore(self, restore: Restore, error: BaseException | None) -> None:
        """Call the hook."""
        self._relay.after_restore(restore=restore, error=error)


def _all(results: list[Iterable[Check]]) -> list[Check]:
    """Return the checks of all plugins; pluggy calls the last registered first."""
    return [check for result in reversed(results) for check in result]
