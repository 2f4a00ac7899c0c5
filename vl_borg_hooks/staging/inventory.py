"""The inventory: one line per directory of a mirror, its path, and the size and hash of each file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.staging.hashing import is_hash
from vl_borg_hooks.system import files
from vl_borg_hooks.victorialogs.parts import counted_bytes, is_part_name

INVENTORY = "inventory.jsonl"
NEW_INVENTORY = f".{INVENTORY}.new"
# An inventory line has the files of one directory: a part has some twenty.
LARGEST_INVENTORY_LINE = 16 << 20


class File(NamedTuple):
    """What is known of one file of a mirror."""

    # In bytes.
    size: int
    # Of its content, by hashing; empty if it was not read.
    hash: str = ""


class Sums(NamedTuple):
    """What the files of a directory add up to."""

    files: int
    bytes: int
    # What VictoriaLogs' metadata counts of a part; None for other directories.
    counted: int | None


@final
class Directory:
    """One directory of a mirror, as a walk finds it or as a line of an inventory has it."""

    __slots__ = ("_files", "_line", "_sums", "changed", "last", "path", "stamp")

    def __init__(
        self,
        path: str,
        files: dict[str, File] | None = None,
        *,
        stamp: int = 0,
        changed: int = 0,
        line: bytes = b"",
        sums: Sums | None = None,
        last: Directory | None = None,
    ) -> None:
        """Take `files` by name, or the `line` that lists them. `path` is relative to the mirror."""
        self.path = path
        # What shows later that its files are the same: see hashing.stamp.
        self.stamp = stamp
        # The same directory as it was before, if a walk knows that it was another one.
        self.last = last
        # When it last changed, in nanoseconds since 1970, if that is enough to see a later change.
        # 0 if it has directories in it, or has only just changed.
        self.changed = changed
        self._files = files
        self._line = line
        self._sums = sums

    @property
    def files(self) -> dict[str, File]:
        """Its files by name."""
        if self._files is None:
            _, listed = json.loads(self._line)
            self._files = {name: File(*values) for name, values in listed.items()}
        return self._files

    @property
    def is_hashed(self) -> bool:
        """Whether the hash of each file is known."""
        return self._files is None or all(file.hash for file in self._files.values())

    @property
    def line(self) -> bytes:
        """The line of an inventory."""
        return self._line or json.dumps([self.path, self.files]).encode() + b"\n"

    def with_time(self, changed: int) -> Directory:
        """Return the same directory, with another time of its last change."""
        return Directory(
            self.path,
            self._files,
            stamp=self.stamp,
            changed=changed,
            line=self._line,
            sums=self._sums,
        )

    @property
    def sums(self) -> Sums:
        """What its files add up to."""
        if self._sums is not None:
            return self._sums
        sizes = {name: file.size for name, file in self.files.items()}
        return Sums(len(sizes), sum(sizes.values()), counted_bytes(self.path, sizes))

    @property
    def key(self) -> tuple[str, ...]:
        """The key that inventories and walks are sorted by."""
        return tuple(self.path.split("/")) if self.path else ()


@dataclass(frozen=True)
class Totals:
    """What an inventory adds up to."""

    files: int
    bytes: int
    sha256: str


def write(path: Path, directories: Iterable[Directory]) -> Totals:
    """Write an inventory of `directories` to the file `path`, and return what they add up to.

    Raises OperatorError; InvalidCopy, from a walk, for what no mirror may hold.
    """
    digest = hashlib.sha256()
    count = size = 0
    try:
        with open(path, "wb", opener=files.private) as inventory:
            for directory in directories:
                line, sums = directory.line, directory.sums
                inventory.write(line)
                digest.update(line)
                count += sums.files
                size += sums.bytes
    except OSError as error:
        raise OperatorError(f"could not write {path}: {error.strerror}") from None
    return Totals(count, size, digest.hexdigest())


def read(path: Path, expected_sha256: str) -> Iterator[Directory]:
    """Yield what the inventory lists; raises InvalidCopy, at the end for a wrong checksum."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", opener=files.regular) as inventory:
            while line := inventory.readline(LARGEST_INVENTORY_LINE):
                digest.update(line)
                yield _parse_line(path, line)
    except files.NotRegular:
        raise InvalidCopy(f"{path}: is not a regular file") from None
    except OSError as error:
        raise InvalidCopy(f"{path}: can't be read: {files.reason(error)}") from None
    if digest.hexdigest() != expected_sha256:
        raise InvalidCopy(f"{path}: does not match the manifest's checksum")


def _parse_line(inventory: Path, line: bytes) -> Directory:
    try:
        path, listed = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        raise InvalidCopy(f"{inventory}: has a line that is not an entry") from None
    # A path that a walk can't reach is not below the mirror, so the line is not an entry.
    if not (
        isinstance(path, str)
        and (not path or all(map(is_part_name, path.split("/"))))
        and isinstance(listed, dict)
        and all(map(is_part_name, listed))
        and all(map(_is_file, listed.values()))
    ):
        raise InvalidCopy(f"{inventory}: has a line that is not an entry")
    return Directory(path, {name: File(*values) for name, values in listed.items()})


def _is_file(values: object) -> bool:
    """Say whether `values` are the size and the hash of a file."""
    if not (isinstance(values, list) and len(values) == 2):
        return False
    size, digest = values
    return type(size) is int and size >= 0 and isinstance(digest, str) and is_hash(digest)
