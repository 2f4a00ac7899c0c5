"""`restore` and `after-extract`: the order of a restore. Each step is in its plugin."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting, exclusive, explained, require
from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.plugin.context import Restore
from vl_borg_hooks.plugin.relay import Hooks
from vl_borg_hooks.runs.borgmatic import extract_destination
from vl_borg_hooks.staging.copy import StagingCopy, find_copies
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
    dry_run: bool,
    every: bool = False,
) -> None:
    """Restore each of `instances` that has a copy at or below `root`.

    With `start`, a VictoriaLogs that was found stopped is left running; with `every`, an instance
    without a copy is an error, before anything is changed. Raises OperatorError; the data that was
    there before is then in place again.
    """
    copies = _copies_by_instance(root)
    chosen = [instance for instance in instances if instance.name in copies]
    missing = [instance.name for instance in instances if instance.name not in copies]
    if missing and chosen and not every:
        logger.warning("%s holds no copy of %s: not restored", root, ", ".join(missing))
    if not chosen or (missing and every):
        raise InvalidCopy(
            f"{root} holds copies of {', '.join(sorted(copies))}, none of {', '.join(missing)}",
            hint="check that this is the right archive, and the right config",
        )
    setting = Setting(loaded)
    for instance in chosen:
        copy, manifest = copies[instance.name]
        target = setting.restore(instance, copy, manifest, start=start)
        with exclusive(target, "restore"), explained(target):
            _restore_one(setting.hooks, target, dry_run=dry_run)


def restore_extracted(
    loaded: LoadedConfig, instances: Sequence[Instance], *, dry_run: bool
) -> None:
    """Restore what borgmatic has just extracted, of the instances that say `on_extract: true`."""
    wanted = [instance for instance in instances if instance.restore.on_extract]
    if not wanted:
        logger.warning("restore: on_extract: is not set for any instance: nothing is restored")
        return
    restore(loaded, wanted, extract_destination(), start=False, dry_run=dry_run)


def _copies_by_instance(root: Path) -> dict[str, tuple[StagingCopy, Manifest]]:
    """Return the copies at or below `root` by instance; raises InvalidCopy if one has two."""
    copies: dict[str, tuple[StagingCopy, Manifest]] = {}
    for copy in find_copies(root):
        manifest = copy.manifest()
        name = manifest.instance
        if name in copies:
            raise InvalidCopy(
                f"{root} holds two copies of {name}: {copies[name][0].path} and {copy.path}",
                hint="name one of them with --from",
            )
        copies[name] = copy, manifest
    return copies


def _restore_one(hooks: Hooks, target: Restore, *, dry_run: bool) -> None:
    # What is put in place on this machine is read there.
    _verify(target, quick=not dry_run and target.host.local_path("/") is not None)
    if dry_run:
        require(target, hooks.restore_checks(target))
        target.reporter.say(
            f"would restore {_what(target.manifest)}, into {target.instance.data_path}"
        )
        return
    recover(hooks, target)
    try:
        hooks.before_restore(target)
        require(target, hooks.restore_checks(target))
        hooks.put_in_place(target)
    except BaseException as error:
        _report_failure(hooks, target, error)
        raise
    away = "" if target.downtime is None else f"; VictoriaLogs was away for {target.downtime:.2f} s"
    target.reporter.say(f"restored: {_what(target.manifest)}{away}")
    hooks.after_restore(target, None)


def _verify(target: Restore, *, quick: bool) -> None:
    """Verify the copy and set its manifest; raises InvalidCopy if it is not sound."""
    target.reporter.say(f"verifying {target.copy.path}")
    # An untrusted tree may link to anything; our own staging copy links to the data.
    ours = target.copy.path.resolve() == Path(target.instance.staging_path).resolve()
    target.manifest = verify(target.copy, linked=ours, quick=quick).raise_problems()


def _report_failure(hooks: Hooks, target: Restore, error: BaseException) -> None:
    try:
        hooks.after_restore(target, error)
    except Exception as further:  # noqa: BLE001 - the first failure is what the operator reads
        target.reporter.warn(f"a plugin's after_restore failed too: {further}")


def _what(manifest: Manifest) -> str:
    return f"{manifest.rows} rows, {manifest.files} files, {human_bytes(manifest.bytes)}"
