"""A real merge between the passes: VictoriaLogs rewrites a partition into a new part.

As a program: `python benchmarks/merge.py URL DATA PARTITION`. As a plugin of vl-borg-hooks, whose
`before_stop` comes after the warm passes: `environment()` makes it load, without an installation.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pluggy

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.parts.waiting import wait_until

TIMEOUT_SECONDS = 600
_ORDER = "BENCHMARK_MERGE"
_METADATA = "Metadata-Version: 2.1\nName: vl-borg-hooks-benchmark\nVersion: 1.0\n"
_ENTRY_POINTS = "[vl_borg_hooks]\nbenchmark = benchmarks.merge\n"

hookimpl: Callable[[Callable[[], None]], Callable[[], None]] = pluggy.HookimplMarker(
    "vl_borg_hooks"
)


@hookimpl
def before_stop() -> None:
    """The occasion between the last warm pass and the stop."""
    if _ORDER in os.environ:
        merge(*json.loads(os.environ[_ORDER]))


def environment(directory: Path, order: tuple[str, Path, str]) -> dict[str, str]:
    """What makes vl-borg-hooks load this module as a plugin and merge what `order` says."""
    distribution = directory / "vl_borg_hooks_benchmark-1.0.dist-info"
    distribution.mkdir(parents=True, exist_ok=True)
    (distribution / "METADATA").write_text(_METADATA)
    (distribution / "entry_points.txt").write_text(_ENTRY_POINTS)
    return {"PYTHONPATH": f"{directory}:{ROOT}", _ORDER: json.dumps([*map(str, order)])}


def merge(url: str, data: str, partition: str) -> None:
    """Merge `partition`, and wait until its new part counts and the old ones are gone."""
    directory = Path(data, "partitions", partition, "datadb")
    before = parts(Path(data), partition)
    request = f"{url}/internal/force_merge?partition_prefix={partition}"
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        answer.read()

    def is_merged() -> bool:
        return not set(parts(Path(data), partition)) & set(before) and not any(
            (directory / name).exists() for name in before
        )

    wait_until(is_merged, TIMEOUT_SECONDS, f"{directory} is merged")


def parts(data: Path, partition: str) -> list[str]:
    """Return the data parts of `partition` that count."""
    path = data / "partitions" / partition / "datadb" / "parts.json"
    names: list[str] = json.loads(path.read_text())
    return names


if __name__ == "__main__":
    merge(*sys.argv[1:])
