"""`restore` and `after-extract`: the order of a restore. Each step is in its plugin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks.actions import consent
from vl_borg_hooks.actions.run import Setting, exclusive, explained, require
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.plugin.context import Restore
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.borgmatic import extract_destination
from vl_borg_hooks.staging.copy import NoCopy, StagingCopy, find_copies
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.staging.verify import verify
from vl_borg_hooks.stop_window.recovery import recover
from vl_borg_hooks.system.log import logger
from vl_borg_hooks.transfer.progress import human_bytes

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


def restore(
    loaded: LoadedConfig,
    instances: Sequence[Instance],
    root: Path,
    *,
    start: bool,
    discard: bool,
    yes: bool,
    dry_run: bool,
    every: bool = False,
) -> None:
    """Restore each of `instances` that has a copy at or below `root`.

    With `start`, a VictoriaLogs that was found stopped is left running; with `discard`, the data that
    is replaced is removed after the proof, and not kept; with `yes`, nobody is asked whether it may
    be replaced; with `every`, an instance without a copy is an error, before anything is changed.
    Raises NoCopy if there is none to restore, OperatorError for any other failure; the data that was
    there before is then in place again.
    """
    copies, unreadable = copies_by_instance(root, [instance.name for instance in instances])
    chosen = [instance for instance in instances if instance.name in copies]
    missing = [instance.name for instance in instances if instance.name not in copies]
    if not chosen or (missing and every):
        if unreadable:
            # It may be the one that is missing.
            raise unreadable[0]
        raise NoCopy(
            f"{root} holds copies of {', '.join(sorted(copies))}, none of {', '.join(missing)}",
            hint="check that this is the right archive, and the right config",
        )
    for problem in unreadable:
        logger.warning("%s: not restored", problem.what)
    if missing:
        logger.warning("%s holds no copy of %s: not restored", root, ", ".join(missing))
    setting = Setting(loaded)
    for instance in chosen:
        copy, manifest = copies[instance.name]
        target = setting.restore(instance, copy, manifest, start=start, discard=discard)
        with exclusive(target, "restore"), explained(target):
            _restore_one(setting.hooks, target, yes=yes, dry_run=dry_run)


def restore_as(
    loaded: LoadedConfig,
    name: str,
    root: Path,
    *,
    of: Sequence[str],
    start: bool,
    discard: bool,
    yes: bool,
    dry_run: bool,
) -> None:
    """Restore the one copy at or below `root`, of whatever instance it is, into the instance `name`.

    Of several copies, the one of the instance that `of` names. Everything else as in `restore`.
    """
    (instance,) = loaded.instances([name])
    copy, manifest = one_copy(root, of)
    setting = Setting(loaded)
    target = setting.restore(instance, copy, manifest, start=start, discard=discard)
    with exclusive(target, "restore"), explained(target):
        _restore_one(setting.hooks, target, yes=yes, dry_run=dry_run)


def one_copy(root: Path, names: Sequence[str]) -> tuple[StagingCopy, Manifest]:
    """Return the one copy at or below `root`; of several, that of the instance that `names` has.

    Raises OperatorError if there is none, or more than one.
    """
    copies, unreadable = copies_by_instance(root, names)
    chosen = [copies[name] for name in copies if not names or name in names]
    if not chosen:
        if unreadable:
            raise unreadable[0]
        raise NoCopy(
            f"{root} holds copies of {', '.join(sorted(copies))}, none of {', '.join(names)}",
            hint="check that this is the right archive",
        )
    if len(chosen) > 1 or len(names) > 1:
        raise OperatorError(
            f"{root} holds copies of {', '.join(sorted(copies))}, but one is wanted",
            hint="name its instance: --instance NAME",
        )
    for problem in unreadable:
        logger.warning("%s: not restored", problem.what)
    return chosen[0]


def restore_extracted(
    loaded: LoadedConfig, instances: Sequence[Instance], *, dry_run: bool
) -> None:
    """Restore what borgmatic has just extracted, of the instances that say `on_extract: true`.

    That is the operator's word, given before; what is replaced is kept. It is not an error
    if what was extracted has no copy of them.
    """
    wanted = [instance for instance in instances if instance.restore.on_extract]
    if not wanted:
        logger.warning("restore: on_extract: is not set for any instance: nothing is restored")
        return
    root = extract_destination()
    try:
        restore(loaded, wanted, root, start=False, discard=False, yes=True, dry_run=dry_run)
    except NoCopy as none:
        logger.warning("nothing is restored: %s", none.what)


def copies_by_instance(
    root: Path, wanted: Sequence[str]
) -> tuple[dict[str, tuple[StagingCopy, Manifest]], list[InvalidCopy]]:
    """Return the copies at or below `root` by instance, and why others can't be read.

    Raises InvalidCopy if a `wanted` one, or any if none is named, has two copies.
    """
    copies: dict[str, tuple[StagingCopy, Manifest]] = {}
    unreadable: list[InvalidCopy] = []
    for copy in find_copies(root):
        try:
            manifest = copy.manifest()
        except InvalidCopy as error:
            unreadable.append(error)
            continue
        name = manifest.instance
        if name in copies and (not wanted or name in wanted):
            raise InvalidCopy(
                f"{root} holds two copies of {name}: {copies[name][0].path} and {copy.path}",
                hint="name one of them with --from",
            )
        copies[name] = copy, manifest
    return copies, unreadable


def _restore_one(hooks: Hooks, target: Restore, *, yes: bool, dry_run: bool) -> None:
    # What is put in place on this machine is read there.
    verify_copy(target, quick=not dry_run and target.host.local_path("/") is not None)
    if dry_run:
        require(target, hooks.restore_checks(target))
        if statement := _replaced(target):
            target.reporter.warn(statement)
        target.reporter.result(
            f"would restore {_restored(target)}, into {target.instance.data_path}"
        )
        return
    recover(hooks, target)
    try:
        hooks.before_restore(target)
        require(target, hooks.restore_checks(target))
        consent.ask(target, _replaced(target), yes=yes)
        hooks.put_in_place(target)
    except BaseException as error:
        _report_failure(hooks, target, error)
        raise
    away = "" if target.downtime is None else f"; VictoriaLogs was away for {target.downtime:.2f} s"
    target.reporter.result(f"restored: {_restored(target)}{away}")
    hooks.after_restore(target, None)


def verify_copy(target: Restore, *, quick: bool) -> None:
    """Verify the copy and set its manifest; raises InvalidCopy if it is not sound.

    It may share files with what is outside, as an extraction of a staging copy together with the
    data does: what is put in place has files of its own, and is compared with the inventory again.
    """
    target.reporter.say(f"verifying {target.copy.path}")
    total = 0 if quick else target.manifest.bytes
    with target.reporter.counting("the copy", "verified", total) as on_read:
        report = verify(target.copy, linked=True, quick=quick, on_read=on_read)
    target.manifest = report.raise_problems()


def _replaced(target: Restore) -> str:
    """Say what the restore replaces and brings back; empty if there is nothing to lose."""
    created = target.manifest.created
    statement = consent.replaced(
        target,
        target.manifest.rows,
        f"the copy{_of_another(target)} of {created}",
        discard=target.discard_replaced,
    )
    if consent.brings_deleted_back(target, created):
        statement += "; rows that were deleted since then come back" if statement else ""
    return statement


def _report_failure(hooks: Hooks, target: Restore, error: BaseException) -> None:
    try:
        hooks.after_restore(target, error)
    except Exception as further:  # noqa: BLE001 - the first failure is what the operator reads
        target.reporter.warn(f"a plugin's after_restore failed too: {further}")


def _restored(target: Restore) -> str:
    return described(target.manifest) + _of_another(target)


def _of_another(target: Restore) -> str:
    """Say whose copy it is, if it is not that of the instance that it is restored into."""
    name = target.manifest.instance
    return f" of {name}" if name != target.name else ""


def described(manifest: Manifest) -> str:
    """Return how much a copy holds, in words."""
    return f"{manifest.rows:,} rows, {manifest.files:,} files, {human_bytes(manifest.bytes)}"
