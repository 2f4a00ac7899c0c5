"""How long our commands that do almost nothing take, against Python itself and borgmatic."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, place
from benchmarks.measured import measure

# `after-create` runs none of these.
NOTHING = {action: ["true"] for action in ("stop", "start", "status")}


def main() -> None:
    arguments = common.parse(common.parser(__doc__ or "", repetitions=20))
    with common.working_directory(arguments) as workdir:
        directory = workdir / "start-up"
        directory.mkdir(exist_ok=True)
        (directory / "data").mkdir(exist_ok=True)
        config = place.write_config(
            directory,
            data_path=str(directory / "data"),
            staging_path=str(directory / "staging"),
            service={"command": NOTHING},
        )
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "vl-borg-hooks --version": [common.HOOKS, "--version"],
            "vl-borg-hooks after-create": [common.HOOKS, "--config", str(config), "after-create"],
            "borgmatic --version": [str(common.BIN / "borgmatic"), "--version"],
        }
        env = common.environment(directory)
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for repetition in range(arguments.repetitions + 1):
            for name, argv in commands.items():
                cost = measure(argv, env)
                if repetition:  # the first compiles and fills caches
                    seconds[name].append(cost.seconds)
    rows = [
        [name, common.spread([1000 * value for value in values], 0)]
        for name, values in seconds.items()
    ]
    results = {name: common.summary(values) for name, values in seconds.items()}
    common.report("start_up", arguments, [common.table(["command", "ms"], rows)], results)


if __name__ == "__main__":
    main()
