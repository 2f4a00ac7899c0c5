"""What do clients notice of a backup with snapshots? Ours, against the documented procedure.

VictoriaLogs serves all the time: one client writes, another asks, both at a steady rate, first while
nothing else happens and then during the backup. Ours is before-create with `consistency: snapshot`; the
procedure is what VictoriaLogs' documentation tells (tests/parts/documented.py). A first run and a second,
each from nothing in every repetition. Rows that were acknowledged before a run began and that are not
in its copy are counted one by one.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, data, place
from benchmarks.load import HOST, INSERT, QUERY, Client, Latency
from tests.parts import documented
from tests.parts.ports import free_port
from tests.parts.victoria_logs import VictoriaLogsProcess

SIZES = "5000,55000,200000"
QUICK_SIZES = "1000"
IDLE_SECONDS, QUICK_IDLE_SECONDS = 10.0, 2.0
OTHER_BYTES = 40 << 30
LABELS = {
    "ours_same": "vl-borg-hooks, same filesystem",
    "documented_same": "documented procedure, same filesystem",
    "ours_other": "vl-borg-hooks, another filesystem",
    "documented_other": "documented procedure, another filesystem",
}
# What ours is compared with.
DOCUMENTED = {"ours_same": "documented_same", "ours_other": "documented_other"}
RUNS = ("first", "second")
# What before-create says of the proof that what was acknowledged is on the disk.
_PROOF = re.compile(r"disk: seen after ([\d.]+) s, with (\d+) short snapshots")


@dataclass
class Series:
    """What was measured of one run of one way, a figure for each repetition."""

    seconds: list[float] = field(default_factory=list)
    idle: dict[str, list[Latency]] = field(default_factory=lambda: {INSERT: [], QUERY: []})
    during: dict[str, list[Latency]] = field(default_factory=lambda: {INSERT: [], QUERY: []})
    failed: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    missed: list[int] = field(default_factory=list)
    # Of ours only.
    proof_seconds: list[float] = field(default_factory=list)
    proof_snapshots: list[int] = field(default_factory=list)

    def p99(self, kind: str) -> list[float]:
        """Milliseconds for an answer during the backup, that 1 % took longer than."""
        return [latency.p99 for latency in self.during[kind]]

    def as_json(self, other: Series | None) -> Mapping[str, object]:
        """Return all figures; `other` is the documented procedure if this is ours."""
        content: dict[str, object] = {
            "seconds": common.summary(self.seconds),
            "failed": self.failed,
            "acknowledged_before": self.acknowledged,
            "missed": self.missed,
        }
        for kind in (INSERT, QUERY):
            for when, latencies in (("idle", self.idle), ("during", self.during)):
                content[f"{kind}_{when}_milliseconds"] = {
                    name: common.summary([getattr(latency, name) for latency in latencies[kind]])
                    for name in (figure.name for figure in dataclasses.fields(Latency))
                }
        if self.proof_seconds:
            content["proof_seconds"] = common.summary(self.proof_seconds)
            content["proof_snapshots"] = self.proof_snapshots
        if other:
            content["seconds_to_documented"] = common.summary(ratios(self.seconds, other.seconds))
            for kind in (INSERT, QUERY):
                found = ratios(self.p99(kind), other.p99(kind))
                content[f"{kind}_p99_to_documented"] = common.summary(found)
        return content


def ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """Pair by pair: repetition by repetition."""
    return [mine / its for mine, its in zip(ours, others, strict=True)]


@final
class Size:
    """One size of data, and all ways to back it up."""

    def __init__(
        self, workdir: Path, other: Path, files: int, ways: Sequence[str], idle_seconds: float
    ) -> None:
        self.tree = data.real(workdir, files)
        self.process = VictoriaLogsProcess(common.victoria_logs(), self.tree, free_port())
        self.same, self.other = (
            directory / f"zero-downtime-{self.tree.name}" for directory in (workdir, other)
        )
        self.ways, self.idle_seconds = ways, idle_seconds
        self.series = {(way, run): Series() for way in ways for run in RUNS}

    def measure(self, repetitions: int) -> None:
        """First and second runs of all ways, each from nothing, in turn."""
        self.process.start(place.HEALTHY_SECONDS)
        with self.process:
            self.found = data.Tree.of(self.tree)
            for repetition in range(repetitions):
                first = repetition % len(self.ways)
                for way in (*self.ways[first:], *self.ways[:first]):
                    self._remove()
                    self.same.mkdir(parents=True)
                    self.other.mkdir(parents=True)
                    for run in RUNS:
                        self._run(way, run)
                        series = self.series[way, run]
                        common.progress(
                            f"{self.tree.name}: {repetition + 1}/{repetitions}: {way}, {run}: "
                            f"{series.seconds[-1]:.2f} s, p99 {series.p99(INSERT)[-1]:.1f} ms, "
                            f"{series.failed[-1]} failed, {series.missed[-1]} missed"
                        )
            self.process.stop(place.HEALTHY_SECONDS)
        self._remove()

    def _run(self, way: str, run: str) -> None:
        series, url = self.series[way, run], self.process.server.url
        copy = (self.same if way.endswith("same") else self.other) / "copy"
        argv = self._command(way, copy)
        env = common.environment(self.same)
        os.sync()
        with (
            Client(INSERT, url, self.same / "insert.json") as insert,
            Client(QUERY, url, self.same / "query.json") as query,
        ):
            started = time.monotonic()
            # The state that it is compared with, so long that a hundredth of the answers are some.
            time.sleep(self.idle_seconds)
            began = time.monotonic()
            said = common.run(argv, env)
            ended = time.monotonic()
        series.seconds.append(ended - began)
        for kind, client in ((INSERT, insert), (QUERY, query)):
            series.idle[kind].append(client.between(started, began))
            series.during[kind].append(client.between(began, ended))
        series.failed.append(insert.failed + query.failed)
        before = insert.acknowledged(began)
        series.acknowledged.append(len(before))
        is_ours = way in DOCUMENTED
        partitions = (copy / "data" if is_ours else copy) / "partitions"
        series.missed.append(len(before - self._rows(partitions)))
        if is_ours:
            proofs = _PROOF.findall(said)
            series.proof_seconds.append(sum(float(seconds) for seconds, _ in proofs))
            series.proof_snapshots.append(sum(int(snapshots) for _, snapshots in proofs))
            common.run([*argv[:-1], "after-create"], env)

    def _command(self, way: str, copy: Path) -> list[str]:
        url = self.process.server.url
        if way not in DOCUMENTED:
            return [str(documented.write_script(self.same / "documented.sh")), url, str(copy)]
        config = place.write_config(
            self.same / "hooks",
            data_path=str(self.tree),
            staging_path=str(copy),
            url=url,
            consistency="snapshot",
        )
        return [common.HOOKS, "--config", str(config), "--verbosity", "1", "before-create"]

    def _rows(self, partitions: Path) -> set[int]:
        """Return the numbers of the rows of the last client in a copy, as VictoriaLogs serves them."""
        with _trial(self.same / "trial", partitions) as server:
            found = server.server.rows(f'{{host="{HOST}"}} | fields run, seq')
        last = max((row["run"] for row in found), default="")
        return {int(row["seq"]) for row in found if row["run"] == last}

    def _remove(self) -> None:
        for directory in (self.same, self.other):
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def title(self) -> str:
        """Its size in words."""
        found = self.found
        return f"{found.files:,} files in {found.partitions:,} partitions"

    def _other(self, way: str, run: str) -> Series | None:
        return self.series.get((DOCUMENTED.get(way, ""), run))

    def table(self) -> str:
        """The comparison, pair by pair within the run."""
        lines = []
        for (way, run), series in self.series.items():
            other = self._other(way, run)
            lines.append(
                [
                    LABELS[way],
                    run,
                    common.spread(series.seconds),
                    common.spread(ratios(series.seconds, other.seconds)) if other else "",
                    *(_of(series.idle[INSERT], name) for name in ("median", "p99")),
                    *(_of(series.during[INSERT], name) for name in ("median", "p99", "max")),
                    common.spread(ratios(series.p99(INSERT), other.p99(INSERT))) if other else "",
                    _of(series.idle[QUERY], "p99"),
                    _of(series.during[QUERY], "p99"),
                    str(sum(series.failed)),
                    f"{sum(series.missed):,} of {sum(series.acknowledged):,}",
                    common.spread(series.proof_seconds) if series.proof_seconds else "",
                ]
            )
        head = ["", "run", "seconds", "/ documented", "insert idle: median, ms", "p99"]
        head += ["insert during: median", "p99", "max", "p99 / documented"]
        head += ["query idle: p99", "query during: p99", "failed", "rows missed", "proof, s"]
        return f"{self.title}\n\n{common.table(head, lines)}"

    def as_json(self) -> dict[str, object]:
        return {
            **self.found.as_json(),
            "idle_seconds": self.idle_seconds,
            "ways": {
                way: {run: self.series[way, run].as_json(self._other(way, run)) for run in RUNS}
                for way in self.ways
            },
        }


def _of(latencies: Sequence[Latency], name: str) -> str:
    return common.spread([getattr(latency, name) for latency in latencies], 1)


@contextlib.contextmanager
def _trial(root: Path, partitions: Path) -> Iterator[VictoriaLogsProcess]:
    """Have a server on the last two days of a copy: midnight may be between. The copy stays as it is."""
    copied = root / "data" / "partitions"
    copied.mkdir(parents=True)
    for day in sorted(partitions.iterdir())[-2:]:
        shutil.copytree(day, copied / day.name)
    with VictoriaLogsProcess(common.victoria_logs(), root / "data", free_port()) as server:
        yield server
    shutil.rmtree(root)


def parse() -> argparse.Namespace:
    parser = common.parser(__doc__ or "")
    parser.add_argument("--sizes", metavar="FILES,...", help=f"default: {SIZES}")
    parser.add_argument(
        "--ways", metavar="WAY,...", default=",".join(LABELS), help="default: %(default)s"
    )
    arguments = common.parse(parser)
    arguments.sizes = (arguments.sizes or (QUICK_SIZES if arguments.quick else SIZES)).split(",")
    arguments.ways = [way for way in LABELS if way in arguments.ways.split(",")]
    return arguments


def main() -> None:
    arguments = parse()
    idle = QUICK_IDLE_SECONDS if arguments.quick else IDLE_SECONDS
    with common.working_directory(arguments) as workdir:
        measured = []
        # Built before: a mount of this process is no place for what is kept.
        for files in arguments.sizes:
            data.real(workdir, int(files))
        with place.loop_device(workdir, OTHER_BYTES) as other:
            for files in arguments.sizes:
                size = Size(workdir, other, int(files), arguments.ways, idle)
                size.measure(arguments.repetitions)
                measured.append(size)
        tables = [size.table() for size in measured]
        common.report("zero_downtime", arguments, tables, [size.as_json() for size in measured])


if __name__ == "__main__":
    main()
