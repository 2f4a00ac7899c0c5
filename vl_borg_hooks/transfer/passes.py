"""The passes of a backup and of a restore, done by rsync."""

from __future__ import annotations

from vl_borg_hooks.context import Backup, Restore
from vl_borg_hooks.hosts import LocalHost
from vl_borg_hooks.plugins import hookimpl
from vl_borg_hooks.restore import needed_owner
from vl_borg_hooks.transfer import PassResult, rsync
from vl_borg_hooks.victorialogs import lock
from vl_borg_hooks.victorialogs.layout import NOT_COPIED


@hookimpl
def warm_pass(backup: Backup) -> PassResult:
    """Copy what is there while VictoriaLogs runs; merges may take files away meanwhile."""
    return rsync.copy(
        (backup.host, backup.data_directory),
        (LocalHost(), str(backup.staging.data)),
        name="warm pass",
        reporter=backup.reporter,
        exclude=NOT_COPIED,
        vanishing=True,
    )


@hookimpl
def final_pass(backup: Backup) -> PassResult:
    """Copy what changed since; nothing may change now, so nothing may vanish either."""
    return rsync.copy(
        (backup.host, backup.data_directory),
        (LocalHost(), str(backup.staging.data)),
        name="final pass",
        reporter=backup.reporter,
        exclude=NOT_COPIED,
        timeout=backup.remaining_downtime(),
    )


@hookimpl
def place_copy(restore: Restore) -> PassResult:
    """Copy the verified copy to where it can be put in place by a rename."""
    owner = needed_owner(restore)
    if restore.host.owner(restore.data_directory) is None:
        restore.host.make_directory(restore.data_directory, 0o755)
        if owner:
            restore.host.set_owner(restore.data_directory, owner)
    lock.ensure_file(restore.host, restore.data_directory)
    restore.host.make_directory(restore.incoming, 0o755)
    result = rsync.copy(
        (LocalHost(), str(restore.copy.data)),
        (restore.host, restore.incoming),
        name="restore pass",
        reporter=restore.reporter,
        exclude=NOT_COPIED,
        owner=str(owner) if owner else "",
    )
    if owner:
        restore.host.set_owner(restore.incoming, owner)
    return result
