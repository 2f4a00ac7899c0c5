"""The configuration that borgmatic acts on, as that borgmatic itself shows it."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import commands, processes
from vl_borg_hooks.system.log import logger

SHOW_SECONDS = 60
# borgmatic logs what it shows, passwords included. So it goes to our pipe and into no log.
SHOW = ("config", "validate", "--show", "--verbosity", "0")
NO_LOG = ("--syslog-verbosity", "-2", "--log-file-verbosity", "-2", "--monitoring-verbosity", "-2")
PLAIN = {"PYTHONIOENCODING": "utf-8", "NO_COLOR": "1", "PY_COLORS": "0", "TERM": "dumb"}
# borgmatic 1.7 can't show it. This is what its own commands do with a file and its --override.
LOAD_1_7 = """
import json, sys
from borgmatic.config import validate
loaded = validate.parse_configuration(sys.argv[1], validate.schema_filename(), sys.argv[2:])
print(json.dumps(loaded[0]))
"""
# What follows the configuration in what is shown.
SUMMARY = ("summary:", "All configuration files are valid")
SECTIONS_1_7 = ("location", "storage", "retention", "consistency", "output", "hooks")
# Options that are about the repository itself; from 2.1.10 on, all others under a repository replace
# those of the whole file (borgmatic/config/load.py).
REPOSITORY_OPTIONS = frozenset(
    {
        *("append_only", "encryption", "id_hash", "key_location", "label"),
        *("make_parent_directories", "path", "storage_quota"),
    }
)
# `config validate` shows ${X} as it is written, from 1.9 on, and who archives resolves it
# (borgmatic/config/environment.py).
VARIABLE = re.compile(r"(\\)?(\$\{([A-Za-z0-9_]+)(?::?-([^}]+))?\})")
NOT_RESOLVED = "--no-environment-interpolation"
# What is on borgmatic's own command line and changes what it archives. From 2.0 on, it takes each
# option of the file.
PASSED = re.compile(
    r"--(override|source-directories|patterns|patterns-from|exclude-patterns|exclude-from|"
    r"exclude-if-present|working-directory|local-path|skip-actions|repositories)"
    r"((\[\d+\]|\.)[^=]*)?"
)
PASSED_SWITCHES = {
    f"--{name}"
    for name in (*("exclude-caches", "keep-exclude-tags", "exclude-nodump", "one-file-system"),)
} | {NOT_RESOLVED}
# Where a configuration can have our hook, and what is in its command.
HOOKS = ("commands", "before_everything", "before_actions", "before_backup")
OUR_HOOK = "before-create"


class Unknown(OperatorError):
    """What borgmatic would archive can't be found out, which is no reason to fail."""

    def __init__(self, why: object, *, hint: str = "") -> None:
        super().__init__(f"what is archived was not looked at: {why}", hint=hint)


@contextlib.contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Tell what keeps the block from finding out what is archived, and go on: no backup fails by that."""
    try:
        yield
    except Unknown as unknown:
        tell(str(unknown))
    except (OSError, ValueError) as error:
        tell(str(Unknown(error)))


@dataclass(frozen=True)
class Repository:
    """A repository of a configuration: its name for people, and the options that are for it."""

    name: str
    given: Mapping[str, Any]
    options: Mapping[str, Any]

    @property
    def has_own_sources(self) -> bool:
        """Whether it has source directories instead of those of the whole file."""
        return "source_directories" in self.given

    def is_called(self, wanted: str) -> bool:
        """Say whether it is what `--repository` names, as borgmatic sees it: label or path, or a glob.

        True if that can't be told: `${X:-/path}` is shown as an address for ssh.
        """
        label, path = str(self.given.get("label") or ""), str(self.given.get("path", ""))
        if "${" in path:
            return True
        return bool(label and _match(label, wanted)) or _match(_absolute(path), _absolute(wanted))


@dataclass(frozen=True)
class Configuration:
    """What borgmatic acts on: the `file`, and its `options` after includes, overrides and defaults.

    `has_sections` says whether they were in sections, as 1.7 has them.
    """

    file: Path
    options: Mapping[str, Any]
    has_sections: bool = False

    @cached_property
    def repositories(self) -> list[Repository]:
        """The repositories, each with the options that borgmatic uses for it."""
        found = []
        for entry in self.options.get("repositories") or ():
            given = entry if isinstance(entry, Mapping) else {"path": entry}
            own = {name: given[name] for name in given if name not in REPOSITORY_OPTIONS}
            name = str(given.get("label") or given.get("path"))
            found.append(Repository(name, given, {**self.options, **own}))
        return found

    def backs_up(self, config: Path) -> set[str] | None:
        """Return the names of the instances of `config` that its hooks back up; all without a name.

        None if it has no hook that runs our `before-create` with `config`.
        """
        hooks = [self.options[name] for name in HOOKS if name in self.options]
        found: set[str] | None = None
        for words in map(_words, _texts(hooks)):
            if OUR_HOOK in words and os.path.realpath(config) in map(os.path.realpath, words):
                found = (found or set()) | {
                    name for before, name in pairwise(words) if before == "--instance"
                }
        return found

    def archived_to(self, arguments: Sequence[str]) -> list[Repository]:
        """Return the repositories that a borgmatic called with `arguments` makes archives in."""
        if "create" in (self.options.get("skip_actions") or ()):
            return []
        wanted = repository_of(arguments)
        return [
            repository
            for repository in self.repositories
            if wanted is None or repository.is_called(wanted)
        ]


class Shown:
    """A borgmatic that shows the configuration of `file`; it runs beside us."""

    def __init__(self, command: Sequence[str], file: Path, arguments: Sequence[str]) -> None:
        self._command = command
        self._file = file
        self._passed = list(_passed(arguments))
        # In memory, because there are passwords in it.
        self._output = os.fdopen(os.memfd_create("borgmatic"), "w+b")
        argv = [*command, *SHOW, *NO_LOG, f"--config={file}", *self._passed]
        try:
            self._process = processes.beside(argv, output=self._output, environment=PLAIN)
        except OperatorError as error:
            raise Unknown(error.what) from None

    def configuration(self) -> Configuration:
        """Return the configuration, as soon as it is there; raises Unknown."""
        processes.wait(self._process, SHOW_SECONDS)
        if self._process.poll() is None:
            raise self._unknown(f"takes longer than {SHOW_SECONDS} seconds")
        with self._output as output:
            output.seek(0)
            text = output.read().decode("utf-8", "replace")
        if self._process.returncode:
            text = self._loaded_by_1_7()
        parsed = _parsed(text)
        shown = parsed if isinstance(parsed, Mapping) else {}
        options = _flat(shown)
        if NOT_RESOLVED not in self._passed:
            options = {name: _resolved(value) for name, value in options.items()}
        if not options.get("repositories"):
            raise self._unknown("shows none")
        return Configuration(self._file, options, has_sections="location" in shown)

    def close(self) -> None:
        """End it if it still runs."""
        processes.end(self._process)
        self._output.close()

    def _loaded_by_1_7(self) -> str:
        """Return the configuration from the code of an old borgmatic; raises Unknown."""
        python = _python(self._command)
        if not python:
            raise self._unknown("can't show it")
        overrides = [word for word in self._passed if not word.startswith("--")]
        try:
            return commands.run(
                [python, "-c", LOAD_1_7, str(self._file), *overrides], timeout=SHOW_SECONDS
            ).stdout
        except OperatorError:
            # Its text may hold a part of the file, with a password.
            raise self._unknown("can't show it") from None

    def _unknown(self, why: str) -> Unknown:
        return Unknown(
            f"borgmatic is asked for the configuration in {self._file}, but {why}",
            hint=f"run: borgmatic config validate --config {self._file}",
        )


def installed_borgmatic() -> tuple[str, ...]:
    """Return how borgmatic is called on this machine; empty if it is not found."""
    found = shutil.which("borgmatic")
    return (found,) if found else ()


def default_files() -> list[Path]:
    """Return the files that borgmatic reads without `--config` (borgmatic/config/collect.py)."""
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    found: list[Path] = []
    for directory, single in (("/etc", "borgmatic/config.yaml"), (home, "borgmatic/config.yaml")):
        file = Path(directory, single)
        # Not Path.is_file(), which raises an error for what this user may not look into.
        if os.path.isfile(file):
            found.append(file)
        many = Path(directory, "borgmatic.d")
        with contextlib.suppress(OSError):
            found += sorted(
                entry
                for entry in many.iterdir()
                if entry.suffix in (".yaml", ".yml") and not os.path.isdir(entry)
            )
    return found


def _passed(arguments: Sequence[str]) -> Iterator[str]:
    """Yield what of borgmatic's own `arguments` changes what it archives."""
    name, waits = "", False
    for word in arguments:
        if waits or (name == "--override" and re.match(r"[\w.]+=", word)):
            # 1.7 takes several values after one --override.
            yield from (word,) if waits else (name, word)
            waits = False
            continue
        name, has_value, _ = word.partition("=")
        if name in PASSED_SWITCHES:
            yield word
        elif PASSED.fullmatch(name):
            yield word
            waits = not has_value


def repository_of(arguments: Sequence[str]) -> str | None:
    """Return what `--repository` names in `arguments`, None if it is not there."""
    for index, word in enumerate(arguments):
        name, has_value, value = word.partition("=")
        if name.startswith("--repo") and "--repository".startswith(name):
            return value if has_value else next(iter(arguments[index + 1 :]), None)
    return None


def _match(one: str, other: str) -> bool:
    return fnmatch.fnmatch(one, other) or fnmatch.fnmatch(other, one)


def _absolute(repository: str) -> str:
    """Return the path of a repository as borgmatic compares it."""
    path = repository.removeprefix("file://")
    return repository if ":" in path else os.path.abspath(path)


def _parsed(text: str) -> object:
    """Return what borgmatic has shown as `text`, None if it is not understood."""
    from ruamel.yaml import YAML

    if text.startswith('{"') and '"levelname"' in text:
        # With log_json, each of its messages is a line.
        text = "\n".join(_message(line) for line in text.splitlines())
    lines = text.splitlines()
    ends = (index for index, line in enumerate(lines) if line.startswith(SUMMARY))
    shown = "\n".join(lines[: next(ends, len(lines))])
    try:
        parsed: object = YAML(typ="safe", pure=True).load(shown)
    except Exception as error:  # noqa: BLE001 - ruamel.yaml raises any; its text may hold passwords
        logger.debug("borgmatic's configuration is not understood: %s", type(error).__name__)
        return None
    return parsed


def _message(line: str) -> str:
    try:
        return str(json.loads(line)["message"])
    except (ValueError, KeyError, TypeError):
        return ""


def _flat(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `options` without the sections that 1.7 has."""
    flat = {name: value for name, value in options.items() if name not in SECTIONS_1_7}
    for section in SECTIONS_1_7:
        flat.update(options.get(section) or {})
    return flat


def _resolved(value: Any) -> Any:
    """Return `value` with the variables of our environment, which is borgmatic's, in place of ${X}.

    Raises Unknown for one that is not there.
    """
    if isinstance(value, str):
        return VARIABLE.sub(_variable, value)
    if isinstance(value, Mapping):
        return {key: _resolved(item) for key, item in value.items()}
    return [_resolved(item) for item in value] if isinstance(value, list) else value


def _variable(found: re.Match[str]) -> str:
    escape, whole, name, default = found.groups()
    if escape:
        return whole
    if name not in os.environ and default is None:
        raise Unknown(f"borgmatic's configuration has ${name}, which is not in the environment")
    return os.environ.get(name, default or "")


def _texts(value: object) -> Iterator[str]:
    """Yield each string in `value`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:
        return []


def _python(command: Sequence[str]) -> str:
    """Return the interpreter that runs `command`, empty if it is not a Python script."""
    if re.match(r"python[\d.]*$", os.path.basename(command[0])):
        return command[0]
    try:
        with open(command[0], encoding="utf-8", errors="replace") as script:
            first = script.readline(1000).split()
    except OSError:
        return ""
    is_python = first and re.match(r"#!.*/python[\d.]*$", first[0])
    return first[0].removeprefix("#!") if is_python else ""
