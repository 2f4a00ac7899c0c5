"""A walk through a mirror that trusts nothing that it finds."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import Protocol

from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.staging.hashing import hash_file, stamp
from vl_borg_hooks.staging.inventory import Directory, File
from vl_borg_hooks.victorialogs.parts import is_part

# VictoriaLogs nests four deep: partitions/YYYYMMDD/datadb/PART.
DEEPEST = 16
# The kernel stamps files with the time of its last tick, and some filesystems in whole seconds: a
# directory that changed this shortly before it was looked at may change again and keep its time.
TOO_YOUNG_NANOSECONDS = 2_000_000_000
# They let a program run as another user, or mean nothing on a file: VictoriaLogs sets none of them.
SPECIAL_BITS = stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX


class Before(Protocol):
    """What is known about a mirror's directories from before; asked in the order of a walk."""

    def find(self, path: str) -> Directory | None:
        """Return directory `path` as it was then, None if it did not exist."""

    def touch(self, path: str) -> None:
        """Note that directory `path` is not as it was then."""


def walk(root: Path, *, linked: bool = False, before: Before | None = None) -> Iterator[Directory]:
    """Yield `root` and every directory below it, in a fixed order, without following links.

    What was known `before` and has not changed since is taken from there, with its hashes; other
    files are not read.

    Raises InvalidCopy for links, devices, FIFOs and sockets, for setuid and setgid files, for names that can't be printed, for a
    tree deeper than any of VictoriaLogs', for what can't be read, and, unless it may be `linked`, for
    hard links to files outside of `root`.
    """
    links: dict[tuple[int, int], list[Path]] = {}
    limit = too_young()
    pending = [("", 0)]
    while pending:
        path, changed = pending.pop()
        known = before.find(path) if before else None
        if known and known.changed == changed != 0:
            yield known
            continue
        if path.count("/") >= DEEPEST:
            raise InvalidCopy(f"{root / path}: is nested deeper than {DEEPEST} directories")
        statuses: dict[str, os.stat_result] = {}
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
                    elif not stat.S_ISREG(status.st_mode):
                        raise InvalidCopy(f"{root / path / entry.name}: is not a file or directory")
                    elif status.st_mode & SPECIAL_BITS:
                        raise InvalidCopy(
                            f"{root / path / entry.name}: is setuid, setgid or sticky: "
                            f"mode {stat.S_IMODE(status.st_mode):04o}"
                        )
                    else:
                        statuses[entry.name] = status
                        if status.st_nlink > 1 and not linked:
                            _note_link(links, status, root / path / entry.name)
        except OSError as error:
            raise InvalidCopy(f"{root / path}: can't be read: {error.strerror}") from None
        found = Directory(
            path,
            {name: File(status.st_size) for name, status in statuses.items()},
            stamp=stamp(statuses),
            changed=changed if not children and changed < limit else 0,
            last=known,
        )
        if known and known.stamp == found.stamp:
            found = known.with_time(found.changed)
        elif before:
            before.touch(path)
        yield found
        pending += reversed(children)
    for paths in links.values():
        raise InvalidCopy(f"{paths[0]}: is a hard link to a file outside of the copy")


def hashed(
    root: Path,
    directories: Iterable[Directory],
    problems: list[str],
    on_read: Callable[[int], None] = lambda _: None,
) -> Iterator[Directory]:
    """Yield `directories` of `root` with the hashes of their files, read if they are not known.

    `on_read` is called with the bytes that were read since. VictoriaLogs never changes a part, so one that is not as it `last` was is added to `problems`.
    """
    for directory in directories:
        if directory.is_hashed:
            yield directory
            continue
        read = {
            name: File(file.size, hash_file(f"{root}/{directory.path}/{name}", on_read=on_read))
            for name, file in directory.files.items()
        }
        if directory.last and is_part(directory.path):
            problems += [
                f"{root / directory.path / name}: is not as it was when it was backed up before, but "
                "VictoriaLogs never changes a part"
                for name, file in directory.last.files.items()
                if name in read and read[name] != file
            ]
        yield Directory(directory.path, read, stamp=directory.stamp, changed=directory.changed)


def too_young() -> int:
    """Return the time from which on a change is too young to be told from a later one."""
    return time.time_ns() - TOO_YOUNG_NANOSECONDS


def _note_link(
    links: dict[tuple[int, int], list[Path]], status: os.stat_result, path: Path
) -> None:
    """Note one of the names of a file; the file is dropped when all of its names were seen."""
    key = (status.st_dev, status.st_ino)
    names = links.setdefault(key, [])
    names.append(path)
    if len(names) == status.st_nlink:
        del links[key]
