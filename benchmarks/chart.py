"""Draw what clients notice of a backup against the size of the data: JSON of a benchmark in, SVG out.

`python benchmarks/chart.py [results/stop-window.json [results/stop-window.svg]]`, and the same for
results/zero-downtime.json of zero_downtime.py. All axes are logarithmic. The colours and greys can be
read on GitHub's light and dark pages.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

RESULTS = Path(__file__).resolve().parent / "results"
WIDTH, HEIGHT = 860, 470
LEFT, RIGHT, TOP, BOTTOM = 220, 20, 66, 160
# The figures stand below the plot, a line for each way: that is the legend, too.
FIGURES, FIGURE_LINE = HEIGHT - BOTTOM + 60, 20
# The width of the rows with a merge, on the right of those without.
MERGE_WIDTH = 140
GAP = 30
GREY, FAINT = "#7d8590", "#7d859055"
BOLD = 'font-weight="600"'
FONT = "system-ui, -apple-system, 'Segoe UI', Helvetica, Arial, sans-serif"


@dataclass(frozen=True)
class Line:
    """One way to back up, as it is drawn."""

    way: str
    label: str
    colour: str
    dashes: str = ""


LINES = (
    Line("borg", "stop, borg create, start", "#bf6bd6"),
    Line("documented_same", "documented rsync script", "#d9822b"),
    Line("ours_same", "vl-borg-hooks", "#2f9e5b"),
    Line("bare", "bare stop and start: the limit", "#4a8fe7", "5 4"),
)

IDLE = "idle"
SNAPSHOT_LINES = (
    Line("documented_same", "documented procedure", "#d9822b"),
    Line("ours_same", "vl-borg-hooks", "#2f9e5b"),
    Line(IDLE, "no backup", "#4a8fe7", "5 4"),
)


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """Return a logarithmic axis: a function from a value to the place where it is drawn."""
    span = math.log(high / low) or 1

    def position(value: float) -> float:
        return start + (end - start) * math.log(value / low) / span

    return position


def text(x: float, y: float, content: str, *, anchor: str = "middle", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(content)}</text>'


def stroke(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="{width}"/>'


def ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 of each power of ten between `low` and `high`."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values = [round(step * 10.0**power, 6) for power in powers for step in (1, 2, 5)]
    return [value for value in values if low <= value <= high]


def in_short(number: int) -> str:
    """Return `55k` for 55,026."""
    return f"{number / 1000:.0f}k" if number >= 1000 else str(number)


def seconds(row: Mapping[str, Any], way: str) -> Mapping[str, float]:
    found: Mapping[str, float] = row["ways"][way]["seconds"]
    return found


def marks(
    points: Sequence[tuple[float, Mapping[str, float]]],
    line: Line,
    y: Callable[[float], float],
    unit: str = "s",
) -> Iterator[str]:
    """Yield the medians of one way with their ranges, and a line through them."""
    path = " ".join(f"{x:.1f},{y(found['median']):.1f}" for x, found in points)
    dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
    yield f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dashes}/>'
    for x, found in points:
        yield stroke(x, y(found["min"]), x, y(found["max"]), line.colour, 1.5)
        middle = y(found["median"])
        tip = f"<title>{escape(line.label)}: {found['median']:.2f} {unit}</title>"
        yield f'<circle cx="{x:.1f}" cy="{middle:.1f}" r="4" fill="{line.colour}">{tip}</circle>'


def figures(x: float, row: Mapping[str, Any], lines: Sequence[Line]) -> Iterator[str]:
    """Yield the medians of a row, below its marks."""
    for number, line in enumerate(lines):
        median = seconds(row, line.way)["median"]
        shown = f"{median:.2f} s" if median < 10 else f"{median:.1f} s"
        yield text(x, FIGURES + number * FIGURE_LINE, shown)


def legend(lines: Sequence[Line]) -> Iterator[str]:
    """Yield what the lines are, at the left of their figures."""
    for number, line in enumerate(lines):
        height = FIGURES + number * FIGURE_LINE
        dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
        yield (
            f'<path d="M12 {height - 4}h22" stroke="{line.colour}" stroke-width="2"{dashes}/>'
            f'<circle cx="23" cy="{height - 4}" r="4" fill="{line.colour}"/>'
        )
        yield text(42, height, line.label, anchor="start")


def draw(content: Mapping[str, Any]) -> str:
    """Return the picture of these results as SVG."""
    if content["benchmark"] == "zero_downtime":
        return draw_zero_downtime(content)
    return draw_stop_window(content)


def draw_stop_window(content: Mapping[str, Any]) -> str:
    rows = content["results"]
    plain = sorted((row for row in rows if not row["merged_bytes"]), key=lambda r: int(r["files"]))
    # Only the largest of several: the others are in the table.
    merged = sorted((row for row in rows if row["merged_bytes"]), key=lambda r: int(r["files"]))
    merged = merged[-1:]
    lines = [line for line in LINES if all(line.way in row["ways"] for row in rows)]
    shown = [seconds(row, line.way) for row in (*plain, *merged) for line in lines]
    low = min(found["min"] for found in shown) / 1.3
    high = max(found["max"] for found in shown) * 1.3
    y = scale(low, high, HEIGHT - BOTTOM, TOP)
    end = WIDTH - RIGHT - (MERGE_WIDTH + GAP if merged else 0)
    sizes = [int(row["files"]) for row in plain]
    x = scale(min(sizes), max(sizes), LEFT + 50, end - 50)

    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    style = f'font-family="{FONT}" font-size="12" fill="{GREY}"'
    heading = "How long VictoriaLogs is away for a backup"
    below = (
        "seconds in which a writing client gets no answer; median and range of "
        f"{content['repetitions']} repetitions; log scales"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>',
        "<title>Stop window of VictoriaLogs against the size of its data</title>",
        text(12, 24, heading, anchor="start", more='font-size="16" font-weight="600"'),
        text(12, 44, below, anchor="start"),
        *legend(lines),
    ]
    panels = [(LEFT, end)] + ([(WIDTH - RIGHT - MERGE_WIDTH, WIDTH - RIGHT)] if merged else [])
    for value in ticks(low, high):
        parts += [stroke(start, y(value), stop, y(value), FAINT) for start, stop in panels]
        parts.append(text(LEFT - 8, y(value) + 4, f"{value:g} s", anchor="end"))
    for line in lines:
        points = [(x(int(row["files"])), seconds(row, line.way)) for row in plain]
        parts += marks(points, line, y)
    for row in plain:
        at = x(int(row["files"]))
        parts += figures(at, row, lines)
        parts.append(text(at, FIGURES - 40, f"{in_short(int(row['files']))} files", more=BOLD))
    for row in merged:
        middle = WIDTH - RIGHT - MERGE_WIDTH / 2
        for line in lines:
            parts += marks([(middle, seconds(row, line.way))], line, y)
        parts += figures(middle, row, lines)
        merge = f"{int(row['merged_bytes']) / 1e9:.2g} GB merged"
        parts.append(
            text(middle, FIGURES - 40, f"{in_short(int(row['files']))} files, {merge}", more=BOLD)
        )
        parts.append(text(middle, FIGURES - 24, "between the passes"))
    machine = content["machine"]
    origin = f"{content['date'][:10]}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, "
    origin += f"VictoriaLogs {content['versions']['VictoriaLogs']}, staging on the same filesystem"
    parts.append(text(WIDTH - RIGHT, HEIGHT - 4, origin, anchor="end", more='font-size="10"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def draw_zero_downtime(content: Mapping[str, Any]) -> str:
    """Draw how long inserts take during a second run; below it, what each way took and missed."""
    rows = sorted(content["results"], key=lambda row: int(row["files"]))
    shown = [insert_p99(row, line.way) for row in rows for line in SNAPSHOT_LINES]
    low = min(found["min"] for found in shown) / 1.3
    high = max(found["max"] for found in shown) * 1.3
    y = scale(low, high, HEIGHT - BOTTOM, TOP)
    # Side by side: the figures below need as much room at all sizes.
    column = (WIDTH - RIGHT - LEFT) / len(rows)
    places = [LEFT + column * (number + 0.5) for number in range(len(rows))]
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    style = f'font-family="{FONT}" font-size="12" fill="{GREY}"'
    failed = sum(map(failed_requests, rows))
    heading = f"What clients notice of a backup from snapshots; failed requests: {failed}"
    below = (
        "99 of 100 inserts are answered within so many milliseconds; median and range of "
        f"{content['repetitions']} repetitions; log scale"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>',
        "<title>Latency of inserts during a backup against the size of the data</title>",
        text(12, 24, heading, anchor="start", more='font-size="16" font-weight="600"'),
        text(12, 44, below, anchor="start"),
        text(12, FIGURES - 24, "latency, time of the run, rows missed", anchor="start"),
        *legend(SNAPSHOT_LINES),
    ]
    for value in ticks(low, high):
        parts.append(stroke(LEFT, y(value), WIDTH - RIGHT, y(value), FAINT))
        parts.append(text(LEFT - 8, y(value) + 4, f"{value:g} ms", anchor="end"))
    for line in SNAPSHOT_LINES:
        points = [(at, insert_p99(row, line.way)) for at, row in zip(places, rows, strict=True)]
        parts += marks(points, line, y, "ms")
    for at, row in zip(places, rows, strict=True):
        parts.append(text(at, FIGURES - 40, f"{in_short(int(row['files']))} files", more=BOLD))
        for number, line in enumerate(SNAPSHOT_LINES):
            parts.append(text(at, FIGURES + number * FIGURE_LINE, outcome(row, line.way)))
    machine = content["machine"]
    origin = f"{content['date'][:10]}, {machine['cores']} cores, {machine['memory_gib']:.0f} GiB, "
    origin += (
        f"VictoriaLogs {content['versions']['VictoriaLogs']}, second run, on the same filesystem"
    )
    parts.append(text(WIDTH - RIGHT, HEIGHT - 4, origin, anchor="end", more='font-size="10"'))
    return "\n".join([*parts, "</svg>"]) + "\n"


def insert_p99(row: Mapping[str, Any], way: str) -> Mapping[str, float]:
    """Return what 99 of 100 inserts are answered within, during a second run or with `idle`."""
    when = "idle" if way == IDLE else "during"
    run = row["ways"]["ours_same" if way == IDLE else way]["second"]
    found: Mapping[str, float] = run[f"insert_{when}_milliseconds"]["p99"]
    return found


def failed_requests(row: Mapping[str, Any]) -> int:
    """Return how many requests have failed in all runs of a row."""
    return sum(sum(run["failed"]) for runs in row["ways"].values() for run in runs.values())


def outcome(row: Mapping[str, Any], way: str) -> str:
    """Return the latency, how long a second run takes, and how many rows all of them have missed."""
    median = insert_p99(row, way)["median"]
    if way == IDLE:
        return f"{median:.1f} ms"
    run = row["ways"][way]["second"]
    missed = sum(run["missed"])
    return f"{median:.1f} ms; {run['seconds']['median']:.1f} s; {missed:,} missed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", default=RESULTS / "stop-window.json")
    parser.add_argument("target", type=Path, nargs="?", default=RESULTS / "stop-window.svg")
    arguments = parser.parse_args()
    source, target = arguments.source, arguments.target
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(draw(json.loads(source.read_text())))
    print(target)


if __name__ == "__main__":
    main()
