"""A walk through a mirror that trusts nothing that it finds."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.staging.inventory import Directory

# VictoriaLogs nests four deep: partitions/YYYYMMDD/datadb/PART.
DEEPEST = 16
# The kernel stamps files with the time of its last tick, and some filesystems in whole seconds: a
# directory that changed this shortly before it was looked at may change again and keep its time.
TOO_YOUNG_NANOSECONDS = 2_000_000_000


class Before(Protocol):
    """What is known about a mirror's directories from before; asked in the order of a walk."""

    def find(self, path: str) -> Directory | None:
        """Return directory `path` as it was then, None if it did not exist."""

    def touch(self, path: str) -> None:
        """Note that directory `path` is not as it was then."""


def walk(root: Path, *, linked: bool = False, before: Before | None = None) -> Iterator[Directory]:
    """Yield `root` and every directory below it, in a fixed order, without following links.

    What was known `before` and has not changed since is taken from there.

    Raises InvalidCopy for links, devices, FIFOs and sockets, for names that can't be printed, for a
    tree deeper than any of VictoriaLogs', for what can't be read, and, unless it may be `linked`, for
    hard links to files outside of `root`.
    """
    links: dict[tuple[int, int], list[Path]] = {}
    too_young = time.time_ns() - TOO_YOUNG_NANOSECONDS
    pending = [("", 0)]
    while pending:
        path, changed = pending.pop()
        known = before.find(path) if before else None
        if known and known.changed == changed != 0:
            yield known
            continue
        if path.count("/") >= DEEPEST:
            raise InvalidCopy(f"{root / path}: is nested deeper than {DEEPEST} directories")
        sizes: dict[str, int] = {}
        children: list[tuple[str, int]] = []
        try:
            with os.scandir(f"{root}/{path}") as entries:
                for entry in sorted(entries, key=attrgetter("name")):
                    if not entry.name.isprintable():
                        raise InvalidCopy(
                            f"{root / path / entry.name}: is not a name that a copy can hold"
                        )
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        child = f"{path}/{entry.name}" if path else entry.name
                        children.append((child, status.st_ctime_ns))
                    elif stat.S_ISREG(status.st_mode):
                        sizes[entry.name] = status.st_size
                        if status.st_nlink > 1 and not linked:
                            _note_link(links, status, root / path / entry.name)
                    else:
                        raise InvalidCopy(f"{root / path / entry.name}: is not a file or directory")
        except OSError as error:
            raise InvalidCopy(f"{root / path}: can't be read: {error.strerror}") from None
        if before and (known is None or known.files != sizes):
            before.touch(path)
        is_old = not children and changed < too_young
        yield Directory(path, sizes, changed=changed if is_old else 0)
        pending += reversed(children)
    for paths in links.values():
        raise InvalidCopy(f"{paths[0]}: is a hard link to a file outside of the copy")


def _note_link(
    links: dict[tuple[int, int], list[Path]], status: os.stat_result, path: Path
) -> None:
    """Note one of the names of a file; the file is dropped when all of its names were seen."""
    key = (status.st_dev, status.st_ino)
    names = links.setdefault(key, [])
    names.append(path)
    if len(names) == status.st_nlink:
        del links[key]
