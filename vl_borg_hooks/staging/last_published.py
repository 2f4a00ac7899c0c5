"""What is known about the last published copy, so that what has not changed is not read again.

The files of a directory are unchanged as long as their names, sizes, inodes and ctimes are as they
were when their content was hashed. Every run looks at each of them once, hashes what is not known to
be unchanged, and hashes the other directories in turn, so that all is read again within a set time.

The hashes are in the inventory. In the instance's state directory we keep, for each of its lines, one
number that stands for those names, sizes, inodes and ctimes. A million files are some 80,000
directories.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from operator import attrgetter
from pathlib import Path
from typing import TypeAlias, final

import xxhash

from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.hashing import CHUNK_BYTES, hash_file, stamp
from vl_borg_hooks.staging.inventory import Directory, Sums
from vl_borg_hooks.staging.manifest import Manifest, Partition
from vl_borg_hooks.staging.walk import too_young
from vl_borg_hooks.system import files, processes
from vl_borg_hooks.victorialogs.layout import PARTITIONS
from vl_borg_hooks.victorialogs.parts import is_part, partition_of

# Below an instance's state directory: the checksum of the inventory, when the copy was last looked
# at, and the stamp of each line's directory.
STAMPS = "stamps"
# So many threads look at directories, each at so many at once.
LOOKERS = 4
LOOKED_AT_ONCE = 32
# How long a look that was given up may take to end: a read can hang in the kernel.
ENDING_SECONDS = 2
_INT64 = "q"
_NONE = -1
_Contents: TypeAlias = tuple[int, dict[str, os.stat_result], int]


@final
class Notes:
    """What is kept about a copy that is being published."""

    def __init__(self) -> None:
        self._stamps = array(_INT64)

    def taking(self, directories: Iterable[Directory]) -> Iterator[Directory]:
        """Yield `directories` unchanged, and take a note of each."""
        for directory in directories:
            self._stamps.append(directory.stamp)
            yield directory

    def keep(self, state_directory: Path, inventory_sha256: str, looked_at: float) -> None:
        """Keep the notes for the next run; raises OperatorError.

        `looked_at` is when the copy was looked at, in seconds since 1970: what was due then was read.
        """
        header = f"{inventory_sha256} {int(looked_at)}\n".encode()
        files.write_atomically(state_directory / STAMPS, header + self._stamps.tobytes())


@dataclass
class Look:
    """What a look at every file of a copy has found."""

    # Whether all is as it was published, but for what is gone from the data.
    is_as_published: bool = False
    # The files with another content than was published, relative to the mirror.
    damaged: list[str] = field(default_factory=list)
    # How many bytes were read, because they may have changed or because it was their turn.
    read: int = 0


@final
class LastPublished:
    """The last published copy; asked for its directories in the order of a walk."""

    def __init__(
        self, copy: StagingCopy, manifest: Manifest | None, stamps: array[int], looked_at: int
    ) -> None:
        # When it was last looked at, in seconds since 1970.
        self.looked_at: float = looked_at
        self._copy = copy
        self._manifest = manifest
        # By the line of the inventory. The time of the last change of each directory, and its sums,
        # are known only of those that this run has seen unchanged.
        self._stamps = stamps
        self._changed = array(_INT64, bytes(8 * len(stamps)))
        self._sums = [array(_INT64, bytes(8 * len(stamps))) for _ in Sums._fields]
        self._seen = bytearray(len(stamps))
        self._directories: Iterator[Directory] | None = None
        self._next: Directory | None = None
        self._touched: set[str] = set()

    @classmethod
    def of(
        cls, copy: StagingCopy, manifest: Manifest | None, state_directory: Path
    ) -> LastPublished | None:
        """Return what is known about `copy`, None if nothing is known or it can't be trusted.

        `manifest` is the one that it was published with, None if a run has removed it and has not
        published another: the inventory is then still that of the last published copy.
        """
        try:
            checksum, lines = _checksum(copy.inventory_path)
        except OSError:
            return None
        if manifest and manifest.inventory_sha256 != checksum:
            manifest = None
        kept = _kept(state_directory / STAMPS, checksum, lines)
        if kept:
            return cls(copy, manifest, *kept)
        # All of it has to be read, and is then known again.
        return cls(copy, manifest, array(_INT64, bytes(8 * lines)), 0) if manifest else None

    def look(self, *, every: float, is_gone: Callable[[str], bool] = lambda _: False) -> Look:
        """Look at every file, and read what may have changed and what is due.

        Each directory is due once in `every` seconds. What `is_gone` from the data is not read: it
        is going to be removed. Uses the processor and the disk only when nothing else needs them.
        Runs in a separate thread, because a thread that was made idle stays idle. None is alive
        afterwards, unless it hangs in the kernel: commands are started by a fork.
        """
        found: list[Look] = []
        ended = threading.Event()

        def look() -> None:
            # An inventory that can't be read any more proves nothing.
            with contextlib.suppress(OSError):
                found.append(self._look(every, is_gone, ended))

        looking = threading.Thread(target=look, daemon=True)
        with processes.threads_ended(ENDING_SECONDS):
            looking.start()
            try:
                looking.join()
            finally:
                ended.set()
        return found[0] if found else Look()

    def _look(self, every: float, is_gone: Callable[[str], bool], ended: threading.Event) -> Look:
        processes.make_idle(threading.get_native_id())
        started, limit, result = time.time(), too_young(), Look()
        listed = directories = unseen = 0
        for number, (directory, contents) in enumerate(_look_ahead(self._copy.data, self._read())):
            if ended.is_set():
                return Look()
            listed += 1
            if contents is None:
                unseen += 1
                continue
            changed, statuses, inner = contents
            directories += inner
            if is_gone(directory.path):
                continue
            now = stamp(statuses)
            if now != self._stamps[number] or _is_due(
                directory.path, every, self.looked_at, started
            ):
                if not self._is_same(directory, statuses, result, ended):
                    # A walk must not take it for the same, although its stamp may be.
                    self._stamps[number] = 0
                    unseen += 1
                    continue
                self._stamps[number] = now
            self._seen[number] = True
            self._changed[number] = changed if not inner and changed < limit else 0
            for column, value in zip(self._sums, directory.sums, strict=True):
                column[number] = _NONE if value is None else value
        self.looked_at = started
        # All listed ones are there. As many (without the top one) means that there are no others.
        result.is_as_published = not unseen and directories == listed - 1
        return result

    def _is_same(
        self,
        directory: Directory,
        statuses: dict[str, os.stat_result],
        result: Look,
        ended: threading.Event,
    ) -> bool:
        """Hash the files of `directory`, and say whether they are those that were published."""
        expected = directory.files
        same = expected.keys() == statuses.keys()
        for name in expected.keys() & statuses.keys():
            path = f"{directory.path}/{name}".lstrip("/")
            content = None
            if statuses[name].st_size == expected[name].size:
                result.read += expected[name].size
                with contextlib.suppress(InvalidCopy):
                    content = hash_file(f"{self._copy.data}/{path}", is_cancelled=ended.is_set)
            if content != expected[name].hash:
                same = False
                result.damaged.append(path)
        return same

    def unlisted_parts(self) -> Iterator[str]:
        """Yield the parts in the mirror that the inventory does not list."""
        listed = (each.path for each in self._read() if is_part(each.path))
        expected = next(listed, None)
        for path in _parts_in(self._copy.data):
            while expected is not None and _key(expected) < _key(path):
                expected = next(listed, None)
            if path != expected:
                yield path

    def find(self, path: str) -> Directory | None:
        """Return directory `path` as it was then, None if it did not exist."""
        if self._directories is None:
            self._directories = self._read()
            self._next = next(self._directories, None)
        if self._next and self._next.path != path:
            key = Directory(path, {}).key
            while self._next and self._next.key < key:
                self.touch(self._next.path)
                self._next = next(self._directories, None)
        if self._next is None or self._next.path != path:
            return None
        found, self._next = self._next, next(self._directories, None)
        return found

    def touch(self, path: str) -> None:
        """Note that directory `path` is not as it was then."""
        self._touched.add(partition_of(path))

    def partitions(self) -> dict[str, Partition]:
        """Return the partitions that are as they were then, by name; to be called after the walk."""
        while self._directories and self._next:
            self.touch(self._next.path)
            self._next = next(self._directories, None)
        return {
            partition.name: partition
            for partition in (self._manifest.partitions if self._manifest else ())
            if partition.name not in self._touched
        }

    def _read(self) -> Iterator[Directory]:
        """Yield what the inventory lists. Its checksum shows that we wrote it: it is not checked.

        Directories that were not seen yet have 0 as the time of their last change.
        """
        decoder = json.JSONDecoder()
        with open(self._copy.inventory_path, "rb", opener=files.regular) as lines:
            for number, line in enumerate(lines):
                # Without the files, which are rarely needed.
                path, _ = decoder.raw_decode(line.decode(), 1)
                yield Directory(
                    path,
                    stamp=self._stamps[number],
                    changed=self._changed[number],
                    line=line,
                    sums=self._known_sums(number) if self._seen[number] else None,
                )

    def _known_sums(self, number: int) -> Sums:
        count, size, counted = (column[number] for column in self._sums)
        return Sums(count, size, None if counted == _NONE else counted)


def _parts_in(data: Path) -> Iterator[str]:
    """Yield the directories in the place of parts, in the order of an inventory."""
    found = data.glob(f"{PARTITIONS}/*/*/*/")
    paths = (str(path.relative_to(data)) for path in found)
    yield from sorted(filter(is_part, paths), key=_key)


def _key(path: str) -> tuple[str, ...]:
    return tuple(path.split("/"))


def _is_due(path: str, every: float, last: float, now: float) -> bool:
    """Say whether directory `path` has to be read again in a look at `now`, the one after `last`.

    Each path has its moment in a period of `every` seconds, spread evenly by a hash of it. It is due
    in the first look after that moment.
    """
    moment = xxhash.xxh3_64_intdigest(path.encode()) / (1 << 64) * every
    return (now - moment) // every != (last - moment) // every


def _look_ahead(
    data: Path, directories: Iterator[Directory]
) -> Iterator[tuple[Directory, _Contents | None]]:
    """Yield `directories` with what is in them now; None for one that can't be read.

    Some threads look ahead: one alone would mostly wait for the disk.
    """

    def look_into(some: list[Directory]) -> list[_Contents | None]:
        return [_look_into(f"{data}/{directory.path}") for directory in some]

    with ThreadPoolExecutor(LOOKERS, initializer=_be_idle) as lookers:
        pending: deque[tuple[list[Directory], Future[list[_Contents | None]]]] = deque()
        try:
            while True:
                some = list(islice(directories, LOOKED_AT_ONCE))
                if some:
                    pending.append((some, lookers.submit(look_into, some)))
                if not pending:
                    return
                if len(pending) > LOOKERS or not some:
                    first, contents = pending.popleft()
                    yield from zip(first, contents.result(), strict=True)
        finally:
            lookers.shutdown(cancel_futures=True)


def _be_idle() -> None:
    processes.make_idle(threading.get_native_id())


def _look_into(directory: str) -> _Contents | None:
    """Return when `directory` last changed, its files in order, and how many directories it has.

    Nanoseconds since 1970. None if it can't be read.
    """
    directories = 0
    statuses: dict[str, os.stat_result] = {}
    try:
        changed = os.stat(directory, follow_symlinks=False).st_ctime_ns
        with os.scandir(directory) as entries:
            for entry in sorted(entries, key=attrgetter("name")):
                if entry.is_dir(follow_symlinks=False):
                    directories += 1
                else:
                    statuses[entry.name] = entry.stat(follow_symlinks=False)
    except OSError:
        return None
    return changed, statuses, directories


def _kept(path: Path, checksum: str, lines: int) -> tuple[array[int], int] | None:
    """Return what the file `path` keeps of the inventory with that `checksum`, None if nothing."""
    try:
        header, _, content = path.read_bytes().partition(b"\n")
        of, when = header.decode().split()
        looked_at = int(when)
        stamps = array(_INT64)
        stamps.frombytes(content)
    except (OSError, ValueError):
        return None
    return (stamps, looked_at) if of == checksum and len(stamps) == lines else None


def _checksum(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of the file `path`, and how many lines it has; raises OSError."""
    digest = hashlib.sha256()
    lines = 0
    with open(path, "rb", opener=files.regular) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            lines += chunk.count(b"\n")
    return digest.hexdigest(), lines
