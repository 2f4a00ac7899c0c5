"""`verify`: check a staging or extracted copy. Needs no server and no config."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vl_borg_hooks.errors import InvalidCopy
from vl_borg_hooks.staging.copy import StagingCopy, find_copies
from vl_borg_hooks.staging.verify import Report, verify
from vl_borg_hooks.transfer.progress import Reporter


def verify_all(root: Path, *, quick: bool) -> Iterator[Report]:
    """Yield a report on each copy at or below `root`; raises InvalidCopy if there is none.

    With `quick`, the content of files is not read.
    """
    for copy in find_copies(root):
        with Reporter(str(copy.path)).counting("the copy", "verified", _bytes(copy)) as on_read:
            report = verify(copy, quick=quick, on_read=on_read)
        yield report


def _bytes(copy: StagingCopy) -> int:
    """Return the bytes of `copy`, 0 if its manifest can't be read."""
    try:
        return copy.manifest().bytes
    except InvalidCopy:
        return 0


def lines(report: Report) -> list[str]:
    """Return `report` as lines for a person: each problem, or what a sound copy holds."""
    manifest = report.manifest
    if report.problems or manifest is None:
        return report.problems
    holds = f"{manifest.rows} rows, {manifest.files} files, {manifest.bytes} bytes"
    return [f"{report.copy.path}: ok: {holds} of {manifest.instance}, made {manifest.created}"]
