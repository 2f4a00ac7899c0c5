"""A copy of a data directory: its mirror, its inventory, and the manifest that publishes it.

A staging copy is a directory with

    data/            the mirror of the data path
    inventory.jsonl  one line per directory of the mirror: its path, and the size and hash of each file
    manifest.json    written last: from then on the copy may be archived

An extracted copy is the same, extracted from an archive.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.staging import inventory, manifest
from vl_borg_hooks.staging.inventory import INVENTORY, NEW_INVENTORY, Directory, Totals
from vl_borg_hooks.staging.manifest import MANIFEST, Manifest
from vl_borg_hooks.system import files
from vl_borg_hooks.victorialogs.layout import PARTITIONS

DATA = "data"
# All that is in a staging copy's directory.
OURS = frozenset({DATA, MANIFEST, INVENTORY, NEW_INVENTORY})
# How many directories are searched for a copy, below the one that the operator names.
SEARCHED_DIRECTORIES = 10_000


class NoCopy(InvalidCopy):
    """There is no staging copy, or it was not found among very many directories."""


@dataclass(frozen=True)
class StagingCopy:
    """A staging or extracted copy at `path`."""

    path: Path

    @property
    def data(self) -> Path:
        """The mirror."""
        return self.path / DATA

    @property
    def manifest_path(self) -> Path:
        """The manifest: while it is there, the copy is published."""
        return self.path / MANIFEST

    @property
    def inventory_path(self) -> Path:
        """The inventory."""
        return self.path / INVENTORY

    def create(self) -> None:
        """Make the directory if it is missing, and close it to others; raises OperatorError.

        The mirror in it has the modes of the data, which may be writable for a group.
        """
        files.private_directory(self.path, holds=OURS)
        if self.data.is_symlink():
            raise OperatorError(
                f"{self.data}: is a link, so not the data of a staging copy", hint="remove it"
            )
        try:
            self.data.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise OperatorError(f"could not create {self.data}: {error.strerror}") from None

    def unpublish(self) -> None:
        """Remove the manifest: from now on nothing may be archived; raises OperatorError."""
        files.remove(self.manifest_path)

    def publish(self, new: Manifest) -> None:
        """Write the manifest: from now on the copy may be archived; raises OperatorError."""
        content = new.model_dump_json(indent=2)
        files.write_atomically(self.manifest_path, content.encode() + b"\n")

    def manifest(self) -> Manifest:
        """Return the manifest; raises InvalidCopy."""
        return manifest.read(self.manifest_path)

    def write_inventory(self, directories: Iterable[Directory]) -> Totals:
        """Write a new inventory beside the last one, and return the totals.

        The last one is what is known of the last published copy. It stays until `use_new_inventory`.
        Raises InvalidCopy if the mirror holds what no mirror may hold.
        """
        return inventory.write(self._new_inventory, directories)

    def use_new_inventory(self) -> None:
        """Put the new inventory in place of the last one; raises OperatorError."""
        files.replace(self._new_inventory, self.inventory_path)

    @property
    def _new_inventory(self) -> Path:
        return self.path / NEW_INVENTORY

    def read_inventory(self, expected_sha256: str) -> Iterator[Directory]:
        """Yield what the inventory lists; raises InvalidCopy, at the end for a wrong checksum."""
        return inventory.read(self.inventory_path, expected_sha256)


def find_copies(root: Path) -> list[StagingCopy]:
    """Return the copies at or below `root`, at any depth that an extraction may have put them.

    Raises NoCopy if none is found, InvalidCopy if `root` can't be read. VictoriaLogs' own data is
    not searched: it can be beside the copy, and has very many directories.
    """
    found: list[StagingCopy] = []
    pending = deque([root])
    for _ in range(SEARCHED_DIRECTORIES):
        if not pending:
            break
        directory = pending.popleft()
        try:
            with os.scandir(directory) as entries:
                kinds = {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}
        except OSError as error:
            if directory == root:
                raise InvalidCopy(f"{root}: can't be read: {error.strerror}") from None
            continue
        if MANIFEST in kinds and kinds.get(DATA):
            found.append(StagingCopy(directory))
        else:
            pending += [
                directory / name
                for name, is_directory in kinds.items()
                if is_directory and name != PARTITIONS
            ]
    if pending:
        raise NoCopy(
            f"{root}: has more than {SEARCHED_DIRECTORIES} directories to look for a copy in",
            hint=f"name the directory itself that holds {MANIFEST}",
        )
    if not found:
        raise NoCopy(
            f"{root}: holds no staging copy: no {MANIFEST} beside a {DATA} directory",
            hint="name the directory that borgmatic extract wrote to",
        )
    return found
