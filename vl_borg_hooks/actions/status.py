"""`status`: each instance, its state, its staging copy and who archives it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.runs.records import RunRecords
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.transfer.progress import human_bytes, human_seconds
from vl_borg_hooks.victorialogs import stored
from vl_borg_hooks.victorialogs.swap import kept_data

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


@dataclass(frozen=True)
class Replaced:
    """Data that a restore has kept: where, since when, how large, and what it is, in words."""

    path: str
    # None if its name does not say.
    since: datetime | None
    bytes: int
    what: str

    def line(self) -> str:
        """Return it as a line for a person."""
        age = ""
        if self.since:
            seconds = (datetime.now(timezone.utc) - self.since).total_seconds()
            age = f"{human_seconds(seconds)} ago, "
        return (
            f"{self.what}, {age}{human_bytes(self.bytes)}, is kept in {self.path}; to return to "
            "it: vl-borg-hooks restore --rollback; to remove it: vl-borg-hooks restore "
            "--discard-replaced"
        )


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
    # Whether a run has left something that `recover` has to finish, because it was killed or failed.
    unfinished: bool
    # Which command it was; empty if that is not known.
    unfinished_command: str = ""
    # The data that restores have kept.
    replaced: tuple[Replaced, ...] = ()

    @property
    def _what_is_unfinished(self) -> str:
        what = f"a {self.unfinished_command}" if self.unfinished_command else "a run"
        return f"{what} was cut short: vl-borg-hooks recover finishes it"

    def lines(self) -> list[str]:
        """Return it as lines for a person."""
        copy = self.manifest
        if copy is None:
            archived = "staging copy: not published"
        else:
            window = copy.downtime_seconds
            away = "not stopped for it" if window is None else f"away for {window:.2f} s"
            if copy.consistency_why:
                away += f" ({copy.consistency_why})"
            archived = (
                f"staging copy: published {copy.created}, {copy.rows:,} rows, "
                f"{human_bytes(copy.bytes)}; VictoriaLogs {away}, final pass {copy.final_pass}"
            )
        return [
            f"{self.instance}: VictoriaLogs {self.victorialogs} ({self.service})",
            f"  {archived}",
            *([f"  archived by {self.lease}"] if self.lease else []),
            *([f"  a run is in progress: {self.run}"] if self.run else []),
            *([f"  {self._what_is_unfinished}"] if self.unfinished else []),
            *(f"  {replaced.line()}" for replaced in self.replaced),
        ]


def _unfinished_command(records: RunRecords) -> str:
    try:
        journal = records.journal()
    except InvalidCopy:
        return ""
    return journal.command if journal else ""


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
        state = target.service.state()
        if state is ServiceState.STOPPED and target.instance.service:
            # Or is it not even there?
            target.service.check()
        victorialogs = state.value
    except OperatorError as error:
        victorialogs = f"unknown: {error}"
    run = records.run_that_is_on()
    unfinished = (records.has_journal or records.has_snapshots) and not run
    return Overview(
        instance=target.name,
        service=target.service.description,
        victorialogs=victorialogs,
        manifest=manifest,
        lease=_lease(records),
        run=run,
        unfinished=unfinished,
        unfinished_command=_unfinished_command(records) if unfinished else "",
        replaced=_replaced(target),
    )


def _lease(records: RunRecords) -> str:
    """Return who archives the staging copy and for how long so far, empty if nobody does."""
    holder = records.lease_holder()
    return f"{holder}, for {human_seconds(holder.age)} now" if holder else ""


def _replaced(target: Target) -> tuple[Replaced, ...]:
    """Return the data that restores have kept; none if the host can't be asked, as its state says."""
    try:
        return tuple(
            Replaced(kept.path, kept.since, stored.disk_bytes(target.host, kept.path), kept.what)
            for kept in kept_data(target.host, target.data_directory)
        )
    except OperatorError:
        return ()
