"""`restore --rollback` and `restore --discard-replaced`: return to replaced data, or remove it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vl_borg_hooks.actions import consent
from vl_borg_hooks.actions.run import Setting, exclusive, explained
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.runs.records import Expected
from vl_borg_hooks.steps import ready
from vl_borg_hooks.steps.replace import Exchange, exchange
from vl_borg_hooks.stop_window import proof
from vl_borg_hooks.stop_window.recovery import recover
from vl_borg_hooks.transfer.progress import human_bytes
from vl_borg_hooks.victorialogs import stored
from vl_borg_hooks.victorialogs.swap import Kept, Swap, kept_data, refuse_planted

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


def roll_back(
    loaded: LoadedConfig,
    instances: Sequence[Instance],
    *,
    start: bool,
    discard: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """Return each of `instances` that has replaced data to that data, with the proof of a restore.

    What it replaces is kept in turn, unless `discard` is set. Raises OperatorError; the data that was
    there before is then in place again.
    """
    setting = Setting(loaded)
    targets = _with_kept_data(setting, instances)
    if not targets:
        raise OperatorError(
            "there is no replaced data to return to",
            hint="vl-borg-hooks status shows what is kept",
        )
    for target in targets:
        target.command = "restore --rollback"
        target.replaces_data = True
        with exclusive(target, target.command), explained(target):
            if not dry_run:
                recover(setting.hooks, target)
            _require_usable(target)
            kept = _the_kept(target)
            wanted = _wanted(target, kept, start=start, discard=discard)
            _say(target, wanted, kept, yes=yes, dry_run=dry_run)
            if not dry_run:
                exchange(setting.hooks, wanted)
                target.reporter.result(f"returned to {_rows(wanted.expected)} of the {kept.what}")


def discard_replaced(loaded: LoadedConfig, instances: Sequence[Instance], *, dry_run: bool) -> None:
    """Remove the data that restores of `instances` have replaced; raises OperatorError."""
    setting = Setting(loaded)
    targets = _with_kept_data(setting, instances)
    for target in targets:
        with exclusive(target, "restore --discard-replaced"), explained(target):
            if dry_run:
                for kept in kept_data(target.host, target.data_directory):
                    target.reporter.result(f"would remove {_described(target, kept)}")
                continue
            refuse_planted(target.host, target.data_directory)
            # It may need what is kept.
            recover(setting.hooks, target)
            for kept in kept_data(target.host, target.data_directory):
                said = _described(target, kept)
                Swap(target.host, target.data_directory).discard(kept)
                target.reporter.result(f"removed {said}")
    for instance in instances:
        if instance.name not in [target.name for target in targets]:
            setting.target(instance).reporter.result("no replaced data is kept")


def _with_kept_data(setting: Setting, instances: Sequence[Instance]) -> list[Target]:
    targets = [setting.target(instance) for instance in instances]
    return [target for target in targets if kept_data(target.host, target.data_directory)]


def _require_usable(target: Target) -> None:
    """Raise OperatorError if the data of `target` can't be exchanged; sets `target.found`."""
    target.host.check()
    target.service.check()
    refuse_planted(target.host, target.data_directory)
    ready.found_by_service(target)


def _wanted(target: Target, kept: Kept, *, start: bool, discard: bool) -> Exchange:
    """Return the exchange with `kept`; raises OperatorError if VictoriaLogs would delete it all."""
    expected = _expected(target, kept)
    ready.limits_of(target, expected)
    return Exchange(
        target=target,
        source=kept.source,
        expected=expected,
        prove=lambda: proof.prove(target, expected),
        start_if_stopped=start,
        discard=discard,
    )


def _the_kept(target: Target) -> Kept:
    found = kept_data(target.host, target.data_directory)
    if len(found) != 1:
        raise OperatorError(
            f"there is not one set of kept data, but {len(found)}: "
            f"{', '.join(f'{kept.path} ({kept.what})' for kept in found) or 'none'}",
            hint="move those away that you do not want to return to",
        )
    return found[0]


def _expected(target: Target, kept: Kept) -> Expected:
    """Return what is served with `kept` in place; of damaged data, that is not known."""
    size = stored.disk_bytes(target.host, kept.path)
    try:
        rows = stored.rows_by_day(target.host, kept.path)
    except OperatorError as error:
        target.reporter.warn(f"{error}: that it is served can't be proved by its rows")
        rows = {}
    return Expected(rows, size, stored.has_deletions(target.host, kept.path))


def _say(target: Target, wanted: Exchange, kept: Kept, *, yes: bool, dry_run: bool) -> None:
    rows = sum(wanted.expected.rows.values()) if wanted.expected.rows else None
    statement = consent.replaced(target, rows, f"the {kept.what}", discard=wanted.discard)
    if not dry_run:
        consent.ask(target, statement, yes=yes)
        return
    if statement:
        target.reporter.warn(statement)
    target.reporter.result(f"would return to {_rows(wanted.expected)} of the {kept.what}")


def _rows(expected: Expected) -> str:
    return f"the {sum(expected.rows.values())} rows" if expected.rows else "the data"


def _described(target: Target, kept: Kept) -> str:
    return f"{kept.path} ({kept.what}): {human_bytes(stored.disk_bytes(target.host, kept.path))}"
