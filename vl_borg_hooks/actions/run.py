"""What every action needs: the plugins, an exclusive run, checks, errors with their instance."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from vl_borg_hooks import steps
from vl_borg_hooks.errors import OperatorError, unexpected
from vl_borg_hooks.plugin import manager
from vl_borg_hooks.plugin.checks import Check
from vl_borg_hooks.plugin.context import Additions, Backup, Restore, Target
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.records import RunRecords
from vl_borg_hooks.stop_window.found import DOWN, describe_state
from vl_borg_hooks.system.signals import Interrupted

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig
    from vl_borg_hooks.staging.copy import StagingCopy
    from vl_borg_hooks.staging.manifest import Manifest


class Setting:
    """A config with its plugins. Makes the objects that hooks are called with."""

    def __init__(self, loaded: LoadedConfig, *, installed: bool = True) -> None:
        self.loaded = loaded
        self.hooks: Hooks = manager.load(steps.BUILT_IN, installed=installed)
        sections = loaded.config.plugins if installed else {}
        self._additions: Additions = manager.additions(self.hooks, loaded, sections)

    def target(self, instance: Instance) -> Target:
        """Return `instance` for a recovery or for `status`; raises ConfigError."""
        return Target(self.loaded, instance, self._additions, self.records(instance))

    def backup(self, instance: Instance) -> Backup:
        """Return `instance` for a backup; raises ConfigError."""
        return Backup(self.loaded, instance, self._additions, self.records(instance))

    def restore(
        self,
        instance: Instance,
        copy: StagingCopy,
        manifest: Manifest,
        *,
        start: bool,
        discard: bool = False,
    ) -> Restore:
        """Return `instance` for a restore of `copy`; raises ConfigError."""
        records = self.records(instance)
        return Restore(
            *(self.loaded, instance, self._additions, records, copy, manifest),
            start_if_stopped=start,
            discard_replaced=discard,
        )

    def records(self, instance: Instance) -> RunRecords:
        """Return what runs have left of `instance`."""
        return RunRecords(self.loaded.config.state_directory, instance.name)


@contextlib.contextmanager
def exclusive(target: Target, command: str) -> Iterator[None]:
    """Hold the run lock of `target`'s instance and keep its host connected; raises Busy.

    If a recovery holds it, it is waited for as long as one try may take, and then it is our turn.
    """
    with contextlib.ExitStack() as stack:
        try:
            for_recovery = target.instance.longest_recovery
            stack.enter_context(target.records.run_lock(command, for_recovery=for_recovery))
            stack.enter_context(target.host.connected())
        except OperatorError as error:
            error.instance = error.instance or target.name
            raise
        yield


@contextlib.contextmanager
def explained(target: Target) -> Iterator[None]:
    """Add the instance and the state of VictoriaLogs to any failure in this block."""
    try:
        yield
    except Interrupted as interrupted:
        _explain(target, interrupted.error)
        raise
    except Exception as caught:
        error = caught if isinstance(caught, OperatorError) else unexpected(caught)
        _explain(target, error)
        if error is caught:
            raise
        raise error from caught


def require(target: Target, checks: Sequence[Check]) -> None:
    """Raise OperatorError for the first of `checks` that failed, and warn of the others."""
    failed = [check for check in checks if not check.ok]
    for check in failed[1:]:
        target.reporter.warn("; ".join(filter(None, (check.what, check.hint))))
    if failed:
        raise OperatorError(failed[0].what, hint=failed[0].hint)


def _explain(target: Target, error: OperatorError) -> None:
    error.instance = error.instance or target.name
    if error.victorialogs:
        return
    error.victorialogs = describe_state(target)
    if error.victorialogs == DOWN:
        error.hint = "; ".join(filter(None, (error.hint, f"run: {_to_start(target)}")))


def _to_start(target: Target) -> str:
    """Return what brings VictoriaLogs back: if data was being replaced, a start alone does not."""
    with contextlib.suppress(OperatorError):
        if not target.records.has_journal:
            return target.service.start_command()
    return "vl-borg-hooks recover"
