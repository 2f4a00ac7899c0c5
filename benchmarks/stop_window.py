"""How long is VictoriaLogs away? Ours, against the other ways that an operator could use.

Each way is measured in each repetition, in turn, by a client that writes all the time: a window is
from its last answered request before the stop to its first one after. The gap in it begins
when VictoriaLogs has stopped and ends when it begins to start, by its own log: that is what a backup
adds. All of it runs on a real systemd.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, data, merge, place
from benchmarks.writer import Window, Writer

ROWS = "5000,55000,200000,5000+merge,55000+merge,5000+tail"
QUICK_ROWS = "1000,1000+merge"
MERGED_BYTES = 2_000_000_000
QUICK_MERGED_BYTES = 50_000_000
OTHER_BYTES = 40 << 30

BARE, BORG = "bare", "borg"
LABELS = {
    BARE: "systemctl stop, start",
    "ours_same": "vl-borg-hooks, staging on the same filesystem",
    "ours_other": "vl-borg-hooks, staging on another filesystem",
    "documented_same": "documented rsync script, to the same filesystem",
    "documented_other": "documented rsync script, to another filesystem",
    BORG: "stop, borg create, start",
}
# What ours is compared with, beside the bare stop and start.
DOCUMENTED = {"ours_same": "documented_same", "ours_other": "documented_other"}


@dataclass
class Series:
    """What was measured of one way, a figure for each repetition."""

    seconds: list[float] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    gap: list[float] = field(default_factory=list)

    def ratios(self, other: Series) -> list[float]:
        """Pair by pair: repetition by repetition."""
        return [mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)]

    def beyond(self, other: Series) -> list[float]:
        """By how many seconds it is longer, pair by pair."""
        return [mine - its for mine, its in zip(self.seconds, other.seconds, strict=True)]


@final
class Row:
    """One size of data, and all ways to back it up."""

    def __init__(
        self,
        workdir: Path,
        other: Path,
        files: int,
        merged: int,
        ways: Sequence[str],
        *,
        tail: bool = False,
    ) -> None:
        self.tree = data.real(workdir, files, big_bytes=merged)
        self.merged = merged
        # Whether a client has a live tail open, which VictoriaLogs waits for when it stops.
        self.tail = tail
        self.unit = place.Unit(self.tree)
        self.same = workdir / f"stop-window-{self.tree.name}"
        self.other = other / self.tree.name
        self._remove()
        self.series: dict[str, Series] = {}
        self.ways = ways

    def measure(self, repetitions: int) -> None:
        """Each way once unmeasured, for first copies and caches; then all in turn."""
        self._prepare()
        with self.unit:
            # Counted while it runs: that is what the ways find.
            self.found = data.Tree.of(self.tree)
            for way in self.ways:
                common.progress(f"{self.tree.name}: first run: {way}")
                self._run(way)
            self.series = {way: Series() for way in self.ways}
            for repetition in range(repetitions):
                first = repetition % len(self.ways)
                for way in (*self.ways[first:], *self.ways[:first]):
                    window, own = self._run(way)
                    series = self.series[way]
                    series.seconds.append(window.seconds)
                    series.refused.append(window.refused)
                    series.gap.append(self.unit.gap())
                    if own is not None:
                        series.own.append(own)
                    text = f"{window.seconds:.3f} s, {window.refused} refused"
                    own_text = f", by its own clock {own:.3f} s" if own is not None else ""
                    common.progress(
                        f"{self.tree.name}: {repetition + 1}/{repetitions}: {way}: {text}{own_text}"
                    )
        self._remove()

    def _prepare(self) -> None:
        env = common.environment(self.same)
        self.same.mkdir(parents=True)
        self.other.mkdir(parents=True)
        stop, start = (["systemctl", action, self.unit.name] for action in ("stop", "start"))
        source = f"{self.tree}/"
        repository = str(self.same / "repository.borg")
        scripts = {BARE: [stop, start]}
        between = []
        if self.merged:
            order = (self.unit.server.url, self.tree, data.BIG_DAY)
            between.append([sys.executable, merge.__file__, *map(str, order)])
            env.update(merge.environment(self.same / "plugin", order))
        self.hooks: dict[str, place.Hooks] = {}
        for where, directory in (("same", self.same), ("other", self.other)):
            hooks = place.Hooks(self.unit, self.same / where, directory / "staging", env)
            self.hooks[f"ours_{where}"] = hooks
            copy = directory / "documented"
            copy.mkdir()
            rsync = ["rsync", "-a", "--delete", source, f"{copy}/"]
            scripts[f"documented_{where}"] = [rsync, *between, stop, rsync, start]
        create = ["borg", "create", f"{repository}::{{now:%Y-%m-%dT%H:%M:%S.%f}}", source]
        scripts[BORG] = [stop, create, start]
        if BORG in self.ways:
            common.run(["borg", "init", "--encryption", "none", repository], env)
        self.scripts = {
            way: place.write_script(self.same / f"{way}.sh", *lines)
            for way, lines in scripts.items()
        }
        self.env = env

    def _run(self, way: str) -> tuple[Window, float | None]:
        """Do it once; return what the client saw, and our own figure if the way is ours."""
        self.unit.change_a_little()
        if self.merged and way in (BARE, BORG):
            # Nothing comes between passes here, but there must be as much to archive.
            merge.merge(self.unit.server.url, str(self.tree), data.BIG_DAY)
        # What one way has left to be written must not be in the way of the next.
        os.sync()
        parts = merge.parts(self.tree, data.BIG_DAY) if self.merged else []
        writer = Writer(self.unit.server.url, self.same / "writer.json")
        with writer, self.unit.server.tail() if self.tail else contextlib.nullcontext():
            if way in self.hooks:
                self.hooks[way].run("before-create")
            else:
                common.run([str(self.scripts[way])], self.env)
            self.unit.wait_healthy()
        between = self.merged and way not in (BARE, BORG)
        if between and parts == merge.parts(self.tree, data.BIG_DAY):
            raise RuntimeError(f"{way}: nothing was merged between the passes")
        own = None
        if way in self.hooks:
            own = self.hooks[way].downtime
            self.hooks[way].run("after-create")
        return writer.window, own

    def _remove(self) -> None:
        for directory in (self.same, self.other):
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def title(self) -> str:
        """Its size in words."""
        merged = f", a merge of {self.merged / 1e9:.2g} GB after the warm pass"
        size = f"{self.found.files:,} files in {self.found.partitions:,} partitions"
        tail = ", a live tail open" if self.tail else ""
        return f"{size}{merged if self.merged else ''}{tail}"

    def table(self) -> str:
        """The comparison, pair by pair within the run."""
        bare = self.series[BARE]
        lines = []
        for way, series in self.series.items():
            documented = self.series.get(DOCUMENTED.get(way, ""))
            lines.append(
                [
                    LABELS[way],
                    common.spread(series.seconds, 3),
                    common.spread(series.own, 3) if series.own else "",
                    common.spread(series.gap, 3),
                    f"{statistics.median(series.refused):g}",
                    common.spread(series.ratios(bare)) if way != BARE else "",
                    common.spread(series.beyond(bare), 3) if way != BARE else "",
                    common.spread(series.ratios(documented)) if documented else "",
                ]
            )
        head = ["", "window, s", "own clock, s", "gap, s", "refused"]
        head += ["/ bare", "- bare, s", "/ documented"]
        return f"{self.title}\n\n{common.table(head, lines)}"

    def as_json(self) -> dict[str, object]:
        return {
            "files": self.found.files,
            "partitions": self.found.partitions,
            "bytes": self.found.bytes,
            "merged_bytes": self.merged,
            "live_tail": self.tail,
            "ways": {way: self._series_as_json(way) for way in self.series},
        }

    def _series_as_json(self, way: str) -> Mapping[str, object]:
        series, bare = self.series[way], self.series[BARE]
        content: dict[str, object] = {
            "label": LABELS[way],
            "seconds": common.summary(series.seconds),
            "gap_seconds": common.summary(series.gap),
            "refused": series.refused,
        }
        if series.own:
            content["own_seconds"] = common.summary(series.own)
        if way != BARE:
            content["ratio_to_bare"] = common.summary(series.ratios(bare))
            content["seconds_beyond_bare"] = common.summary(series.beyond(bare))
        if DOCUMENTED.get(way) in self.series:
            documented = self.series[DOCUMENTED[way]]
            content["ratio_to_documented"] = common.summary(series.ratios(documented))
        return content


def parse() -> argparse.Namespace:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--rows", metavar="FILES[+merge|+tail],...", help=f"default: {ROWS}")
    parser.add_argument(
        "--ways", metavar="WAY,...", default=",".join(LABELS), help="default: %(default)s"
    )
    arguments = common.parse(parser)
    arguments.rows = (arguments.rows or (QUICK_ROWS if arguments.quick else ROWS)).split(",")
    arguments.ways = [way for way in LABELS if way in arguments.ways.split(",") or way == BARE]
    return arguments


def main() -> None:
    arguments = parse()
    with common.working_directory(arguments) as workdir:
        other = place.inside(workdir, other_bytes=OTHER_BYTES)
        if other is None:
            return
        merged = QUICK_MERGED_BYTES if arguments.quick else MERGED_BYTES
        measured = []
        for text in arguments.rows:
            files, _, extra = text.partition("+")
            row = Row(
                *(workdir, other, int(files), merged if extra == "merge" else 0),
                arguments.ways,
                tail=extra == "tail",
            )
            row.measure(arguments.repetitions)
            measured.append(row)
        tables = [row.table() for row in measured]
        common.report("stop_window", arguments, tables, [row.as_json() for row in measured])


if __name__ == "__main__":
    main()
