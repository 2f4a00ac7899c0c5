"""Freezing: hard links to what the final pass copies, so that VictoriaLogs does not wait for it.

The links are on the data's own filesystem and cost no space. VictoriaLogs writes a part's files
once and replaces the small ones beside them by renames, so what is linked never changes, whatever a
running server does next.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system.hosts import Host
from vl_borg_hooks.victorialogs.layout import LOCK_FILE


def is_possible(host: Host, data_directory: str, frozen: str) -> bool:
    """Say whether hard links can be made from `data_directory` into `frozen`, by trying.

    They can't on some network filesystems, or if we may not write to the data directory. After that
    `frozen` is empty, or missing if they can't be made.
    """
    try:
        _make_empty(host, frozen)
        freeze(host, data_directory, frozen, [LOCK_FILE])
        _make_empty(host, frozen)
    except OperatorError:
        with contextlib.suppress(OperatorError):
            host.remove_tree(frozen)
        return False
    return True


def freeze(host: Host, data_directory: str, frozen: str, paths: Sequence[str]) -> None:
    """Link `paths`, relative to `data_directory`, to the same places in `frozen`.

    Raises OperatorError.
    """
    host.link_files(data_directory, paths, frozen)


def _make_empty(host: Host, directory: str) -> None:
    """Make `directory` new and empty, for us only."""
    host.remove_tree(directory)
    host.make_directory(directory, 0o700)
