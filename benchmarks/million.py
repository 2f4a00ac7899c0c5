"""1,000,000 files in 2,000 partitions: the memory of our process, and time against a plain rsync.

A synthetic tree in VictoriaLogs' layout, and a server that only holds the lock. The
staging copy is on the same filesystem, and on another. Peak memory is that of the vl-borg-hooks
process itself, without the rsync that it starts. before-create waits until its copy is on the disk,
which rsync leaves to the kernel: what that takes after the rsync is measured by itself.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, data, place
from benchmarks.measured import Cost, measure
from tests.support import LockingServer

FILES, PARTITIONS = 1_000_000, 2_000
QUICK_FILES, QUICK_PARTITIONS = 20_000, 40
# Two copies, each file in a block of its own.
OTHER_BYTES = 24 << 30
PLACES = {"same": "same filesystem", "other": "another filesystem"}
OURS, PLAIN, SYNC = "ours", "plain", "sync"
FIRST, SECOND = "first", "nothing changed"
PROCESSOR = "processor_seconds"


@final
class Million:
    """Ours and plain rsync in one place; a first run, and some after nothing has changed."""

    def __init__(self, tree: data.Tree, server: LockingServer, workdir: Path, copies: Path) -> None:
        config = place.write_config(
            workdir,
            data_path=str(tree.path),
            staging_path=str(copies / OURS),
            service=server.service,
        )
        (copies / PLAIN).mkdir(parents=True)
        self.argv = {
            OURS: [common.HOOKS, "--config", str(config), "before-create"],
            PLAIN: ["rsync", "-a", "--delete", f"{tree.path}/", f"{copies / PLAIN}/"],
            SYNC: ["sync", "--file-system", str(copies / PLAIN)],
        }
        self.env = common.environment(workdir)
        self.costs: dict[str, dict[str, list[Cost]]] = {
            run: {way: [] for way in self.argv} for run in (FIRST, SECOND)
        }

    def measure(self, repetitions: int) -> None:
        self._measure(FIRST, (PLAIN, OURS))
        for repetition in range(repetitions):
            self._measure(SECOND, (OURS, PLAIN) if repetition % 2 else (PLAIN, OURS))

    def _measure(self, run: str, ways: tuple[str, str]) -> None:
        for way in ways:
            os.sync()
            self._measure_one(run, way)
            if way == PLAIN:
                self._measure_one(run, SYNC)

    def _measure_one(self, run: str, way: str) -> None:
        cost = measure(self.argv[way], self.env)
        self.costs[run][way].append(cost)
        memory = f"peak {cost.peak_bytes / 1e6:.0f} MB"
        common.progress(f"{run}: {way}: {cost.seconds:.1f} s, {memory}")

    def ratios(self, run: str, name: str = "seconds") -> list[float]:
        """Pair by pair."""
        pairs = zip(self.costs[run][OURS], self.costs[run][PLAIN], strict=True)
        return [getattr(ours, name) / getattr(plain, name) for ours, plain in pairs]

    def lines(self, where: str) -> list[list[str]]:
        return [
            [
                PLACES[where],
                run,
                common.spread([cost.seconds for cost in costs[OURS]]),
                common.spread([cost.seconds for cost in costs[PLAIN]]),
                common.spread(self.ratios(run)),
                common.spread([cost.seconds for cost in costs[SYNC]]),
                common.spread([cost.processor_seconds for cost in costs[OURS]]),
                common.spread([cost.processor_seconds for cost in costs[PLAIN]]),
                common.spread(self.ratios(run, PROCESSOR)),
                common.spread([cost.peak_bytes / 1e6 for cost in costs[OURS]], 1),
            ]
            for run, costs in self.costs.items()
        ]

    def as_json(self) -> Mapping[str, object]:
        return {
            run: {
                "seconds": common.summary([cost.seconds for cost in costs[OURS]]),
                "rsync_seconds": common.summary([cost.seconds for cost in costs[PLAIN]]),
                "ratio_to_rsync": common.summary(self.ratios(run)),
                "sync_seconds": common.summary([cost.seconds for cost in costs[SYNC]]),
                "processor_seconds": common.summary(
                    [cost.processor_seconds for cost in costs[OURS]]
                ),
                "rsync_processor_seconds": common.summary(
                    [cost.processor_seconds for cost in costs[PLAIN]]
                ),
                "processor_ratio_to_rsync": common.summary(self.ratios(run, PROCESSOR)),
                "peak_bytes": common.summary([cost.peak_bytes for cost in costs[OURS]]),
                "log": [cost.output.splitlines() for cost in costs[OURS]],
            }
            for run, costs in self.costs.items()
        }


def main() -> None:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--files", type=int, help=f"default: {FILES}")
    parser.add_argument("--partitions", type=int, help=f"default: {PARTITIONS}")
    arguments = common.parse(parser)
    files = arguments.files or (QUICK_FILES if arguments.quick else FILES)
    partitions = arguments.partitions or (QUICK_PARTITIONS if arguments.quick else PARTITIONS)
    with common.working_directory(arguments) as workdir:
        root = workdir / f"million-{files}"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        common.progress(f"writing {files:,} files")
        tree = data.synthetic(root / "data", files, partitions)
        measured = {}
        with (
            LockingServer(tree.path) as server,
            place.loop_device(root, OTHER_BYTES) as other,
        ):
            server.start()
            for where, copies in (("same", root / "copies"), ("other", other)):
                million = Million(tree, server, root / where, copies)
                million.measure(arguments.repetitions)
                measured[where] = million
        shutil.rmtree(root)
    title = f"{tree.files:,} files in {tree.partitions:,} partitions"
    head = ["staging", "run", "before-create, s", "rsync -a --delete, s", "ratio", "sync, s"]
    head += ["before-create, processor s", "rsync, processor s", "ratio", "our peak, MB"]
    lines = [line for where, million in measured.items() for line in million.lines(where)]
    results = {**tree.as_json(), **{where: made.as_json() for where, made in measured.items()}}
    table = common.table(head, lines)
    common.report("million", arguments, [f"{title}\n\n{table}"], results)


if __name__ == "__main__":
    main()
