"""`status`: each instance, its state, its staging copy and who archives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.transfer.progress import human_bytes

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


@dataclass(frozen=True)
class Overview:
    """What is known about one instance now."""

    instance: str
    service: str
    # `running` or `stopped`, or why that is not known.
    victorialogs: str
    # None if the staging copy is not published.
    manifest: Manifest | None
    # Who archives the staging copy now; empty if no one does.
    lease: str
    # The current run; empty if there is none.
    run: str
    # Whether a run was killed and `recover` still has to finish it.
    unfinished: bool

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        copy = self.manifest
        if copy is None:
            archived = "staging copy: not published"
        else:
            window = copy.downtime_seconds
            away = "not stopped for it" if window is None else f"away for {window:.2f} s"
            archived = (
                f"staging copy: published {copy.created}, {copy.rows} rows, "
                f"{human_bytes(copy.bytes)}; VictoriaLogs {away}, final pass {copy.final_pass}"
            )
        return [
            f"{self.instance}: VictoriaLogs {self.victorialogs} ({self.service})",
            f"  {archived}",
            *([f"  archived by {self.lease}"] if self.lease else []),
            *([f"  a run is in progress: {self.run}"] if self.run else []),
            *(["  a run was killed: vl-borg-hooks recover finishes it"] if self.unfinished else []),
        ]


def status(loaded: LoadedConfig, instances: Sequence[Instance]) -> list[Overview]:
    """Return what is known about each of `instances`.

    Raises OperatorError for a wrong config, and for a state directory that can't be read.
    """
    setting = Setting(loaded)
    return [_overview(setting.target(instance)) for instance in instances]


def _overview(target: Target) -> Overview:
    try:
        return _look(target)
    except OperatorError as error:
        error.instance = error.instance or target.name
        raise


def _look(target: Target) -> Overview:
    records = target.records
    try:
        manifest = StagingCopy(Path(target.instance.staging_path)).manifest()
    except InvalidCopy:
        manifest = None
    try:
        victorialogs = target.service.state().value
    except OperatorError as error:
        victorialogs = f"unknown: {error}"
    run = records.run_that_is_on()
    return Overview(
        instance=target.name,
        service=target.service.description,
        victorialogs=victorialogs,
        manifest=manifest,
        lease=str(records.lease_holder() or ""),
        run=run,
        unfinished=records.has_journal and not run,
    )
