"""`restore --to`: a data directory of its own, for a new machine, a move or a test.

No server is touched and no service manager is needed. A config is read for `restore: owner:` only, if there is one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vl_borg_hooks import config
from vl_borg_hooks.actions.restore import described, one_copy, verify_copy
from vl_borg_hooks.actions.run import require
from vl_borg_hooks.config import Config, Instance, LoadedConfig, RestoreOptions
from vl_borg_hooks.plugin.context import Additions, Restore
from vl_borg_hooks.runs.records import RunRecords
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.steps import elsewhere


def restore_to(
    place: Path,
    root: Path,
    *,
    of: Sequence[str],
    as_name: str | None,
    config_file: Path | None,
    dry_run: bool,
) -> None:
    """Make the data directory `place` from the copy at or below `root`.

    Of several copies, the one of the instance that `of` names. The settings are those of the instance
    `as_name` of the config, else of the one that the copy is of. Raises OperatorError; nothing is left
    at `place` then.
    """
    copy, manifest = one_copy(root, of)
    restore = _restore(os.path.realpath(place), copy, manifest, as_name, config_file)
    # What is put in place is read there.
    verify_copy(restore, quick=not dry_run)
    require(restore, list(elsewhere.checks(restore)))
    whose = f" for {restore.owner}" if restore.owner else ""
    what = f"{described(restore.manifest)}, into {restore.data_directory}{whose}"
    if dry_run:
        restore.reporter.result(f"would restore {what}")
        return
    elsewhere.put_there(restore)
    restore.reporter.result(f"restored: {what}{_retention(restore.manifest)}")


def _restore(
    place: str, copy: StagingCopy, manifest: Manifest, as_name: str | None, config_file: Path | None
) -> Restore:
    """Return the restore of `copy` to `place`, which no service manager looks after."""
    file = config_file or config.default_path()
    # Without --config, a file that this user may not read is not meant.
    loaded = config.load(file) if config_file or as_name or os.access(file, os.R_OK) else None
    known = {instance.name: instance for instance in loaded.config.instances} if loaded else {}
    if loaded and as_name:
        loaded.instances([as_name])
    name = as_name or manifest.instance
    # Not validated: it has no line in a config file, and the copy's name for it may be any.
    instance = Instance.model_construct(
        name=name,
        data_path=place,
        staging_path=str(copy.path),
        restore=known[name].restore if name in known else RestoreOptions(),
    )
    bare = LoadedConfig(file, Config.model_construct(instances=[instance]), {})
    records = RunRecords(bare.config.state_directory, "restore-to")
    return Restore(bare, instance, Additions({}, {}), records, copy, manifest)


def _retention(manifest: Manifest) -> str:
    """Say what the server needs to keep what was restored."""
    days = sorted(partition.name for partition in manifest.partitions)
    if not days:
        return ""
    return (
        f"; a VictoriaLogs whose -retentionPeriod (default: 7 days) does not reach back to {days[0]} "
        "deletes older days at its start"
    )
