"""What every benchmark shares: its arguments, its working directory, its table and its JSON."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from tests.setup.victoria_logs import find

ROOT = Path(__file__).resolve().parent.parent
# The programs that are installed beside the Python that runs the benchmark.
BIN = Path(sys.executable).parent
HOOKS = str(BIN / "vl-borg-hooks")

# The command line as it was typed, for a benchmark that runs itself again inside systemd's namespaces.
_TYPED = "BENCHMARK_COMMAND"

Cells: TypeAlias = Sequence[str]


def parser(description: str, *, repetitions: int = 5) -> argparse.ArgumentParser:
    """Return the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--repetitions", type=int, metavar="N", help=f"default: {repetitions}")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    made.add_argument(
        "--workdir",
        type=Path,
        metavar="DIR",
        help="where data is built and kept for the next run (default: a temporary directory)",
    )
    made.add_argument(
        "--quick",
        action="store_true",
        help="little data, few repetitions: only to see whether it runs",
    )
    made.set_defaults(default_repetitions=repetitions)
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the command line, with the number of repetitions set."""
    arguments = made.parse_args()
    if arguments.repetitions is None:
        arguments.repetitions = 2 if arguments.quick else arguments.default_repetitions
    os.environ.setdefault(_TYPED, shlex.join(["python", *sys.argv]))
    return arguments


@contextlib.contextmanager
def working_directory(arguments: argparse.Namespace) -> Iterator[Path]:
    """Yield the directory that everything is made in; a temporary one is removed afterwards."""
    if arguments.workdir:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
        yield arguments.workdir.resolve()
    else:
        with tempfile.TemporaryDirectory(prefix="bench-vl-borg-hooks-") as directory:
            yield Path(directory)


def victoria_logs() -> Path:
    """Return the real VictoriaLogs; raises SystemExit without it: a stand-in proves nothing."""
    found = find()
    if not found.real:
        sys.exit("no real VictoriaLogs: set VICTORIA_LOGS\n" + "\n".join(found.reasons))
    return found.path


def environment(directory: Path, **more: str) -> dict[str, str]:
    """Return the environment of measured programs: this installation, and their own Borg."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BORG")}
    return {
        **kept,
        "PATH": f"{BIN}:{kept.get('PATH', os.defpath)}",
        "HOME": str(directory),
        "BORG_BASE_DIR": str(directory / "borg"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        **more,
    }


def run(argv: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Run `argv` to its end and return its output; raises RuntimeError with the output if it fails."""
    done = subprocess.run(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(argv)}: exit status {done.returncode}\n{done.stdout}")
    return done.stdout


def progress(text: str) -> None:
    """Print what happens now."""
    print(f"# {text}", file=sys.stderr, flush=True)


def summary(values: Sequence[float]) -> dict[str, float | list[float]]:
    """Return median, range and all of `values`."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "values": list(values),
    }


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return `median (min to max)` for a table."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: Cells, rows: Sequence[Cells]) -> str:
    """Return a Markdown table with columns that are aligned on a terminal too."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]

    def line(cells: Cells) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(head), line(["-" * width for width in widths]), *map(line, rows)])


def report(
    name: str, arguments: argparse.Namespace, tables: Sequence[str], results: object
) -> None:
    """Print `tables` with where and how they were measured; write `results` with the same."""
    origin = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "command": os.environ[_TYPED],
        "repetitions": arguments.repetitions,
    }
    for text in tables:
        print(f"\n{text}")
    parts = ", ".join(f"{key} {value}" for key, value in versions().items())
    print(
        f"\n{origin['date']}; {machine_line()}; {parts}; "
        f"{arguments.repetitions} repetitions, median (range)\n{origin['command']}",
        flush=True,
    )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"benchmark": name, **origin, "results": results}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")


def machine() -> dict[str, object]:
    """Return cores, memory and kernel."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30), 1),
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "load": os.getloadavg()[0],
    }


def machine_line() -> str:
    """Return the same for people."""
    found = machine()
    return (
        f"{found['cores']} cores ({found['architecture']}), {found['memory_gib']} GiB, "
        f"Linux {found['kernel']}"
    )


def versions() -> dict[str, str]:
    """Return the programs that take part in a measurement; empty if one is not installed."""
    found = {
        "vl-borg-hooks": [HOOKS, "--version"],
        "rsync": ["rsync", "--version"],
        "borg": [str(BIN / "borg"), "--version"],
        "Python": [sys.executable, "--version"],
    }
    commit = _first_line(["git", "-C", str(ROOT), "describe", "--always", "--dirty"])
    told = {name: _first_line(argv) for name, argv in found.items()}
    told = {name: _number(line) for name, line in told.items()}
    told["vl-borg-hooks"] += f" ({commit})" if commit else ""
    return {"VictoriaLogs": find().version, **told}


def _first_line(argv: Sequence[str]) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return (done.stdout.splitlines() or [""])[0]


def _number(line: str) -> str:
    """Return `rsync  version 3.2.7  protocol version 31` as `3.2.7`."""
    return next((word for word in line.split() if word[0].isdigit()), "")
