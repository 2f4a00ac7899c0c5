"""The passes of a backup and of a restore, done by rsync."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vl_borg_hooks.context import Backup, Restore
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.hosts import LocalHost
from vl_borg_hooks.plugins import hookimpl
from vl_borg_hooks.transfer import PassResult, rsync
from vl_borg_hooks.victorialogs import changes, lock
from vl_borg_hooks.victorialogs import freeze as links
from vl_borg_hooks.victorialogs.layout import NOT_COPIED, PARTITIONS

# More bytes than VictoriaLogs writes of its own in the moment between two passes.
MUCH_COPIED_BYTES = 16_000_000


@hookimpl
def warm_pass(backup: Backup) -> PassResult:
    """Copy what is there while VictoriaLogs runs; merges may take files away meanwhile."""
    linked = backup.on_one_filesystem
    new = _new_here(backup)
    if new is None:
        return _warm(backup, linked=linked)
    if not (linked or backup.is_as_published):
        return _warm(backup)
    done = PassResult(0, 0, 0)
    if new.copied:
        done = _warm(backup, only=new.copied, linked=linked)
    if backup.is_as_published:
        for path in new.removed:
            LocalHost().remove_tree(str(backup.staging.data / path))
        return done
    # To look for something to link to takes rsync longer than all else: first that, for what is
    # new, and then a look at everything, which is to find no more to copy.
    everything = _warm(backup)
    done = everything.after(done)
    if everything.bytes > MUCH_COPIED_BYTES:
        # A merge has ended in between. This makes links of the copies.
        done = _warm(backup, linked=True).after(done)
    return done


def _new_here(backup: Backup) -> changes.Delta | None:
    """Return what the staging copy lacks by the lists of parts; None where they don't tell."""
    if backup.listing is None or not (backup.staging.data / PARTITIONS).is_dir():
        return None
    try:
        here = changes.read(LocalHost(), str(backup.staging.data))
    except OperatorError:
        # Damaged: rsync mends it.
        return None
    return changes.delta(here, backup.listing) if here.tables else None


def _warm(backup: Backup, *, only: Sequence[str] | None = None, linked: bool = False) -> PassResult:
    started = time.time()
    result = rsync.copy(
        (backup.host, backup.data_directory),
        (LocalHost(), str(backup.staging.data)),
        name="warm pass",
        reporter=backup.reporter,
        exclude=NOT_COPIED,
        only=only,
        linked_to=backup.data_directory if linked else "",
        bwlimit=backup.instance.warm.bwlimit or "",
        idle=True,
        vanishing=True,
    )
    if only is None:
        backup.compared = started
    return result


@hookimpl
def freeze(backup: Backup) -> bool:
    """Make hard links to what changed since the warm pass, where they can be made."""
    if not backup.can_freeze or backup.delta is None:
        return False
    links.freeze(backup.host, backup.data_directory, backup.frozen, backup.delta.copied)
    return True


@hookimpl
def final_pass(backup: Backup) -> PassResult:
    """Copy what changed since; nothing may change now, so nothing may vanish either."""
    started = time.time()
    source = backup.frozen if backup.is_frozen else backup.data_directory
    result = rsync.copy(
        (backup.host, source),
        (LocalHost(), str(backup.staging.data)),
        name="final pass",
        reporter=backup.reporter,
        exclude=NOT_COPIED,
        only=backup.delta.copied if backup.delta else None,
        linked_to=source if backup.on_one_filesystem else "",
        timeout=backup.remaining_downtime(),
    )
    if backup.delta is None:
        backup.compared = started
        return result
    for path in backup.delta.removed:
        LocalHost().remove_tree(str(backup.staging.data / path))
    return result


@hookimpl
def place_copy(restore: Restore) -> PassResult:
    """Copy the verified copy to where it can be put in place by a rename."""
    owner = restore.owner
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
