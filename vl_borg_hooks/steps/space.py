"""Checks that there is room for a staging copy or restored data, and for VictoriaLogs beside it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin import hookimpl
from vl_borg_hooks.plugin.checks import Check, check
from vl_borg_hooks.plugin.context import Backup, Restore, Target
from vl_borg_hooks.stop_window.found import answering
from vl_borg_hooks.system import files
from vl_borg_hooks.transfer import sharing
from vl_borg_hooks.transfer.progress import human_bytes
from vl_borg_hooks.victorialogs import changes, flags
from vl_borg_hooks.victorialogs.layout import LOCK_FILE, PARTITIONS
from vl_borg_hooks.victorialogs.swap import holds_data

# Left free beside what is copied, for the inventory, the manifest, and logs that come meanwhile.
RESERVE_BYTES = 64_000_000
# -storage.minFreeDiskSpaceBytes of a server that can't be asked: its default.
MIN_FREE_BYTES = 10_000_000


@hookimpl
def backup_checks(backup: Backup) -> Iterator[Check]:
    """Check the room for the staging copy, and for VictoriaLogs beside it.

    Only if the data is on this machine: a remote host's data has to be copied to be measured.
    """
    if backup.host.local_path(backup.data_directory) is None or not _is_data(backup):
        return
    yield check("room", lambda: _room(backup))
    if _on_one_filesystem(backup) and backup.instance.url:
        yield check("VictoriaLogs' disk limits", lambda: _limits(backup))


@hookimpl
def restore_checks(restore: Restore) -> Iterator[Check]:
    """Check the room for the restored data beside the data that is there."""
    yield check("room", lambda: _room_to_restore(restore))


def _is_data(backup: Backup) -> bool:
    return backup.host.is_directory(f"{backup.data_directory}/{PARTITIONS}")


def _on_one_filesystem(backup: Backup) -> bool:
    """Say whether the copy will share the data's files; its directory may not exist yet."""
    return files.same_filesystem(Path(backup.instance.staging_path), Path(backup.data_directory))


def _can_reflink(backup: Backup) -> bool:
    """Say whether the copy can share the data's bytes, as between two subvolumes of one btrfs."""
    nearest = files.nearest_existing(Path(backup.instance.staging_path))
    lock_file = f"{backup.data_directory}/{LOCK_FILE}"
    return sharing.is_possible(sharing.reflink, lock_file, str(nearest))


def _room(backup: Backup) -> str:
    """Raise OperatorError if the filesystem of the staging copy has no room for it."""
    staging = backup.instance.staging_path
    needed = 0 if _on_one_filesystem(backup) else missing_bytes(backup)
    free = backup.host.free_bytes(staging)
    if needed + RESERVE_BYTES > free and _can_reflink(backup):
        needed = 0
    if needed + RESERVE_BYTES > free:
        raise OperatorError(
            f"the staging copy needs {human_bytes(needed)} more and {human_bytes(RESERVE_BYTES)} in "
            f"reserve, but the filesystem of {staging} has {human_bytes(free)} free",
            hint="make room there, or check whether it is mounted",
        )
    return f"{human_bytes(free)} free, {human_bytes(needed)} needed"


def _limits(backup: Backup) -> str:
    """Raise OperatorError if VictoriaLogs would refuse logs for lack of room.

    Its -retention.maxDiskUsagePercent is about the size of its own parts, which no copy changes.
    """
    free = backup.host.free_bytes(backup.instance.staging_path)
    least = _min_free(backup)
    if free < least + RESERVE_BYTES:
        raise OperatorError(
            f"the filesystem of {backup.data_directory} would have {human_bytes(free)} free, "
            f"but VictoriaLogs takes no logs below {human_bytes(least)}",
            hint="make room there, or put the staging copy on another filesystem",
        )
    return f"{human_bytes(free)} free, VictoriaLogs needs {human_bytes(least)}"


def _room_to_restore(restore: Restore) -> str:
    """Raise OperatorError if there is no room for the copy beside the data, or only until the proof."""
    needed = restore.manifest.bytes
    free = restore.host.free_bytes(restore.data_directory)
    what = f"the copy needs {human_bytes(needed)}"
    where = f"the filesystem of {restore.instance.data_path} has {human_bytes(free)} free"
    if free < needed:
        raise OperatorError(
            f"{what}, but {where}",
            hint="make room for both: the data there is kept until the restored data is proved",
        )
    least = _min_free(restore)
    is_kept = not restore.discard_replaced and holds_data(restore.host, restore.data_directory)
    if is_kept and free - needed < least + RESERVE_BYTES:
        raise OperatorError(
            f"{what}, and {where}: with the replaced data kept beside it, there would be "
            f"{human_bytes(free - needed)}, and VictoriaLogs takes no logs below {human_bytes(least)}",
            hint="make room, or add --discard-replaced to remove the replaced data after the proof",
        )
    return f"{human_bytes(free)} free, {human_bytes(needed)} needed"


def _min_free(target: Target) -> int:
    """Return below how many free bytes VictoriaLogs takes no logs: its default if it can't be asked."""
    try:
        client = answering(target)
        value = client.flag("storage.minFreeDiskSpaceBytes") if client else ""
    except OperatorError:
        value = ""
    return flags.size(value) if value else MIN_FREE_BYTES


def missing_bytes(backup: Backup) -> int:
    """Return how many bytes of the data's parts the staging copy does not have yet."""
    listing = changes.read(backup.host, backup.data_directory)
    missing = 0
    for path, table in listing.tables.items():
        staged = set(backup.host.entries(f"{backup.staging.data}/{path}"))
        for part in table.parts:
            if part not in staged:
                missing += _size(f"{backup.data_directory}/{path}/{part}")
    return missing


def _size(part: str) -> int:
    """Return the bytes of the files of `part`; 0 if a merge has just removed it."""
    try:
        with os.scandir(part) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except FileNotFoundError:
        return 0
