"""What a configuration of borgmatic tells Borg to archive and to leave out.

Source: borgmatic/borg/create.py of 1.7.7 to 1.9.5; borgmatic/actions/pattern.py, or
borgmatic/actions/create.py, and borgmatic/borg/flags.py since.
"""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vl_borg_hooks.archiving.configuration import Unknown

# From this version on, borgmatic makes one list of all patterns and excludes, in another order.
ONE_LIST_SINCE = (1, 9, 6)
STYLES = frozenset({"", "fm", "sh", "re", "pp", "pf"})
# Options of `borg create` that say what is archived: with a value, and without.
EXTRA_WITH_VALUE = frozenset(
    {"-e", "--exclude", "--exclude-from", "--pattern", "--patterns-from", "--exclude-if-present"}
)
EXTRA = frozenset({"-x", "--one-file-system", "--exclude-caches", "--exclude-nodump"})


@dataclass(frozen=True)
class Rule:
    """A line of Borg's `--patterns-from`, and where the operator finds it."""

    line: str
    said: str


@dataclass(frozen=True)
class Rules:
    """What Borg is told: its roots, its patterns in order, and its other options.

    `directory` is what relative roots are relative to. `marks` are names of files that exclude the
    directory that they are in.
    """

    borg: tuple[str, ...]
    directory: str
    roots: tuple[str, ...]
    rules: tuple[Rule, ...]
    flags: tuple[str, ...]
    marks: tuple[str, ...]
    one_file_system: bool


def order_matters(options: Mapping[str, Any]) -> bool:
    """Say whether it depends on the version of borgmatic which pattern comes first."""
    here = options.get("patterns"), options.get("exclude_patterns")
    return any(here) and bool(options.get("patterns_from") or options.get("exclude_from"))


def of(options: Mapping[str, Any], *, one_list: bool) -> Rules:
    """Return what borgmatic tells Borg with `options`; raises Unknown if a file can't be read.

    `one_list` says whether borgmatic is new enough to make one list of all patterns.
    """
    directory = os.path.expanduser(str(options.get("working_directory") or os.getcwd()))
    patterns = [*_patterns(_lines(options, "patterns"))]
    patterns_from = [*_patterns(_lines_of_files(options, "patterns_from", directory))]
    excludes = [*_excludes(_lines(options, "exclude_patterns"))]
    exclude_from = [*_excludes(_lines_of_files(options, "exclude_from", directory))]
    if one_list:
        lines = [*patterns, *excludes, *patterns_from, *exclude_from]
    else:
        # `P` counts to the end of its file only.
        lines = [*patterns_from, Rule("P sh", ""), *patterns, *exclude_from, *excludes]
    roots = [str(root) for root in options.get("source_directories") or ()]
    roots += [rule.line[1:].strip() for rule in lines if rule.line[0] in "Rr"]
    marks = [str(name) for name in options.get("exclude_if_present") or ()]
    flags = [f"--exclude-if-present={name}" for name in marks]
    flags += [
        f"--{name.replace('_', '-')}"
        for name in ("exclude_caches", "keep_exclude_tags", "exclude_nodump", "one_file_system")
        if options.get(name)
    ]
    extra = [*_extra(str((options.get("extra_borg_options") or {}).get("create") or ""))]
    return Rules(
        borg=_borg(str(options.get("local_path") or "borg")),
        directory=os.path.abspath(directory),
        roots=tuple(map(os.path.expanduser, roots)),
        rules=tuple(rule for rule in lines if rule.line[0] not in "Rr"),
        flags=(*flags, *extra),
        marks=(*marks, "CACHEDIR.TAG"),
        one_file_system=bool({"--one-file-system", "-x"} & {*flags, *extra}),
    )


def _lines(options: Mapping[str, Any], name: str) -> Iterator[Rule]:
    """Yield the lines of an option that is a list."""
    for line in options.get(name) or ():
        yield from _clean([str(line)], name)


def _lines_of_files(options: Mapping[str, Any], name: str, directory: str) -> Iterator[Rule]:
    """Yield the lines of the files that an option names."""
    for file in options.get(name) or ():
        path = os.path.join(directory, os.path.expanduser(str(file)))
        for found in glob.glob(path) or [path]:
            try:
                text = Path(found).read_text(encoding="utf-8")
            except (OSError, UnicodeError) as error:
                reason = getattr(error, "strerror", None) or error
                raise Unknown(f"{name}: {found} can't be read: {reason}") from None
            yield from _clean(text.splitlines(), f"{name}: {found}")


def _clean(lines: Iterable[str], where: str) -> Iterator[Rule]:
    for line in map(str.strip, lines):
        if line and not line.startswith("#"):
            yield Rule(line, f"{where}: {line}")


def _patterns(rules: Iterable[Rule]) -> Iterator[Rule]:
    """Yield lines as `patterns` has them, with ~ expanded."""
    for rule in rules:
        kind, rest = rule.line[0], rule.line[1:].strip()
        style, path = _styled(rest)
        expanded = f"{style}:{os.path.expanduser(path)}" if style else os.path.expanduser(path)
        yield Rule(f"{kind} {expanded}", rule.said)


def _excludes(rules: Iterable[Rule]) -> Iterator[Rule]:
    """Yield lines as `exclude_patterns` has them as patterns: of fnmatch, and not descended into."""
    for rule in rules:
        style, path = _styled(rule.line)
        yield Rule(f"! {style or 'fm'}:{os.path.expanduser(path)}", rule.said)


def _styled(pattern: str) -> tuple[str, str]:
    style, colon, path = pattern.partition(":")
    return (style, path) if colon and style in STYLES else ("", pattern)


def _extra(text: str) -> Iterator[str]:
    """Yield what `extra_borg_options: create:` says about what is archived."""
    waits = False
    for word in shlex.split(text):
        name, has_value, _ = word.partition("=")
        if waits or word in EXTRA or name in EXTRA_WITH_VALUE:
            yield word
        waits = not waits and not has_value and name in EXTRA_WITH_VALUE


def _borg(local_path: str) -> tuple[str, ...]:
    """Return how Borg is called; borgmatic takes a space for the end of a word."""
    return tuple(local_path.split(" "))
