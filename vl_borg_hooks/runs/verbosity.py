"""What the borgmatic that runs us shows of what a hook says: from its command line and its config.

borgmatic 1.x logs all that a hook prints as warnings, 2.0 as answers, which are shown from verbosity 0
on. 2.1 logs its stdout as answers and its stderr as errors, but a line there that begins with
`warning:` as a warning (read in execute.py and hooks/command.py of 1.7.7, 1.8.14, 1.9.14, 2.0.5,
2.0.13, 2.1.0 to 2.1.10).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from vl_borg_hooks.runs.borgmatic import Borgmatic

# borgmatic's defaults (verbosity.py of 2.1.10). The console of all versions shows answers.
CONSOLE = 0
SYSLOG = -2
LOG_FILE = 1
# Includes can be nested, and borgmatic has refused those without an end.
DEEPEST_INCLUDE = 10


def is_json(borgmatic: Borgmatic) -> bool:
    """Say whether the stdout of `borgmatic` is to be JSON and nothing else."""
    return "--json" in borgmatic.arguments


def verbosity(borgmatic: Borgmatic) -> int:
    """Return the verbosity of what `borgmatic` shows of a hook's stdout: -2 to 2, as its options.

    What the console shows of it, mail from cron has too. So if the console shows answers, its
    verbosity counts, and otherwise that of the system's log and of the log file: borgmatic's sample
    unit has `--verbosity -2 --syslog-verbosity 1`.
    """
    options = _Options(borgmatic)
    console = options.number("verbosity", CONSOLE)
    if console >= 0:
        return console
    log_file = (
        options.number("log_file_verbosity", LOG_FILE) if options.has("log_file") else console
    )
    return max(console, options.number("syslog_verbosity", SYSLOG), log_file)


class _Options:
    """The options of a borgmatic: an argument counts for all of its config files."""

    def __init__(self, borgmatic: Borgmatic) -> None:
        self._borgmatic = borgmatic
        self._configs: list[dict[str, str]] | None = None

    def number(self, name: str, default: int) -> int:
        """Return the largest number that option `name` has; `default` where it has none."""
        argument = _number(self._argument(name))
        if argument is not None:
            return argument
        configured = [_number(config.get(name)) for config in self._read()]
        return max((default if value is None else value for value in configured), default=default)

    def has(self, name: str) -> bool:
        """Say whether option `name` is set."""
        return bool(self._argument(name)) or any(config.get(name) for config in self._read())

    def _argument(self, name: str) -> str | None:
        short = "v" if name == "verbosity" else ""
        values = _values(self._borgmatic.arguments, name.replace("_", "-"), short)
        return values[-1] if values else None

    def _read(self) -> list[dict[str, str]]:
        if self._configs is None:
            self._configs = [_scalars(path, 0) for path in _config_files(self._borgmatic)]
        return self._configs


def _number(text: str | None) -> int | None:
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _values(arguments: tuple[str, ...], name: str, short: str) -> list[str]:
    """Return the values of the option `--name`, or `-short`, in each way that argparse takes them."""
    found = []
    following = (*arguments[1:], "")
    for argument, after in zip(arguments, following, strict=True):
        if argument == f"--{name}" or (short and argument == f"-{short}"):
            found.append(after)
        elif argument.startswith(f"--{name}="):
            found.append(argument.partition("=")[2])
        elif short and argument.startswith(f"-{short}"):
            found.append(argument[2:].removeprefix("="))
    return found


def _config_files(borgmatic: Borgmatic) -> Iterator[Path]:
    """Yield the config files of `borgmatic`: those it was called with, else the usual ones."""
    personal = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    usual = [
        *("/etc/borgmatic/config.yaml", "/etc/borgmatic.d"),
        *(f"{personal}/borgmatic/config.yaml", f"{personal}/borgmatic.d"),
    ]
    try:
        directory = borgmatic.process.cwd()
    except psutil.Error:
        directory = os.getcwd()
    for named in _values(borgmatic.arguments, "config", "c") or usual:
        path = Path(directory, named)
        # Not Path.is_dir(), which raises an error for what this user may not look into.
        if os.path.isdir(path):
            with contextlib.suppress(OSError):
                yield from [each for each in path.iterdir() if each.suffix in (".yaml", ".yml")]
        else:
            yield path


def _scalars(path: Path, depth: int) -> dict[str, str]:
    """Return the options in the config file `path` that are one word, with those it includes.

    Only as far as it can be read: borgmatic has read it already, and has reported what is wrong.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError
    from ruamel.yaml.nodes import MappingNode, ScalarNode

    # A pipe that borgmatic has read is empty now.
    if depth > DEEPEST_INCLUDE or not os.path.isfile(path):
        return {}
    try:
        # The nodes alone: values can have tags of borgmatic's own.
        root = YAML(typ="safe", pure=True).compose(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, YAMLError, RecursionError):
        return {}
    pairs = [
        (key, node)
        for key, node in (root.value if isinstance(root, MappingNode) else [])
        if isinstance(key, ScalarNode)
    ]
    own = {key.value: node.value for key, node in pairs if isinstance(node, ScalarNode)}
    included = {}
    for key, node in pairs:
        if key.value == "<<":
            nodes = [node] if isinstance(node, ScalarNode) else node.value
            for each in nodes:
                if isinstance(each, ScalarNode):
                    included.update(_scalars(path.parent / each.value, depth + 1))
    return {**included, **own}
