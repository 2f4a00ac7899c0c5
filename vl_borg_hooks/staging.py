"""A copy of a data directory: its mirror, its inventory, and the manifest that publishes it.

A staging copy is a directory with

    data/            the mirror of the data path
    inventory.jsonl  one line per directory of the mirror: its path and the size of each file
    manifest.json    written last: from then on the copy may be archived

An extracted copy is the same, come back out of an archive.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, final

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vl_borg_hooks import __version__, files
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.victorialogs.parts import counted_bytes, is_part_name

if TYPE_CHECKING:
    from vl_borg_hooks.known import Known

FORMAT: Literal[1] = 1
MANIFEST = "manifest.json"
INVENTORY = "inventory.jsonl"
DATA = "data"
# A manifest has a line for each day of logs: a century of days is 4 MB.
LARGEST_MANIFEST = 16 << 20
# An inventory line has the files of one directory: a part has some twenty.
LARGEST_INVENTORY_LINE = 16 << 20
# VictoriaLogs nests four deep: partitions/YYYYMMDD/datadb/PART.
DEEPEST = 16
# The kernel stamps files with the time of its last tick, and some filesystems in whole seconds: a
# directory that changed this shortly before it was looked at may change again and keep its time.
TOO_YOUNG_NANOSECONDS = 2_000_000_000
# Where an extraction may have put a copy below the directory that the operator names.
SEARCHED_DIRECTORIES = 10_000
# More than any disk holds of anything, and a number that is printed, summed and compared safely.
LARGEST_NUMBER = 10**30


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("holds what no terminal shows as it is")
    return text


def _name(name: str) -> str:
    if not is_part_name(name):
        raise ValueError("is no name of a directory")
    return name


# What a stranger's manifest may say: it is shown to the operator, and calculated with.
Shown = Annotated[str, AfterValidator(_printable)]
Number = Annotated[int, Field(ge=-LARGEST_NUMBER, le=LARGEST_NUMBER)]


class Partition(BaseModel):
    """What one partition of a copy holds. Timestamps are in nanoseconds since 1970."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    name: Annotated[str, AfterValidator(_name)]
    rows: Number
    min_timestamp: Number | None
    max_timestamp: Number | None


class Manifest(BaseModel):
    """What a published copy is: where it is from, what it holds, how it was made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format: Literal[1] = FORMAT
    created_by: str = f"vl-borg-hooks {__version__}"
    instance: Shown
    created: Shown
    data_path: str
    victorialogs_version: str
    owner: tuple[int, int] | None
    rows: Number
    files: Number
    bytes: Number
    partitions: list[Partition]
    warm_seconds: float | None
    final_seconds: float
    downtime_seconds: float | None
    # When the last changes were copied: see `final_pass` in the config.
    final_pass: Literal["frozen", "stopped"]
    # Whether the staging copy shared files with the data, as hard links on one filesystem.
    linked: bool
    inventory_sha256: str


class Sums(NamedTuple):
    """What the files of a directory add up to."""

    files: int
    bytes: int
    # What VictoriaLogs' metadata counts of a part; None for other directories.
    counted: int | None


@final
class Directory:
    """One directory of a mirror, as a walk finds it or as a line of an inventory has it."""

    __slots__ = ("_files", "_line", "_sums", "changed", "path")

    def __init__(
        self,
        path: str,
        files: dict[str, int] | None = None,
        *,
        changed: int = 0,
        line: bytes = b"",
        sums: Sums | None = None,
    ) -> None:
        """Take `files`, the size in bytes by name, or the `line` that lists them.

        `path` is relative to the mirror.
        """
        self.path = path
        # When it last changed, in nanoseconds since 1970, where that tells whether it has changed
        # since: 0 for one that has others in it, or that changed only just now.
        self.changed = changed
        self._files = files
        self._line = line
        self._sums = sums

    @property
    def files(self) -> dict[str, int]:
        """The size in bytes of each file by its name."""
        if self._files is None:
            _, self._files = json.loads(self._line)
        return self._files or {}

    @property
    def line(self) -> bytes:
        """The line of an inventory."""
        return self._line or json.dumps([self.path, self.files]).encode() + b"\n"

    @property
    def sums(self) -> Sums:
        """What its files add up to."""
        if self._sums is not None:
            return self._sums
        files = self.files
        return Sums(len(files), sum(files.values()), counted_bytes(self.path, files))

    @property
    def key(self) -> tuple[str, ...]:
        """What both an inventory and a walk are in order of."""
        return tuple(self.path.split("/")) if self.path else ()


@dataclass(frozen=True)
class Totals:
    """What an inventory adds up to."""

    files: int
    bytes: int
    sha256: str


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
        """The manifest, whose presence publishes the copy."""
        return self.path / MANIFEST

    @property
    def inventory_path(self) -> Path:
        """The inventory."""
        return self.path / INVENTORY

    def create(self) -> None:
        """Make the directory where it is missing, for us only; raises OperatorError."""
        files.private_directory(self.path)
        files.private_directory(self.data)

    def unpublish(self) -> None:
        """Withdraw the copy: nothing may be archived from now on; raises OperatorError."""
        files.remove(self.manifest_path)

    def publish(self, manifest: Manifest) -> None:
        """Write the manifest: from now on the copy may be archived; raises OperatorError."""
        content = manifest.model_dump_json(indent=2)
        files.write_atomically(self.manifest_path, content.encode() + b"\n")

    def manifest(self) -> Manifest:
        """Return the manifest; raises InvalidCopy."""
        parsed = files.read_json(self.manifest_path, LARGEST_MANIFEST)
        version = parsed.get("format") if isinstance(parsed, dict) else None
        if version != FORMAT:
            raise InvalidCopy(
                f"{self.manifest_path}: has format {version!r}, this version reads {FORMAT}",
                hint="use the version of vl-borg-hooks that its created_by names, or a newer one",
            )
        try:
            # JSON has no tuples: strict Python validation would refuse the list it gives instead.
            return Manifest.model_validate_json(json.dumps(parsed))
        except (ValidationError, RecursionError) as error:
            problem = error.errors()[0] if isinstance(error, ValidationError) else None
            where = ".".join(map(str, problem["loc"])) or "text" if problem else "nesting"
            raise InvalidCopy(f"{self.manifest_path}: is no manifest: {where} is wrong") from None

    def write_inventory(self, directories: Iterable[Directory] | None = None) -> Totals:
        """List all files of the mirror, as they are or as `directories` that were walked tell.

        Raises InvalidCopy for what no mirror may hold.
        """
        digest = hashlib.sha256()
        count = size = 0
        try:
            # Under another name: the last one is read meanwhile.
            new = self.inventory_path.with_name(f".{INVENTORY}.new")
            with open(new, "wb", opener=files.private) as inventory:
                for directory in walk(self.data) if directories is None else directories:
                    line, sums = directory.line, directory.sums
                    inventory.write(line)
                    digest.update(line)
                    count += sums.files
                    size += sums.bytes
            os.replace(new, self.inventory_path)
        except OSError as error:
            raise OperatorError(
                f"could not write {self.inventory_path}: {error.strerror}"
            ) from None
        return Totals(count, size, digest.hexdigest())

    def read_inventory(self, expected_sha256: str) -> Iterator[Directory]:
        """Yield what the inventory lists; raises InvalidCopy, at the end for a wrong checksum."""
        digest = hashlib.sha256()
        try:
            with open(self.inventory_path, "rb", opener=files.regular) as inventory:
                while line := inventory.readline(LARGEST_INVENTORY_LINE):
                    digest.update(line)
                    yield self._parse_inventory_line(line)
        except files.NotRegular:
            raise InvalidCopy(f"{self.inventory_path}: is no regular file") from None
        except OSError as error:
            raise InvalidCopy(
                f"{self.inventory_path}: can't be read: {files.reason(error)}"
            ) from None
        if digest.hexdigest() != expected_sha256:
            raise InvalidCopy(f"{self.inventory_path}: does not match the manifest's checksum")

    def _parse_inventory_line(self, line: bytes) -> Directory:
        try:
            path, sizes = json.loads(line)
        except (ValueError, TypeError, RecursionError):
            raise InvalidCopy(f"{self.inventory_path}: has a line that is no entry") from None
        # Of what a walk can't come to, nothing is told either: it is not below the mirror.
        if not (
            isinstance(path, str)
            and (not path or all(map(is_part_name, path.split("/"))))
            and isinstance(sizes, dict)
            and all(map(is_part_name, sizes))
            and all(type(size) is int and size >= 0 for size in sizes.values())
        ):
            raise InvalidCopy(f"{self.inventory_path}: has a line that is no entry")
        return Directory(path, sizes)


def walk(root: Path, *, linked: bool = False, known: Known | None = None) -> Iterator[Directory]:
    """Yield every directory below `root` and itself, in a fixed order, following no link.

    What is `known` and has not changed since is taken from there.

    Raises InvalidCopy for links, devices, FIFOs and sockets, for names that no terminal shows as
    they are, for a tree deeper than any of VictoriaLogs', and, unless it may be `linked`, for hard
    links to what lies outside of `root`.
    """
    links: dict[tuple[int, int], list[Path]] = {}
    too_young = time.time_ns() - TOO_YOUNG_NANOSECONDS
    pending = [("", 0)]
    while pending:
        path, changed = pending.pop()
        before = known.find(path) if known else None
        if before and before.changed == changed != 0:
            yield before
            continue
        if path.count("/") >= DEEPEST:
            raise InvalidCopy(f"{root / path}: is nested deeper than {DEEPEST} directories")
        sizes: dict[str, int] = {}
        children: list[tuple[str, int]] = []
        try:
            with os.scandir(f"{root}/{path}") as entries:
                for entry in sorted(entries, key=attrgetter("name")):
                    if not entry.name.isprintable():
                        raise InvalidCopy(f"{root / path / entry.name}: is no name in a copy")
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        child = f"{path}/{entry.name}" if path else entry.name
                        children.append((child, status.st_ctime_ns))
                    elif stat.S_ISREG(status.st_mode):
                        sizes[entry.name] = status.st_size
                        if status.st_nlink > 1 and not linked:
                            _note_link(links, status, root / path / entry.name)
                    else:
                        raise InvalidCopy(f"{root / path / entry.name}: is no file or directory")
        except OSError as error:
            raise InvalidCopy(f"{root / path}: can't be read: {error.strerror}") from None
        if known and (before is None or before.files != sizes):
            known.touch(path)
        tells = not children and changed < too_young
        yield Directory(path, sizes, changed=changed if tells else 0)
        pending += reversed(children)
    for paths in links.values():
        raise InvalidCopy(f"{paths[0]}: is a hard link to a file outside of the copy")


def _note_link(
    links: dict[tuple[int, int], list[Path]], status: os.stat_result, path: Path
) -> None:
    """Note one of the names of a file; the file is forgotten once all of its names were seen."""
    key = (status.st_dev, status.st_ino)
    names = links.setdefault(key, [])
    names.append(path)
    if len(names) == status.st_nlink:
        del links[key]


def find_copies(root: Path) -> list[StagingCopy]:
    """Return the copies at or below `root`, wherever an extraction has put them.

    Raises InvalidCopy where there is none.
    """
    found: list[StagingCopy] = []
    pending = [root]
    for _ in range(SEARCHED_DIRECTORIES):
        if not pending:
            break
        directory = pending.pop()
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
            pending += [directory / name for name, is_directory in kinds.items() if is_directory]
    if pending:
        raise InvalidCopy(
            f"{root}: has more than {SEARCHED_DIRECTORIES} directories to look for a copy in",
            hint=f"name the directory itself that holds {MANIFEST}",
        )
    if not found:
        raise InvalidCopy(
            f"{root}: holds no staging copy: no {MANIFEST} beside a {DATA} directory",
            hint="name the directory that borgmatic extract wrote to",
        )
    return found
