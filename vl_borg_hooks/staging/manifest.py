"""The manifest: what a published copy is, where it is from, what it holds, how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from vl_borg_hooks import __version__
from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.system import files
from vl_borg_hooks.victorialogs.parts import is_part_name

FORMAT: Literal[2] = 2
MANIFEST = "manifest.json"
# A manifest has a line for each day of logs: a century of days is 4 MB.
LARGEST_MANIFEST = 16 << 20
# More than any disk holds, and still safe to print, add and compare.
LARGEST_NUMBER = 10**30


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that can't be printed")
    return text


def _name(name: str) -> str:
    if not is_part_name(name):
        raise ValueError("is not the name of a directory")
    return name


# What an untrusted manifest may say: it is shown to the operator, and used in calculations.
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

    format: Literal[2] = FORMAT
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
    final_pass: Literal["frozen", "stopped", "snapshot"]
    # Whether the staging copy may have shared files with the data, as hard links on one filesystem.
    linked: bool
    inventory_sha256: str
    # What was not clean about the stop before the final pass, empty if nothing was: then rows that
    # VictoriaLogs had acknowledged may be missing, in the copy and in the data.
    unclean_stop: Shown = ""
    # How the copy became consistent, and why so: see `consistency` in the config.
    consistency: Literal["stop", "snapshot"] = "stop"
    consistency_why: Shown = ""


def read(path: Path) -> Manifest:
    """Return the manifest in the file `path`; raises InvalidCopy."""
    return of(files.read_json(path, LARGEST_MANIFEST), str(path))


def of(parsed: object, path: str) -> Manifest:
    """Return the manifest that the JSON of `path` is; raises InvalidCopy."""
    version = parsed.get("format") if isinstance(parsed, dict) else None
    if version != FORMAT:
        raise InvalidCopy(
            f"{path}: has format {version!r}, this version reads {FORMAT}",
            hint="use the version of vl-borg-hooks that its created_by names, or a newer one",
        )
    try:
        # JSON has no tuples: strict Python validation would refuse its lists.
        return Manifest.model_validate_json(json.dumps(parsed))
    except (ValidationError, RecursionError) as error:
        problem = error.errors()[0] if isinstance(error, ValidationError) else None
        where = ".".join(map(str, problem["loc"])) or "text" if problem else "nesting"
        raise InvalidCopy(f"{path}: is not a manifest: {where} is wrong") from None
