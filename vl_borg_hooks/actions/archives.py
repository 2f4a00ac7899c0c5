"""`archives`: what can be restored, from the manifests in borgmatic's archives."""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from vl_borg_hooks.archiving.archives import Archive, Archives, configurations
from vl_borg_hooks.archiving.configuration import installed_borgmatic
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.staging.manifest import Manifest
from vl_borg_hooks.system import files
from vl_borg_hooks.system.log import RESULT, logger

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig

# In the state directory, and not the name of any instance.
CACHE = ".archives"
LARGEST_CACHED = 1 << 26


class Held(BaseModel):
    """What an archive has of one instance: when the copy was made, and the rows of each day."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    instance: str
    created: str
    rows: int
    rows_by_day: dict[str, int]


@dataclass(frozen=True)
class Found:
    """A copy in an archive. `when` is the archive's time, in the time zone of this machine."""

    archive: str
    id: str
    when: str
    repository: str
    instance: str
    created: str
    rows: int
    days: int
    first_day: str
    last_day: str
    rows_by_day: dict[str, int]

    def line(self, day: str | None) -> str:
        """Say what it is in one line, and how many rows it has of `day`."""
        days = f"{self.days} days" if self.days != 1 else "1 day"
        span = f", {self.first_day} to {self.last_day}" if self.days else ""
        of_day = f", {self.rows_by_day[day]:,} of them of {day}" if day else ""
        return (
            f"{self.when.partition('.')[0].replace('T', ' ')}  {self.repository}  {self.archive}  "
            f"{self.instance}: {self.rows:,} rows in {days}{span}{of_day}"
        )


@dataclass
class Overview:
    """The copies, and what could not be read, one line each."""

    found: list[Found]
    problems: list[str]


def archives(
    loaded: LoadedConfig,
    instances: Sequence[Instance],
    *,
    borgmatic_config: Path | None,
    repository: str | None,
    day: str | None,
) -> Overview:
    """Return the copies of `instances` in the archives, oldest first; with `day`, those that hold it.

    Only of the `repository` with that label or path, if it is named. Raises OperatorError if no
    repository can be looked for.
    """
    if day is not None and not re.fullmatch(r"[0-9]{8}", day):
        raise OperatorError(f"{day!r} is not a day such as 20240131")
    borgmatic = installed_borgmatic()
    if not borgmatic:
        raise OperatorError("borgmatic is not on PATH", hint="install it, or correct PATH")
    overview = Overview([], [])
    looked_at = [
        Archives(borgmatic, configuration, one)
        for configuration in configurations(borgmatic, loaded.path, borgmatic_config)
        for one in configuration.repositories
        if repository is None or one.is_called(repository)
    ]
    if not looked_at:
        raise OperatorError(f"no borgmatic config has a repository {repository}")
    # Those of all instances, whichever are wanted: what an archive holds is cached.
    paths = sorted(instance.staging_path for instance in loaded.config.instances)
    names = {instance.name for instance in instances}
    for one in looked_at:
        try:
            for archive, held in _held(one, loaded.config.state_directory / CACHE, paths, overview):
                if held.instance in names and (day is None or day in held.rows_by_day):
                    overview.found.append(_found(archive, one.repository.name, held))
        except OperatorError as error:
            overview.problems.append(str(error))
    overview.found.sort(key=lambda one: (one.when, one.repository, one.archive, one.instance))
    return overview


def _held(
    archives: Archives, cache: Path, paths: Sequence[str], overview: Overview
) -> Iterator[tuple[Archive, Held]]:
    """Yield each copy in `archives`; what can't be read of one is noted in the overview."""
    listing = archives.listing()
    known = _Known(cache / listing.id, paths)
    known.forget_others([archive.id for archive in listing.archives])
    cached = {archive.id: known.read(archive) for archive in listing.archives}
    if new := list(cached.values()).count(None):
        many = f"{new} archives" if new > 1 else "1 archive"
        logger.log(RESULT, "%s: reading the manifests of %s, once", archives.repository.name, many)
    for archive in listing.archives:
        held = cached[archive.id]
        if held is None:
            try:
                held = list(map(_of, archives.manifests(archive, paths)))
            except InvalidCopy as error:
                overview.problems.append(str(error))
                continue
            known.write(archive, held)
        for one in held:
            yield archive, one


def _of(manifest: Manifest) -> Held:
    return Held(
        instance=manifest.instance,
        created=manifest.created,
        rows=manifest.rows,
        rows_by_day={one.name: one.rows for one in manifest.partitions},
    )


def _found(archive: Archive, repository: str, held: Held) -> Found:
    days = sorted(held.rows_by_day)
    return Found(
        archive=archive.name,
        id=archive.id,
        when=archive.start,
        repository=repository,
        days=len(days),
        first_day=days[0] if days else "",
        last_day=days[-1] if days else "",
        **held.model_dump(),
    )


class _Known:
    """What is known of the archives of one repository, in files: an archive never changes.

    That depends on the `paths` that were looked for, so the names of the files do too.
    """

    _CONTENT = TypeAdapter(list[Held])

    def __init__(self, directory: Path, paths: Sequence[str]) -> None:
        self._directory = directory
        self._paths = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:16]

    def read(self, archive: Archive) -> list[Held] | None:
        """Return what `archive` holds, None if that is not known."""
        try:
            with open(self._file(archive.id), "rb", opener=files.regular) as file:
                return self._CONTENT.validate_json(file.read(LARGEST_CACHED))
        except (OSError, ValidationError):
            return None

    def write(self, archive: Archive, held: list[Held]) -> None:
        """Note what `archive` holds. If that can't be written, it is read again next time."""
        try:
            for directory in (*reversed(self._directory.parents[:2]), self._directory):
                files.private_directory(directory)
            files.write_atomically(self._file(archive.id), self._CONTENT.dump_json(held))
        except OperatorError as error:
            logger.info("%s", error)

    def forget_others(self, ids: Sequence[str]) -> None:
        """Remove what is known of archives that are gone, or of other paths."""
        kept = {self._file(one).name for one in ids}
        with contextlib.suppress(OSError):
            for file in self._directory.iterdir():
                if file.name not in kept:
                    file.unlink()

    def _file(self, archive_id: str) -> Path:
        return self._directory / f"{archive_id}-{self._paths}.json"
