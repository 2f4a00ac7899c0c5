"""What is looked at before a stop: is `url` this VictoriaLogs, and can it start again."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.plugin.context import Target
from vl_borg_hooks.system.log import logger
from vl_borg_hooks.victorialogs import lock, startable
from vl_borg_hooks.victorialogs.http import NotVictoriaLogs
from vl_borg_hooks.victorialogs.layout import PARTITIONS

# A server changes its data while we look. Only what is still there after so many looks is not a
# moment of a change. It takes longer only if something is found.
LOOKS = 3
LOOK_SECONDS = 1
# How many names are in a message.
NAMED = 3


@dataclass(frozen=True)
class _Found:
    """What one look has found; `obstacles` are what keeps VictoriaLogs from starting."""

    obstacles: frozenset[str] = frozenset()
    # Days that are there and not served, so that a start would attach them.
    detached: frozenset[str] = frozenset()
    # Days that `url` serves and that are not there.
    strange: frozenset[str] = frozenset()

    def __and__(self, other: _Found) -> _Found:
        return _Found(
            self.obstacles & other.obstacles,
            self.detached & other.detached,
            self.strange & other.strange,
        )


def require_startable(target: Target) -> None:
    """Raise OperatorError if a VictoriaLogs that runs could not start again as it is.

    Sets `target.detached`, the days that have to be detached again after the start.
    """
    version = _version(target)
    found = _look(target, version)
    for _ in range(LOOKS - 1):
        if found == _Found():
            break
        time.sleep(LOOK_SECONDS)
        found &= _look(target, version)
    _refuse(target, found)
    target.detached = sorted(found.detached)


def require_url(target: Target) -> None:
    """Raise OperatorError if `url` does not answer as healthy, or is another server's.

    It is Unanswered if that may be our server, which is ill. A server with the same path in a container
    looks like ours: whether `url` answers while ours is stopped is seen in the stop window.
    """
    client = target.client
    holder = lock.holder(target.host, target.data_directory)
    if client is None or holder is None:
        return
    hint = (
        f"correct url: it is how we see that VictoriaLogs serves {target.instance.data_path}; or, if "
        "VictoriaLogs is ill, stop it first"
    )
    try:
        client.require_healthy()
    except OperatorError as error:
        error.what = f"VictoriaLogs runs, but {error.what}"
        error.hint = error.hint or hint
        raise
    try:
        client.stored_rows()
        path = client.flag("storageDataPath")
    except NotVictoriaLogs as error:
        raise OperatorError(error.what, hint=hint) from None
    except OperatorError as error:
        logger.debug("%s: url may be another server's: %s", target.name, error)
        return
    if not (path and holder and _has_our_root(target, holder)):
        # In a container, where the path is another and may be a link within it.
        return
    root = f"/proc/{holder}/root" if path.startswith("/") else f"/proc/{holder}/cwd/"
    served = target.host.identity(f"{root}{path}")
    if served is None:
        return
    if served != target.host.identity(target.data_directory):
        raise OperatorError(
            f"the VictoriaLogs that answers at {client.url} is not the one on "
            f"{target.instance.data_path}: its -storageDataPath is {path}",
            hint=hint,
        )


def _has_our_root(target: Target, process: int) -> bool:
    """Say whether `process` sees the same root directory as a command on that host."""
    root = target.host.identity(f"/proc/{process}/root/")
    return root is not None and root == target.host.identity("/")


def _look(target: Target, version: str) -> _Found:
    attached = _attached_days(target)
    tree = startable.look(target.host, target.data_directory)
    obstacles = frozenset(startable.obstacles(tree, version))
    if attached is None:
        return _Found(obstacles)
    present = startable.days(tree)
    return _Found(obstacles, frozenset(present - attached), frozenset(attached - present))


def _refuse(target: Target, found: _Found) -> None:
    partitions = f"{target.instance.data_path}/{PARTITIONS}"
    if found.strange:
        raise OperatorError(
            f"the VictoriaLogs that answers at {target.instance.url} serves days that are not in "
            f"{partitions}: {_named(found.strange)}",
            hint="correct url: it is another server's",
        )
    if found.obstacles:
        raise OperatorError(
            "VictoriaLogs was not stopped, because it could not start again: in "
            f"{target.instance.data_path}, {_named(found.obstacles)}",
            hint="repair that, or move it to a place outside of the data path",
        )
    if found.detached and target.instance.detached_days == "refuse":
        raise OperatorError(
            f"VictoriaLogs was not stopped, because a start would attach days in {partitions} that "
            f"are detached: {_named(found.detached)}",
            hint="attach them, move them to a place outside of the data path, or set "
            "detached_days: detach",
        )


def _named(names: Iterable[str]) -> str:
    first, *more = sorted(names)
    named = ", ".join([first, *more[: NAMED - 1]])
    left = len(more) - NAMED + 1
    return f"{named} (and {left} more)" if left > 0 else named


def _version(target: Target) -> str:
    try:
        return target.client.version() if target.client else ""
    except OperatorError as error:
        logger.debug("%s: the version is not known: %s", target.name, error)
        return ""


def _attached_days(target: Target) -> set[str] | None:
    """Return the days that VictoriaLogs has attached; None if it does not say."""
    try:
        return target.client.attached_days() if target.client else None
    except OperatorError as error:
        logger.debug("%s: whether days are detached is not known: %s", target.name, error)
        return None
