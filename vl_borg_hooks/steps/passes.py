"""The passes of a backup and of a restore, done by rsync."""

from __future__ import annotations

import time
from collections.abc import Sequence

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Backup, Restore
from vl_borg_hooks.plugin.manager import hookimpl
from vl_borg_hooks.system.local import LocalHost
from vl_borg_hooks.transfer import PassResult, rsync
from vl_borg_hooks.victorialogs import changes, lock
from vl_borg_hooks.victorialogs import freeze as links
from vl_borg_hooks.victorialogs.layout import NOT_COPIED, PARTITIONS

# More bytes than VictoriaLogs writes of its own in the moment between two passes.
MUCH_COPIED_BYTES = 16_000_000


@hookimpl
def warm_pass(backup: Backup) -> PassResult:
    """Copy what is there while VictoriaLogs runs; merges may take files away meanwhile."""
    linked, now, here = backup.on_one_filesystem, backup.listing, _listed_here(backup)
    new = changes.delta(here, now) if here and now else None
    if not (here and now and new):
        return _warm(backup, linked=linked)
    if backup.is_as_published and not _has_other_directories(backup, now):
        # What makes room comes first.
        for path in (*new.removed, *changes.gone_parts(here, now)):
            LocalHost().remove_tree(str(backup.staging.data / path))
        # One that has no part, and maybe no list of parts, is a directory all the same.
        empty = [path for path, table in now.tables.items() if not table.parts]
        return _warm_only(backup, [*new.copied, *empty], linked=linked)
    if not linked:
        return _warm(backup)
    # To look for something to link to takes rsync longer than all else: first that, for what is
    # new, and then a look at everything, which is to find no more to copy.
    done = _warm_only(backup, new.copied, linked=True)
    everything = _warm(backup)
    done = everything.after(done)
    if everything.bytes > MUCH_COPIED_BYTES:
        # A merge has ended in between. This makes links of the copies.
        done = _warm(backup, linked=True).after(done)
    return done


def _listed_here(backup: Backup) -> changes.Listing | None:
    """Return what the staging copy is complete for; None where that is not known.

    After a pass in the same run, that is what the pass was made for: the lists that it has copied
    can be newer than the parts.
    """
    if backup.listed_before:
        return backup.listed_before
    if not (backup.staging.data / PARTITIONS).is_dir():
        return None
    try:
        here = changes.read(LocalHost(), str(backup.staging.data))
    except OperatorError:
        # Damaged: rsync mends it.
        return None
    return here if here.tables else None


def _has_other_directories(backup: Backup, now: changes.Listing) -> bool:
    """Tell whether there are directories that are none of VictoriaLogs'.

    What is gone from them, only a look at everything tells.
    """
    return any((backup.staging.data / path).is_dir() for path in now.others)


def _warm_only(backup: Backup, paths: Sequence[str], *, linked: bool) -> PassResult:
    return _warm(backup, only=paths, linked=linked) if paths else PassResult(0, 0, 0)


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
