"""What is known about the last published copy, so that what has not changed is not read again.

The inventory lists every directory of the copy. In the instance's state directory we keep, for each
of its lines, the ctime of that directory, which nobody can set back. It changes if an entry is made,
removed or replaced; rsync replaces files. A million files are some 80,000 directories.

But every run still looks at each file once, because a file that is damaged in place does not change
its directory, and a file that is shared with the data, as a hard link, can be damaged there. This
comes before the warm pass, which then only has to copy what is new by VictoriaLogs' lists of parts.
rsync would look at each file twice: here and in the data.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import final

from vl_borg_hooks.staging.copy import StagingCopy
from vl_borg_hooks.staging.inventory import Directory, Sums
from vl_borg_hooks.staging.manifest import Manifest, Partition
from vl_borg_hooks.system import files, processes
from vl_borg_hooks.victorialogs.parts import partition_of

# Below an instance's state directory: the checksum of the inventory, when the copy was last compared
# with the data, and a note for each line.
KNOWN = "known"
CHUNK_BYTES = 1 << 20
_INT64 = "q"
# A note: when the directory changed, and its sums; the last of them may be none.
_NUMBERS = 4
_NONE = -1


@final
class Notes:
    """What is kept about a copy that is being published."""

    def __init__(self) -> None:
        self._numbers = array(_INT64)

    def taking(self, directories: Iterable[Directory]) -> Iterator[Directory]:
        """Yield `directories` unchanged, and take a note of each."""
        for directory in directories:
            count, size, counted = directory.sums
            note = (directory.changed, count, size, _NONE if counted is None else counted)
            self._numbers.extend(note)
            yield directory

    def keep(self, state_directory: Path, inventory_sha256: str, compared: float) -> None:
        """Keep the notes for the next run; raises OperatorError.

        `compared` is when all of the copy was last compared with the data: seconds since 1970.
        """
        header = f"{inventory_sha256} {int(compared)}\n".encode()
        files.write_atomically(state_directory / KNOWN, header + self._numbers.tobytes())


@final
class LastPublished:
    """The last published copy; asked for its directories in the order of a walk."""

    def __init__(
        self, copy: StagingCopy, manifest: Manifest, numbers: array[int], compared: int
    ) -> None:
        # When all of it was last compared with the data, in seconds since 1970.
        self.compared = compared
        self._copy = copy
        self._manifest = manifest
        self._numbers = numbers
        # For each line, whether this run found the files of its directory unchanged.
        self._seen = bytearray(len(numbers) // _NUMBERS)
        self._directories: Iterator[Directory] | None = None
        self._next: Directory | None = None
        self._touched: set[str] = set()

    @classmethod
    def of(
        cls, copy: StagingCopy, manifest: Manifest | None, state_directory: Path
    ) -> LastPublished | None:
        """Return what is known about `copy`, None if nothing is known or it can't be trusted.

        `manifest` is the one that it was published with, None if it was not published.
        """
        if manifest is None:
            return None
        try:
            header, _, content = (state_directory / KNOWN).read_bytes().partition(b"\n")
            checksum, when = header.split()
            compared = int(when)
            numbers = array(_INT64)
            numbers.frombytes(content)
            expected = manifest.inventory_sha256.encode()
            if not checksum == _checksum(copy.inventory_path) == expected:
                return None
        except (OSError, ValueError):
            return None
        totals = sum(numbers[1::_NUMBERS]), sum(numbers[2::_NUMBERS])
        if len(numbers) % _NUMBERS or totals != (manifest.files, manifest.bytes):
            return None
        return cls(copy, manifest, numbers, compared)

    def look(self) -> bool:
        """Look at every file, and say whether all is as it was published.

        Uses the processor and the disk only when nothing else needs them. Runs in a separate thread,
        because a thread that was made idle stays idle.
        """
        found: list[bool] = []
        ended = threading.Event()

        def look() -> None:
            # An inventory that can't be read any more proves nothing.
            with contextlib.suppress(OSError):
                found.append(self._look(ended))

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            looking.join()
        finally:
            ended.set()
        return found == [True]

    def _look(self, ended: threading.Event) -> bool:
        processes.make_idle(threading.get_native_id())
        listed = directories = 0
        for number, directory in enumerate(self._read()):
            if ended.is_set():
                break
            listed += 1
            with contextlib.suppress(OSError):
                sizes, inner = _look_into(f"{self._copy.data}/{directory.path}")
                self._seen[number] = sizes == directory.files
                directories += inner
        # All listed ones are there. As many (without the top one) means that there are no others.
        return all(self._seen) and directories == listed - 1

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
            for partition in self._manifest.partitions
            if partition.name not in self._touched
        }

    def _read(self) -> Iterator[Directory]:
        """Yield what the inventory lists. Its checksum shows that we wrote it: it is not checked.

        Directories that were not seen yet have 0 as the time of their last change.
        """
        notes = zip(*[iter(self._numbers)] * _NUMBERS, strict=True)
        decoder = json.JSONDecoder()
        with open(self._copy.inventory_path, "rb", opener=files.regular) as lines:
            for number, (line, note) in enumerate(zip(lines, notes, strict=False)):
                changed, count, size, counted = note
                # Without the files, which are rarely needed.
                path, _ = decoder.raw_decode(line.decode(), 1)
                if not self._seen[number]:
                    changed = 0
                sums = Sums(count, size, None if counted == _NONE else counted)
                yield Directory(path, changed=changed, line=line, sums=sums)


def _look_into(directory: str) -> tuple[dict[str, int], int]:
    """Return the size of each file in `directory`, and how many directories are in it."""
    sizes: dict[str, int] = {}
    directories = 0
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                directories += 1
            else:
                sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
    return sizes, directories


def _checksum(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb", opener=files.regular) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest().encode()
