"""`config validate`: check the config file, what it names, and whether borgmatic archives it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks.actions.run import Setting
from vl_borg_hooks.archiving.configuration import (
    Configuration,
    Shown,
    default_files,
    installed_borgmatic,
    telling,
)
from vl_borg_hooks.archiving.verdict import Judgement, Problem
from vl_borg_hooks.config import ConfigError, describe
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.snapshots import offer

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance, LoadedConfig


def problems(loaded: LoadedConfig, instances: Sequence[Instance]) -> list[str]:
    """Return what is wrong with what the config names for `instances`, one line each.

    Raises ConfigError if the section of a plugin is wrong.
    """
    setting = Setting(loaded)
    found: list[str] = []
    for instance in instances:
        try:
            backup = setting.backup(instance)
            with backup.host.connected():
                checks = setting.hooks.backup_checks(backup)
        except ConfigError as error:
            found += error.errors
        else:
            location = ("instances", loaded.config.instances.index(instance))
            found += [
                describe(
                    loaded.path,
                    loaded.lines,
                    location,
                    str(OperatorError(check.what, hint=check.hint)),
                )
                for check in checks
                if not check.ok
            ]
    return found


def recommendations(loaded: LoadedConfig, instances: Sequence[Instance]) -> list[str]:
    """Return what would be better for `instances`, one line each."""
    setting = Setting(loaded)
    found = []
    for instance in instances:
        backup = setting.backup(instance)
        with contextlib.suppress(OperatorError), backup.host.connected():
            if instance.consistency == "stop" and backup.client:
                offer.require_offered(backup, backup.client)
                offer.require_hard_links(backup)
                found.append(
                    f"{instance.name}: VictoriaLogs {backup.client.version()} need not be stopped for "
                    "a backup: set consistency: snapshot"
                )
    return found


@dataclass
class Archived:
    """What is wrong with what borgmatic archives, and what else there is to know, one line each."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def warn(self, text: str) -> None:
        """Note a warning."""
        self.notes.append(f"warning: {text}")


def archived(
    loaded: LoadedConfig, instances: Sequence[Instance], borgmatic_config: Path | None
) -> Archived:
    """Look at what borgmatic archives of `instances`, with `borgmatic_config` or its usual files.

    Before our hooks are in one of them, that is no problem: it is said what is left to do.
    """
    found = Archived()
    borgmatic = installed_borgmatic()
    if not borgmatic:
        found.notes.append("borgmatic is not on PATH, so what it archives was not looked at")
        return found
    backed_up: set[str] = set()
    files = [borgmatic_config] if borgmatic_config else default_files()
    for configuration in _configurations(borgmatic, files, found):
        names = configuration.backs_up(loaded.path)
        if names is not None:
            backs_up = [one for one in instances if not names or one.name in names]
            backed_up |= {one.name for one in backs_up}
            _judge(configuration, backs_up, borgmatic, found)
    if left := [instance.name for instance in instances if instance.name not in backed_up]:
        looked_at = ", ".join(map(str, files)) or "there is none in borgmatic's usual places"
        found.notes.append(
            f"no borgmatic config backs up {', '.join(left)} yet ({looked_at}): include what this "
            "prints: vl-borg-hooks config generate --borgmatic"
        )
        if borgmatic_config:
            found.problems.append(found.notes.pop())
    return found


def _configurations(
    borgmatic: Sequence[str], files: Sequence[Path], found: Archived
) -> Iterator[Configuration]:
    with contextlib.ExitStack() as stack:
        shown = []
        for file in files:
            with telling(found.warn):
                shown.append(stack.enter_context(contextlib.closing(Shown(borgmatic, file, ()))))
        for one in shown:
            with telling(found.warn):
                yield one.configuration()


def _judge(
    configuration: Configuration,
    instances: Sequence[Instance],
    borgmatic: Sequence[str],
    found: Archived,
) -> None:
    repositories = configuration.archived_to(())
    if not repositories:
        found.notes.append(f"{configuration.file} makes no archives: see skip_actions in it")
        return
    with (
        telling(found.warn),
        contextlib.closing(
            Judgement(configuration, repositories, instances, borgmatic)
        ) as judgement,
    ):
        verdict = judgement.verdict()
        found.problems += _lines(verdict.nowhere.values())
        found.notes += [f"warning: {line}" for line in _lines(verdict.partly.values())]


def _lines(problems: Iterable[Sequence[Problem]]) -> list[str]:
    return [f"{one.what}; {one.hint}" for group in problems for one in group]
