"""A small tree with the paths of the staging copies, for Borg to say what it would archive of it."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from vl_borg_hooks.staging.copy import DATA
from vl_borg_hooks.staging.inventory import INVENTORY
from vl_borg_hooks.staging.manifest import MANIFEST
from vl_borg_hooks.victorialogs.sample import SAMPLE

# path_resolution(7): so many links are followed.
MOST_LINKS = 40
# A tag has to begin with so many bytes to count (https://bford.info/cachedir/).
TAG_BYTES = 64


class Sample:
    """A tree in the directory `root`, as `/` has it: staging copies, and the links on the way to them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        # Each file of a staging copy, by its real path in the tree: its path on this machine.
        self._files: dict[str, str] = {}
        # The marks that are in it, as paths on this machine.
        self.marks: list[str] = []

    def add(self, staging_path: str, data_path: str | None, marks: Iterable[str]) -> None:
        """Add the staging copy of the data in `data_path`, which is None if it is another machine's.

        Files called `marks` are added if they are there on this machine, or in the data.
        """
        place = self._directories(staging_path)
        for name in (MANIFEST, INVENTORY, *(f"{DATA}/{name}" for name in SAMPLE)):
            file = Path(f"{self.root}{place}/{name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            self._files[os.path.realpath(file)] = f"{staging_path}/{name}"
        mirror = f"{place}/{DATA}"
        for mark in marks:
            for directory in (place, *map(str, Path(place).parents)):
                self._copy_mark(directory, [directory], mark)
            self._copy_mark(mirror, [mirror, *([data_path] if data_path else [])], mark)

    def files(self, staging_path: str) -> list[str]:
        """Return the files of the staging copy, as paths on this machine."""
        return [file for file in self._files.values() if file.startswith(f"{staging_path}/")]

    def roots(self, roots: Sequence[str], directory: str) -> dict[str, list[str]]:
        """Return those of Borg's `roots` that hold something of the tree, by where they are relative to.

        That is for absolute ones the top of the tree, and for others `directory` in it.
        """
        found: dict[str, list[str]] = {}
        for root in roots:
            base = "/" if os.path.isabs(root) else directory
            relative = root.lstrip("/") or "."
            inside = f"{self.root}{base}"
            names = glob.glob(relative, root_dir=inside) or [relative]
            found.setdefault(base, []).extend(
                name for name in names if os.path.lexists(os.path.join(inside, name))
            )
        return {base: names for base, names in found.items() if names}

    def on_this_machine(self, archived: str, directory: str) -> str | None:
        """Return the file that Borg has listed as `archived`, as a path on this machine."""
        return self._files.get(os.path.realpath(f"{self.root}{os.path.join(directory, archived)}"))

    def _directories(self, path: str) -> str:
        """Make directory `path` in the tree, with the links that it has; return where it really is."""
        place, links = "", 0
        left = deque(path.split("/"))
        while left:
            name = left.popleft()
            if name in ("", "."):
                continue
            if name == "..":
                place = os.path.dirname(place)
                continue
            outside = f"{place}/{name}"
            inside = f"{self.root}{outside}"
            if os.path.islink(outside) and links < MOST_LINKS:
                links += 1
                target = os.readlink(outside)
                left.extendleft(reversed(target.split("/")))
                if target.startswith("/"):
                    target = os.path.relpath(f"{self.root}{target}", os.path.dirname(inside))
                    place = ""
                if not os.path.lexists(inside):
                    os.symlink(target, inside)
            else:
                os.makedirs(inside, exist_ok=True)
                place = outside
        return place

    def _copy_mark(self, inside: str, outside: Sequence[str], mark: str) -> None:
        """Copy the beginning of the first file `mark` that is in one of the directories `outside`."""
        for directory in outside:
            try:
                with open(os.path.join(directory, mark), "rb") as file:
                    Path(f"{self.root}{inside}", mark).write_bytes(file.read(TAG_BYTES))
            except IsADirectoryError:
                os.makedirs(f"{self.root}{inside}/{mark}", exist_ok=True)
            except OSError:
                continue
            self.marks.append(os.path.join(directory, mark))
            return


def is_reached(root: str, staging_path: str) -> bool:
    """Say whether no other filesystem begins on the way from Borg's `root` to the staging copy's data."""
    top, place = Path(os.path.realpath(root)), Path(os.path.realpath(f"{staging_path}/{DATA}"))
    below = [path for path in (place, *place.parents) if path == top or top in path.parents]
    devices = {path.stat().st_dev for path in below if path.exists()}
    return place in top.parents or len(devices) == 1
