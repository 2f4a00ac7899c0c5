"""Data directories to measure on: replicated real partitions, a big partition, a synthetic tree.

As a program: `python benchmarks/data.py --workdir DIR`: build what the benchmarks keep there.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from tests.parts.ports import free_port
from tests.parts.victoria_logs import LogServer, VictoriaLogsProcess
from tests.parts.waiting import wait_until
from vl_borg_hooks.victorialogs.sample import DATA_PART_FILES, INDEX_PART_FILES

# Days that are made by the server itself, all different; the others are copies of these.
SEEDS = 4
# Rows of each part of a day. Growing, since VictoriaLogs merges several parts of about one size:
# so these stay as they are, and a partition has 9 data parts of 12 files and 9 index parts of 5.
PART_ROWS = [round(300 * 1.5**number) for number in range(9)]
FILES_A_PARTITION = 155
# The day of the big partition, older than any copy of a day.
BIG_DAY = "20010101"
BIG_ROW_BYTES = 100_000
SIZES = (5_000, 55_000, 200_000)


@dataclass(frozen=True)
class Tree:
    """What a data directory holds."""

    path: Path
    files: int
    partitions: int
    bytes: int

    @staticmethod
    def of(path: Path) -> Tree:
        """Count what is there."""
        files = size = 0
        for directory, _, names in os.walk(path):
            files += len(names)
            for name in names:
                try:
                    size += os.lstat(os.path.join(directory, name)).st_size
                except FileNotFoundError:  # merged meanwhile
                    files -= 1
        return Tree(path, files, len(os.listdir(path / "partitions")), size)

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "path": str(self.path)}


def real(workdir: Path, files: int, *, big_bytes: int = 0) -> Path:
    """A data directory of about `files` files in copies of real partitions; built once.

    With `big_bytes`, one more partition with a part of that size. Copies, not links, so that a
    backup sees files of their own. Every row of a copy keeps its time, which is of another day
    than the copy's name: that matters to queries, not to opening and copying.
    """
    made = workdir / (f"data-{files}" + (f"-big-{big_bytes}" if big_bytes else ""))
    ready = made.with_name(f"{made.name}.ready")
    if ready.exists():
        return made
    shutil.rmtree(made, ignore_errors=True)
    seeds = _seed_partitions(workdir)
    common.progress(f"copying partitions to {made}")
    (made / "partitions").mkdir(parents=True)
    count = max(1, round(files / FILES_A_PARTITION))
    # Today's and the days before, without the two that the client and the server write to.
    first = datetime.datetime.now(datetime.timezone.utc).date() - datetime.timedelta(days=2)
    for number in range(count):
        day = first - datetime.timedelta(days=number)
        _copy(seeds[number % len(seeds)], made / "partitions" / f"{day:%Y%m%d}")
    if big_bytes:
        _copy(_big_partition(workdir, big_bytes), made / "partitions" / BIG_DAY)
    # The server opens it, and merges and removes what it wants to, before anything is measured. That
    # it has nothing more to do is not shown anywhere.
    with VictoriaLogsProcess(common.victoria_logs(), made, free_port()) as running:
        time.sleep(2)
        running.stop(timeout=300)
    os.sync()
    ready.touch()
    return made


def synthetic(
    data: Path, files: int, partitions: int, *, rows_a_part: int = 10, first_day: str = "20260101"
) -> Tree:
    """A tree in VictoriaLogs' layout that is valid by its own metadata; its files are tiny."""
    newest = datetime.datetime.strptime(first_day, "%Y%m%d").date()
    # A data part of 12 files and an index part of 5 each, and two parts.json. Rather more than less.
    per_partition = max(1, math.ceil((files / partitions - 2) / 17))
    content = b"0123456789abcdef"
    data_metadata = json.dumps(
        {
            "FormatVersion": 3,
            "CompressedSizeBytes": len(content) * len(DATA_PART_FILES),
            "UncompressedSizeBytes": 1000,
            "RowsCount": rows_a_part,
            "BlocksCount": 1,
            "MinTimestamp": 1,
            "MaxTimestamp": 2,
            "BloomValuesShardsCount": 1,
        }
    ).encode()
    index_metadata = json.dumps({"ItemsCount": 3, "BlocksCount": 1}).encode()
    for number in range(partitions):
        day = newest - datetime.timedelta(days=number)
        for table, names, metadata in (
            ("datadb", DATA_PART_FILES, data_metadata),
            ("indexdb", INDEX_PART_FILES, index_metadata),
        ):
            directory = data / "partitions" / f"{day:%Y%m%d}" / table
            parts = [f"18A{number:05X}{part:08X}" for part in range(per_partition)]
            for part in parts:
                os.makedirs(directory / part)
                for name in names:
                    _write(f"{directory}/{part}/{name}", content)
                _write(f"{directory}/{part}/metadata.json", metadata)
            _write(f"{directory}/parts.json", json.dumps(parts).encode())
    _write(f"{data}/flock.lock", b"")
    return Tree.of(data)


def _write(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(descriptor, content)
    os.close(descriptor)


def _copy(partition: Path, destination: Path) -> None:
    subprocess.run(["cp", "-a", "--reflink=auto", partition, destination], check=True)


def _seed_partitions(workdir: Path) -> list[Path]:
    """Partitions of some days that VictoriaLogs has written, with a part for each of its runs."""
    data = workdir / "seeds"
    ready = workdir / "seeds.ready"
    if not ready.exists():
        common.progress("VictoriaLogs writes the partitions that are copied")
        shutil.rmtree(data, ignore_errors=True)
        for run, rows in enumerate(PART_ROWS):
            with VictoriaLogsProcess(common.victoria_logs(), data, free_port()) as running:
                for day in range(1, SEEDS + 1):
                    running.server.ingest(_rows(day, run, rows))
                running.stop()
        ready.touch()
    return sorted((data / "partitions").iterdir())


def _rows(day: int, run: int, count: int) -> Iterator[dict[str, object]]:
    """Rows like those of web servers; a stream for each 150, so that index parts grow as well."""
    for number in range(count):
        yield {
            "host": f"web{run}-{number // 150}",
            "_time": f"2026-10-{day:02}T{number % 24:02}:{number % 60:02}:00Z",
            "_msg": f"GET /item/{number * 7919 % 9973} 200 {os.urandom(8).hex()}",
            "level": "info",
            "path": f"/item/{number % 100}",
        }


def _big_partition(workdir: Path, size: int) -> Path:
    """A partition with one part of about `size` bytes that don't compress."""
    data = workdir / f"big-{size}"
    ready = data.with_name(f"{data.name}.ready")
    partition = data / "partitions" / BIG_DAY
    if not ready.exists():
        common.progress(f"VictoriaLogs writes {size / 1e9:.1f} GB of random rows")
        shutil.rmtree(data, ignore_errors=True)
        from benchmarks.merge import merge

        with VictoriaLogsProcess(common.victoria_logs(), data, free_port()) as running:
            url = running.server.url
            for number in range(0, size // BIG_ROW_BYTES, 100):
                _ingest_random(running.server, number, 100)
            running.server.flush()
            # Only files are merged, and -inmemoryDataFlushInterval is when they are written.
            server = running.server
            wait_until(lambda: server.storage_rows("inmemory") == 0, 60, "all rows are in files")
            merge(url, str(data), BIG_DAY)
            running.stop(timeout=300)
        ready.touch()
    return partition


def _ingest_random(server: LogServer, first: int, count: int) -> None:
    day = f"{BIG_DAY[:4]}-{BIG_DAY[4:6]}-{BIG_DAY[6:]}"
    server.ingest(
        {
            "host": "big",
            "_time": f"{day}T00:00:00.{first + number:09}Z",
            # Stored as they are: compression could save only little here.
            "_msg": base64.b64encode(os.urandom(BIG_ROW_BYTES * 3 // 4)).decode(),
        }
        for number in range(count)
    )


def main() -> None:
    arguments = common.parse(common.parser(__doc__ or ""))
    if not arguments.workdir:
        sys.exit("--workdir says where to build")
    with common.working_directory(arguments) as workdir:
        rows = []
        trees = []
        for files in SIZES[:1] if arguments.quick else SIZES:
            tree = Tree.of(real(workdir, files))
            trees.append(tree.as_json())
            rows.append([f"{tree.files:,}", f"{tree.partitions:,}", f"{tree.bytes / 1e6:,.0f}"])
        heading = common.table(["files", "partitions", "MB"], rows)
        common.report("data", arguments, [heading], trees)


if __name__ == "__main__":
    main()
