"""The whole backup: before-create and borg create, against the documented script and borg create.

A first run, and a second after a few rows more, each from nothing in every repetition. Wall time until
VictoriaLogs is healthy again and the archive is made, bytes read and written by all processes of it,
and for how many files Borg's files cache hit.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, data, place
from benchmarks.measured import Cost, measure

FILES, BIG_BYTES = 55_000, 2_000_000_000
QUICK_FILES, QUICK_BIG_BYTES = 1000, 50_000_000
OTHER_BYTES = 20 << 30
LABELS = {
    "ours_same": "vl-borg-hooks, same filesystem",
    "documented_same": "documented script, same filesystem",
    "ours_other": "vl-borg-hooks, another filesystem",
    "documented_other": "documented script, another filesystem",
}
RUNS = ("first", "second")


@dataclass
class Series:
    """What was measured of one run of one way, a figure for each repetition."""

    staging: list[Cost] = field(default_factory=list)
    borg: list[Cost] = field(default_factory=list)
    hits: list[float] = field(default_factory=list)

    def total(self, name: str) -> list[float]:
        """Staging and Borg together."""
        pairs = zip(self.staging, self.borg, strict=True)
        return [getattr(one, name) + getattr(two, name) for one, two in pairs]

    def as_json(self) -> Mapping[str, object]:
        names = ("seconds", "bytes_read", "bytes_written")
        return {
            "staging": {n: common.summary([getattr(c, n) for c in self.staging]) for n in names},
            "borg": {n: common.summary([getattr(c, n) for c in self.borg]) for n in names},
            "together": {n: common.summary(self.total(n)) for n in names},
            "files_cache_hits": common.summary(self.hits),
        }


@final
class WholeRun:
    """All ways on one data directory."""

    def __init__(self, workdir: Path, other: Path, *, quick: bool, cold: bool) -> None:
        files, big = (QUICK_FILES, QUICK_BIG_BYTES) if quick else (FILES, BIG_BYTES)
        self.tree = data.real(workdir, files, big_bytes=big)
        self.unit = place.Unit(self.tree)
        self.same, self.other = workdir / "whole-run", other / "whole-run"
        self.cold = cold
        self.series = {(way, run): Series() for way in LABELS for run in RUNS}

    def measure(self, repetitions: int) -> None:
        """First and second runs of all ways, each from nothing, in turn."""
        with self.unit:
            self.found = data.Tree.of(self.tree)
            ways = list(LABELS)
            for repetition in range(repetitions):
                first = repetition % len(ways)
                for way in (*ways[first:], *ways[:first]):
                    self._remove()
                    self._both_runs(way)
                    seconds = [self.series[way, run].total("seconds")[-1] for run in RUNS]
                    text = f"first {seconds[0]:.1f} s, second {seconds[1]:.1f} s"
                    common.progress(f"{repetition + 1}/{repetitions}: {way}: {text}")
        self._remove()

    def _both_runs(self, way: str) -> None:
        env = common.environment(self.same)
        self.same.mkdir(parents=True)
        self.other.mkdir(parents=True)
        copy = (self.same if way.endswith("same") else self.other) / "copy"
        hooks = place.Hooks(self.unit, self.same / "hooks", copy, env)
        if way.startswith("ours"):
            argv = hooks.argv("before-create")
        else:
            copy.mkdir()
            rsync = ["rsync", "-a", "--delete", f"{self.tree}/", f"{copy}/"]
            stop, start = (["systemctl", action, self.unit.name] for action in ("stop", "start"))
            script = place.write_script(self.same / "script.sh", rsync, stop, rsync, start)
            argv = [str(script)]
        repository = str(self.same / "repository.borg")
        common.run(["borg", "init", "--encryption", "none", repository], env)
        create = ["borg", "create", "--list", "--filter=AMCU", f"{repository}::", str(copy)]
        for run in RUNS:
            create[-2] = f"{repository}::{run}"
            self.unit.change_a_little()
            os.sync()
            if self.cold:
                Path("/proc/sys/vm/drop_caches").write_text("3")
            series = self.series[way, run]
            staging = measure(argv, env)
            # before-create has waited for that, and the script has not.
            ended = time.monotonic()
            self.unit.wait_healthy()
            waited = time.monotonic() - ended
            series.staging.append(replace(staging, seconds=staging.seconds + waited))
            borg = measure(create, env)
            series.borg.append(borg)
            kinds = Counter(re.findall(r"^([AMCU]) /", borg.output, re.MULTILINE))
            series.hits.append(kinds["U"] / max(1, kinds.total()))
            if way.startswith("ours"):
                hooks.run("after-create")

    def _remove(self) -> None:
        for directory in (self.same, self.other):
            shutil.rmtree(directory, ignore_errors=True)

    def table(self) -> str:
        lines = []
        for (way, run), series in self.series.items():
            written = [value / 1e6 for value in series.total("bytes_written")]
            read = [value / 1e6 for value in series.total("bytes_read")]
            lines.append(
                [
                    LABELS[way],
                    run,
                    common.spread(series.total("seconds")),
                    common.spread([cost.seconds for cost in series.staging]),
                    common.spread([cost.seconds for cost in series.borg]),
                    common.spread(written, 0),
                    common.spread(read, 0),
                    common.spread([100 * value for value in series.hits], 1),
                ]
            )
        head = ["", "run", "seconds", "staging, s", "borg create, s", "MB written", "MB read"]
        head.append("files cache hits, %")
        title = f"{self.found.files:,} files, {self.found.bytes / 1e6:,.0f} MB"
        return f"{title}\n\n{common.table(head, lines)}"

    def as_json(self) -> dict[str, object]:
        return {
            **self.found.as_json(),
            "cold_cache": self.cold,
            "ways": {way: {run: self.series[way, run].as_json() for run in RUNS} for way in LABELS},
        }


def main() -> None:
    parser = common.parser(__doc__ or "")
    parser.add_argument(
        "--warm-cache",
        action="store_true",
        help="don't drop the machine's page cache before each run",
    )
    arguments = common.parse(parser)
    with common.working_directory(arguments) as workdir:
        other = place.inside(workdir, other_bytes=OTHER_BYTES)
        if other is None:
            return
        run = WholeRun(workdir, other, quick=arguments.quick, cold=not arguments.warm_cache)
        run.measure(arguments.repetitions)
        common.report("whole_run", arguments, [run.table()], run.as_json())


if __name__ == "__main__":
    main()
