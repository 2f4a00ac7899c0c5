"""What it costs to know the content: hashes of everything, a day's share of it, a look, beside rsync.

Data that VictoriaLogs wrote, and a published staging copy of it on its filesystem. From a cold cache
each time: one pass of a plain rsync into an empty directory, which reads and writes everything; one
that finds nothing changed; and looks at the copy, as before-create makes them. One look has nothing
due, one has the share of a day in 30, one has everything due, as if nothing were known.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, data
from tests.parts.fakes import FakeHooks
from tests.support import make_backup
from vl_borg_hooks.plugin.context import Backup
from vl_borg_hooks.services import ServiceState
from vl_borg_hooks.staging.last_published import LastPublished
from vl_borg_hooks.steps import passes, publish

FILES, BIG_BYTES = 55_000, 2_000_000_000
QUICK_FILES, QUICK_BIG_BYTES = 1000, 50_000_000
DAY = 24 * 3600
EVERY = 30 * DAY
COPY, AGAIN = "rsync, everything", "rsync, nothing changed"
NOTHING, SHARE, ALL = "look, nothing due", "look, a day's share due", "look, everything due"


@final
class Content:
    """All ways on one staging copy, from a cold cache."""

    def __init__(self, tree: Path, workdir: Path) -> None:
        self.tree = tree
        self.plain = workdir / "plain"
        self.backup = published(tree, workdir)
        self.seconds: dict[str, list[float]] = {}
        self.read: dict[str, int] = {}

    def measure(self, repetitions: int) -> None:
        ways: dict[str, Callable[[], object]] = {
            COPY: self._copy,
            AGAIN: self._rsync,
            NOTHING: lambda: self._look(NOTHING, 0),
            SHARE: lambda: self._look(SHARE, DAY),
            ALL: lambda: self._look(ALL, EVERY),
        }
        for _ in range(repetitions):
            for name, way in ways.items():
                os.sync()
                Path("/proc/sys/vm/drop_caches").write_text("3")
                started = time.monotonic()
                way()
                self.seconds.setdefault(name, []).append(time.monotonic() - started)
                common.progress(f"{name}: {self.seconds[name][-1]:.2f} s")

    def _copy(self) -> None:
        shutil.rmtree(self.plain, ignore_errors=True)
        self.plain.mkdir()
        self._rsync()

    def _rsync(self) -> None:
        common.run(["rsync", "-a", "--delete", f"{self.tree}/", f"{self.plain}/"], {})

    def _look(self, name: str, ago: float) -> None:
        backup = self.backup
        last = LastPublished.of(backup.staging, backup.last_manifest, backup.records.directory)
        assert last
        last.looked_at = time.time() - ago
        found = last.look(every=EVERY)
        assert found.is_as_published
        self.read[name] = found.read

    def table(self) -> str:
        lines = [
            [
                name,
                common.spread(seconds),
                f"{self.read[name] / 1e6:,.0f}" if name in self.read else "",
                common.spread([one / other for one, other in zip(seconds, against, strict=True)]),
            ]
            for name, seconds in self.seconds.items()
            for against in [self.seconds[COPY if name in (COPY, ALL) else AGAIN]]
        ]
        head = ["", "seconds", "MB hashed", "of the rsync like it"]
        return common.table(head, lines)

    def as_json(self) -> Mapping[str, object]:
        return {
            name: {"seconds": common.summary(seconds), "bytes_hashed": self.read.get(name)}
            for name, seconds in self.seconds.items()
        }


def published(tree: Path, workdir: Path) -> Backup:
    """Return the backup of a stopped VictoriaLogs that was published, on the same filesystem."""
    backup = make_backup(workdir, data_path=str(tree))
    backup.staging.create()
    backup.records.create()
    backup.found = ServiceState.STOPPED
    publish.publish_copy(backup, passes.make_copy(backup, FakeHooks()))
    backup.last_manifest = backup.staging.manifest()
    return backup


def main() -> None:
    arguments = common.parse(common.parser(__doc__ or ""))
    files, big = (QUICK_FILES, QUICK_BIG_BYTES) if arguments.quick else (FILES, BIG_BYTES)
    with common.working_directory(arguments) as workdir:
        root = workdir / "content"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        tree = data.real(workdir, files, big_bytes=big)
        found = data.Tree.of(tree)
        content = Content(tree, root)
        content.measure(arguments.repetitions)
        shutil.rmtree(root)
    title = f"{found.files:,} files, {found.bytes / 1e6:,.0f} MB"
    common.report(
        "content",
        arguments,
        [f"{title}\n\n{content.table()}"],
        {**found.as_json(), **content.as_json()},
    )


if __name__ == "__main__":
    main()
