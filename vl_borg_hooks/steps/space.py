"""Is there room for the staging copy, also for VictoriaLogs beside it? Asked before anything else."""

from __future__ import annotations

import os
import re

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.plugin.manager import hookimpl
from vl_borg_hooks.transfer.progress import human_bytes
from vl_borg_hooks.victorialogs import changes

# Left free beside what is copied, for the inventory, the manifest, and logs that come meanwhile.
RESERVE_BYTES = 64_000_000
# How near to -retention.maxDiskUsagePercent a server may be whose filesystem the copy is on. The
# copy keeps what VictoriaLogs drops until the next backup, so near its limit dropping its oldest
# logs frees nothing, and it would drop more and more.
MARGIN_PERCENT = 5
# lib/flagutil/bytes.go of VictoriaMetrics: how a flag may say a number of bytes.
_BYTES = re.compile(r"(\d+(?:\.\d+)?)(?:([KMGT])(i?)B)?")
_POWERS = {None: 0, "K": 1, "M": 2, "G": 3, "T": 4}


@hookimpl
def before_backup(backup: Backup) -> None:
    """Refuse a backup for which the staging copy's filesystem, or the data's, has no room.

    Only if the data is on this machine: a remote host's data has to be copied to be measured.
    """
    if backup.host.local_path(backup.data_directory) is None:
        return
    staging = backup.instance.staging_path
    one_filesystem = _device(staging) == _device(backup.data_directory)
    # On one filesystem the copy shares the data's files.
    needed = 0 if one_filesystem else missing_bytes(backup)
    free = backup.host.free_bytes(staging)
    if needed + RESERVE_BYTES > free:
        raise OperatorError(
            f"the staging copy needs {human_bytes(needed)} more and {human_bytes(RESERVE_BYTES)} in "
            f"reserve, but the filesystem of {staging} has {human_bytes(free)} free",
            hint="make room there, or see whether it is mounted",
        )
    if one_filesystem and backup.client:
        _check_limits(backup, free - needed)


def _check_limits(backup: Backup, free_after: int) -> None:
    """Refuse if VictoriaLogs would stop taking logs, or drop old ones, for want of room."""
    least = _flag(backup, "storage.minFreeDiskSpaceBytes")
    if free_after < least + RESERVE_BYTES:
        raise OperatorError(
            f"the filesystem of {backup.data_directory} would have {human_bytes(free_after)} free, "
            f"but VictoriaLogs takes no logs below {human_bytes(least)}",
            hint="make room there, or put the staging copy on another filesystem",
        )
    limit = _flag(backup, "retention.maxDiskUsagePercent")
    status = os.statvfs(backup.data_directory)
    used = 100 - 100 * free_after / (status.f_blocks * status.f_frsize)
    if limit and used > limit - MARGIN_PERCENT:
        raise OperatorError(
            f"the filesystem of {backup.data_directory} is {used:.0f} % full, and VictoriaLogs "
            f"drops its oldest logs at {limit} %: a staging copy on it keeps their space taken",
            hint="put the staging copy on another filesystem",
        )


def _flag(backup: Backup, name: str) -> int:
    """Return the number in the server's flag `name`, 0 if it doesn't say."""
    try:
        found = _BYTES.fullmatch(backup.client.flag(name) if backup.client else "")
    except OperatorError:
        return 0
    if not found:
        return 0
    return int(float(found[1]) * (1024 if found[3] else 1000) ** _POWERS[found[2]])


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
    """Return the bytes of the files of `part`; none if a merge has just removed it."""
    try:
        with os.scandir(part) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except FileNotFoundError:
        return 0


def _device(path: str) -> int:
    """Return the filesystem that `path` is on, or will be once it is made."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev
