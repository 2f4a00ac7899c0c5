"""How a restore makes a data directory of its own: whole and checked before it gets its name.

It is made beside its place, because a rename needs one filesystem, in a directory that is closed to
others. A run that is killed leaves that directory, and the next run removes it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.checks import Check, check
from vl_borg_hooks.plugin.context import Restore
from vl_borg_hooks.steps.ready import configured_owner
from vl_borg_hooks.steps.replace import check_placed, copy_to
from vl_borg_hooks.steps.space import MIN_FREE_BYTES
from vl_borg_hooks.system import files
from vl_borg_hooks.system.hosts import FileLocked, Owner
from vl_borg_hooks.transfer import PassResult, rsync
from vl_borg_hooks.transfer.progress import human_bytes
from vl_borg_hooks.victorialogs.layout import LOCK_FILE, PARTITIONS
from vl_borg_hooks.victorialogs.swap import INCOMING

_ROOT = 0


def checks(restore: Restore) -> Iterator[Check]:
    """Check rsync, the place, its room, and the owner; sets `restore.owner`."""
    yield check("rsync", lambda: _rsync(restore))
    yield check("place", lambda: _place(restore))
    yield check("room", lambda: _room(restore))
    yield check("owner", lambda: _owner(restore))


def put_there(restore: Restore) -> PassResult:
    """Make the data directory of `restore`, whose checks are done; raises OperatorError.

    If that fails, nothing of it is left.
    """
    host, place = restore.host, Path(restore.data_directory)
    working = str(place.with_name(f".{place.name}.vl-borg-hooks"))
    host.make_directory(working, 0o700)
    _refuse_planted(restore, working)
    try:
        with host.flock(working):
            try:
                return _make(restore, f"{working}/{INCOMING}", place)
            finally:
                host.remove_tree(working)
    except FileLocked:
        raise OperatorError(f"another run is making {place}", hint="wait for it") from None


def _make(restore: Restore, incoming: str, place: Path) -> PassResult:
    host = restore.host
    host.remove_tree(incoming)
    host.make_directory(incoming, 0o755)
    placed = copy_to(restore, incoming)
    restore.reporter.say(f"restore pass: {placed}")
    check_placed(restore, incoming)
    if restore.owner:
        host.set_owner(incoming, restore.owner)
    host.sync(incoming)
    # Takes the place of an empty directory, and fails if there is anything in it by now.
    files.replace(Path(incoming), place)
    files.sync_directory(place.parent)
    return placed


def _refuse_planted(restore: Restore, working: str) -> None:
    """Raise OperatorError if somebody else has made `working`: their parent may be open to all."""
    owner = restore.host.owner(working)
    if not restore.host.is_directory(working) or (
        owner and owner.user != restore.host.effective_user()
    ):
        raise OperatorError(
            f"{working} is not ours, or not a directory", hint="see what it is, and remove it"
        )


def _rsync(restore: Restore) -> str:
    rsync.check_version(restore.host)
    return "rsync is new enough"


def _place(restore: Restore) -> str:
    """Raise OperatorError if there is something at the place, or if no rename can get there."""
    place = Path(restore.data_directory)
    if os.path.lexists(place):
        if not restore.host.is_directory(str(place)):
            raise OperatorError(f"{place} is not a directory")
        if restore.host.entries(str(place)):
            raise OperatorError(
                f"{place} is not empty, and --to replaces nothing",
                hint="name a directory that is empty or does not exist yet",
            )
        if os.path.ismount(place):
            raise OperatorError(
                f"{place} is a mount point, which no rename can replace",
                hint=f"name a directory in it, such as {place / 'victoria-logs'}",
            )
    for directory in place.parents:
        if directory == Path(os.path.realpath(restore.copy.path)):
            raise OperatorError(f"{place} is in the copy itself, {directory}")
        if os.path.lexists(directory / LOCK_FILE) and os.path.isdir(directory / PARTITIONS):
            raise OperatorError(f"{place} is in VictoriaLogs' data directory {directory}")
    return f"there is nothing in {place}"


def _room(restore: Restore) -> str:
    needed = restore.manifest.bytes
    place = Path(restore.data_directory)
    free = restore.host.free_bytes(str(place.parent))
    if free < needed + MIN_FREE_BYTES:
        raise OperatorError(
            f"the copy needs {human_bytes(needed)}, and VictoriaLogs {human_bytes(MIN_FREE_BYTES)} to "
            f"take logs, but the filesystem of {place} has {human_bytes(free)} free",
            hint="make room there",
        )
    return f"{human_bytes(free)} free, {human_bytes(needed)} needed"


def _owner(restore: Restore) -> str:
    restore.owner = _needed_owner(restore)
    return f"the files will belong to {restore.owner or 'the user that runs this'}"


def _needed_owner(restore: Restore) -> Owner | None:
    """Return who the files must belong to, None if that is the user that runs this.

    As root, the first of these that is known: `restore: owner:`, the owner of the empty directory
    if that is another user, the owner of the data that was backed up. Raises OperatorError if
    `restore: owner:` names another user and we are not root.
    """
    host = restore.host
    user, configured = host.effective_user(), configured_owner(restore)
    if user != _ROOT:
        if configured and configured.user != user:
            raise OperatorError(
                f"the files must belong to user {configured.user}, but user {user} runs this",
                hint="run it as root or as that user",
            )
        return None
    there = host.owner(restore.data_directory)
    if configured is None and there and there.user != _ROOT:
        return there
    return configured or (Owner(*restore.manifest.owner) if restore.manifest.owner else None)
