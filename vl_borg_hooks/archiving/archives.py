"""What is in the repositories of borgmatic's configuration, as its own Borg tells and extracts it.

It is always asked by `borgmatic borg`, which knows passphrases, keys, ssh commands and paths.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl_borg_hooks.archiving.configuration import (
    NO_LOG,
    PLAIN,
    Configuration,
    Repository,
    Shown,
    Unknown,
    default_files,
)
from vl_borg_hooks.errors import InvalidCopy, OperatorError
from vl_borg_hooks.staging import manifest
from vl_borg_hooks.staging.manifest import LARGEST_MANIFEST, MANIFEST, Manifest
from vl_borg_hooks.system import processes
from vl_borg_hooks.system.log import logger

# How much Borg may list of a repository, which has 300 bytes for an archive.
LARGEST_LIST = 1 << 28
# From when on it has printed all, how long it may take to end.
ENDING_SECONDS = 60
# What Borg prints goes to stdout, but nothing that borgmatic and the operator's hooks have to say.
QUIET = ("--verbosity", "-1", *NO_LOG)
# 1.7 logs what Borg prints. It has no silent log, but writes to no other if it has a file.
QUIET_1_7 = ("--verbosity", "0", "--log-file", "/dev/null")
# What borgmatic says before the reason.
NO_REASONS = (
    "is supported natively",
    "Error running actions",
    "Error running configuration",
    "returned non-zero exit status",
)
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Archive:
    """An archive of a repository. `start` is its time as Borg says it, of this machine's time zone."""

    id: str
    name: str
    start: str


@dataclass(frozen=True)
class Listing:
    """The archives of the repository that has the `id`, oldest first."""

    id: str
    archives: list[Archive]


def configurations(borgmatic: Sequence[str], ours: Path, named: Path | None) -> list[Configuration]:
    """Return the `named` configuration of borgmatic, else those of its usual ones that run `ours`.

    Raises OperatorError if there is none.
    """
    files = [named.absolute()] if named else default_files()
    found = []
    with contextlib.ExitStack() as stack:
        # They all run at once.
        shown = [
            stack.enter_context(contextlib.closing(Shown(borgmatic, file, ()))) for file in files
        ]
        for one in shown:
            try:
                configuration = one.configuration()
            except Unknown as unknown:
                if named:
                    raise
                logger.warning("%s", unknown)
                continue
            if named or configuration.backs_up(ours) is not None:
                found.append(configuration)
    if not found:
        looked_at = ", ".join(map(str, files)) or "there is none in its usual places"
        raise OperatorError(
            f"no borgmatic config includes that of {ours} ({looked_at})",
            hint="name it: --borgmatic-config FILE",
        )
    return found


class Archives:
    """The archives in `repository` of `configuration`, asked for by `borgmatic`."""

    def __init__(
        self, borgmatic: Sequence[str], configuration: Configuration, repository: Repository
    ) -> None:
        self._configuration = configuration
        self.repository = repository
        quiet = QUIET_1_7 if configuration.has_sections else QUIET
        self._command = [
            *(*borgmatic, f"--config={configuration.file}", *quiet, "borg"),
            *("--repository", str(repository.given.get("path"))),
        ]

    def listing(self) -> Listing:
        """Return all archives, of any host and name; raises OperatorError."""
        try:
            # Not borgmatic's own list, which leaves out the archives of other machines.
            (listed,) = _parsed(self._run(["list", "--json"], LARGEST_LIST))
            found = [
                Archive(str(one["id"]), str(one["name"]), str(one["start"]))
                for one in listed["archives"]
            ]
            repository = str(listed["repository"]["id"])
            if not all(map(_ID.fullmatch, [repository, *(one.id for one in found)])):
                raise ValueError("an id is not one of Borg's")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise OperatorError(
                f"{self._name}: what Borg lists is not understood: {error}"
            ) from None
        return Listing(repository, found)

    def manifests(self, archive: Archive, staging_paths: Sequence[str]) -> list[Manifest]:
        """Return the manifests of the copies that `archive` has of `staging_paths`.

        Nothing else is extracted, and that to memory. Raises InvalidCopy for any that is wrong,
        OperatorError if they can't be extracted.
        """
        paths = [f"pf:{path.strip('/')}/{MANIFEST}" for path in staging_paths]
        options = ["extract", f"::{archive.name}", *paths, "--stdout"]
        chosen: list[str] = []
        if self._configuration.has_sections:
            # 1.7 itself puts repository and archive after the first word.
            chosen, options = ["--archive", archive.name], ["extract", *paths, "--stdout"]
        text = self._run([*chosen, *options], LARGEST_MANIFEST * len(paths))
        where = f"{MANIFEST} in {archive.name} of {self._name}"
        try:
            return [manifest.of(parsed, where) for parsed in _parsed(text, len(paths))]
        except (ValueError, RecursionError) as error:
            raise InvalidCopy(f"{where}: is not valid JSON: {error}") from None

    @property
    def _name(self) -> str:
        return f"{self.repository.name} in {self._configuration.file}"

    def _run(self, arguments: Sequence[str], largest: int) -> str:
        """Return what Borg prints, at most `largest` bytes; raises OperatorError."""
        with tempfile.TemporaryFile() as errors:
            # In a session of its own: if it is ended, it ends all of its process group.
            process = processes.beside(
                [*self._command, *arguments],
                talks=True,
                dies_with_us=True,
                outlives_us=True,
                environment=PLAIN,
                errors=errors,
            )
            try:
                if process.stdin is None or process.stdout is None:
                    raise TypeError("a process that talks has pipes")
                # There is nobody to be asked for a passphrase.
                process.stdin.close()
                output = process.stdout.read(largest + 1)
                if len(output) > largest:
                    raise OperatorError(f"{self._name}: Borg prints more than {largest} bytes")
                processes.wait(process, ENDING_SECONDS)
                status = process.poll()
            finally:
                processes.end(process)
            errors.seek(0)
            said = errors.read().decode("utf-8", "replace")
        if status != 0:
            raise OperatorError(
                f"{self._name}: Borg can't be asked: {_reason(said) or f'exit status {status}'}",
                hint=f"run: borgmatic --config {self._configuration.file} borg list",
            )
        return output


def _parsed(text: str, most: int = 1) -> list[Any]:
    """Return what the JSON texts in `text` hold, which follow one another.

    Raises ValueError or RecursionError for anything else, and for more than `most`.
    """
    decoder = json.JSONDecoder()
    found: list[Any] = []
    at = _next(text, 0)
    while at < len(text):
        if len(found) == most:
            raise ValueError("there is more than was asked for")
        parsed, at = decoder.raw_decode(text, at)
        found.append(parsed)
        at = _next(text, at)
    return found


def _next(text: str, at: int) -> int:
    """Return where in `text` the next JSON text begins, from `at` on."""
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _reason(said: str) -> str:
    """Return what Borg or borgmatic complained of first."""
    lines = [line.strip() for line in said.splitlines()]
    told = [line for line in lines if line and not any(text in line for text in NO_REASONS)]
    return told[0] if told else ""
