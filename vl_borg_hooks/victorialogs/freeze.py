"""Freezing: hard links to what the final pass has to copy, so that VictoriaLogs need not wait for it.

The links are on the data's own filesystem and cost no space. VictoriaLogs writes a part's files
once and replaces the small ones beside them by renames, so what is linked never changes, whatever a
running server does next.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence

from vl_borg_hooks.errors import CommandFailed, OperatorError
from vl_borg_hooks.system.hosts import Host, SshHost
from vl_borg_hooks.victorialogs.layout import LOCK_FILE


def is_possible(host: Host, data_directory: str, frozen: str) -> bool:
    """Tell, by trying, whether hard links can be made from `data_directory` into `frozen`.

    They can't on some network filesystems, nor where we may not write to the data directory.
    """
    probe = f"{frozen}/probe"
    try:
        host.remove_tree(frozen)
        host.make_directory(frozen, 0o700)
        if isinstance(host, SshHost):
            host.run(["cp", "--link", "--", f"{data_directory}/{LOCK_FILE}", probe])
        else:
            os.link(f"{data_directory}/{LOCK_FILE}", probe, follow_symlinks=False)
        host.remove_tree(frozen)
        host.make_directory(frozen, 0o700)
    except (OSError, OperatorError):
        with contextlib.suppress(OperatorError):
            host.remove_tree(frozen)
        return False
    return True


def freeze(host: Host, data_directory: str, frozen: str, paths: Sequence[str]) -> None:
    """Link `paths`, relative to `data_directory`, to the same places in `frozen`.

    Raises OperatorError.
    """
    if isinstance(host, SshHost):
        if paths:
            argv = ["env", "-C", data_directory, "cp", "--archive", "--link", "--parents"]
            host.run([*argv, f"--target-directory={frozen}", "--", *paths])
        return
    for path in paths:
        source, target = f"{data_directory}/{path}", f"{frozen}/{path}"
        try:
            os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
            _link(source, target)
        except OSError as error:
            raise CommandFailed(f"could not link {source}: {error.strerror}") from None


def _link(source: str, target: str) -> None:
    """Link a file, or make a directory with links to all that is in that one."""
    if not os.path.isdir(source) or os.path.islink(source):
        os.link(source, target, follow_symlinks=False)
        return
    os.mkdir(target, 0o700)
    with os.scandir(source) as entries:
        for entry in entries:
            _link(entry.path, f"{target}/{entry.name}")
