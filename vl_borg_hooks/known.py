"""What is known of the last published copy, so that what is as it was then is not looked at again.

The inventory lists every directory of the copy. Beside the instance's state we keep, for each of
its lines, when that directory last changed by its ctime, which nobody can set back: an entry that is
made, removed or replaced, as rsync replaces files, changes it. A million files are some 80,000
directories.

Where files are shared with the data, as hard links, each is looked at all the same: one that is
damaged there is damaged here too, and nothing else shows that. Only VictoriaLogs' metadata of what
is as it was need not be read again.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator
from pathlib import Path

from vl_borg_hooks import files
from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.staging import Directory, Manifest, Partition, StagingCopy
from vl_borg_hooks.victorialogs.parts import partition_of

# Below an instance's state directory: the checksum of the inventory, and a number for each line.
KNOWN = "known"
CHUNK_BYTES = 1 << 20
_INT64 = "q"


class Known:
    """The last published copy, asked for its directories in the order of a walk."""

    def __init__(self, manifest: Manifest, inventory: Iterator[Directory]) -> None:
        self._manifest = manifest
        self._directories = inventory
        self._next = next(self._directories, None)
        self._touched: set[str] = set()

    @classmethod
    def of(cls, copy: StagingCopy, state_directory: Path) -> Known | None:
        """Return what is known of `copy`, None where that is nothing or can't be trusted."""
        try:
            manifest = copy.manifest()
            checksum, _, content = (state_directory / KNOWN).read_bytes().partition(b"\n")
            changed = array(_INT64)
            changed.frombytes(content)
            expected = manifest.inventory_sha256.encode()
            if not checksum == _checksum(copy.inventory_path) == expected:
                return None
        except (InvalidCopy, OSError, ValueError):
            return None
        return cls(manifest, _read(copy.inventory_path, changed))

    def find(self, path: str) -> Directory | None:
        """Return directory `path` as it was then, None where there was none."""
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
        """Take note that directory `path` is not as it was then."""
        self._touched.add(partition_of(path))

    def partitions(self) -> dict[str, Partition]:
        """Return, after the walk, the partitions by name that are as they were then."""
        while self._next:
            self.touch(self._next.path)
            self._next = next(self._directories, None)
        return {
            partition.name: partition
            for partition in self._manifest.partitions
            if partition.name not in self._touched
        }


def _read(inventory: Path, changed: array[int]) -> Iterator[Directory]:
    """Yield what `inventory` lists. By its checksum we have written it: nothing is checked again."""
    with open(inventory, "rb", opener=files.regular) as lines:
        for line, moment in zip(lines, changed, strict=False):
            path, sizes = json.loads(line)
            yield Directory(path, sizes, moment, line)


def keep(state_directory: Path, inventory_sha256: str, changed: array[int]) -> None:
    """Keep when each directory of the inventory last changed; raises OperatorError."""
    content = inventory_sha256.encode() + b"\n" + changed.tobytes()
    files.write_atomically(state_directory / KNOWN, content)


def _checksum(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb", opener=files.regular) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest().encode()
