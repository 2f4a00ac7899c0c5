"""The look at what the borgmatic that runs us archives, before anything is changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks.archiving.configuration import (
    Configuration,
    Repository,
    Shown,
    repository_of,
    telling,
)
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.runs.borgmatic import Borgmatic, running
from vl_borg_hooks.system.log import logger

if TYPE_CHECKING:
    from vl_borg_hooks.archiving.verdict import Judgement, Verdict
    from vl_borg_hooks.config import Instance


class Look:
    """Asks `borgmatic` for the configuration in `file`, and then Borg, both beside us."""

    def __init__(self, borgmatic: Borgmatic, file: Path, shown: Shown) -> None:
        self.file = file
        self._borgmatic = borgmatic
        self._shown = shown
        self._configuration: Configuration | None = None
        self._judgement: Judgement | None = None

    def makes_archives(self) -> bool:
        """Say whether borgmatic makes any archive with that configuration.

        It waits for borgmatic's answer. If there is none, it is a warning, and yes.
        """
        with telling(_warn):
            self._configuration = self._shown.configuration()
        return self._configuration is None or bool(self._repositories)

    @property
    def is_narrowed(self) -> bool:
        """Whether that borgmatic was called for one repository only."""
        return repository_of(self._borgmatic.arguments) is not None

    def begin(self, instances: Sequence[Instance]) -> None:
        """Have Borg say whether it would archive the staging copies of `instances`."""
        # Imported here: not before borgmatic is at work.
        from vl_borg_hooks.archiving.verdict import Judgement

        if self._configuration:
            with telling(_warn):
                self._judgement = Judgement(
                    *(self._configuration, self._repositories, instances, self._borgmatic.command)
                )

    def require(self, instance: Instance) -> list[str]:
        """Return what is wrong with some of the repositories; raises OperatorError if it is all.

        It waits for Borg's answer. If there is none, it is a warning.
        """
        for problem in self._verdict.nowhere.get(instance.name, ()):
            raise OperatorError(problem.what, hint=problem.hint)
        partly = self._verdict.partly.get(instance.name, ())
        return [f"{problem.what}; {problem.hint}" for problem in partly]

    def close(self) -> None:
        """End what still runs."""
        self._shown.close()
        if self._judgement:
            self._judgement.close()

    @property
    def _repositories(self) -> list[Repository]:
        configuration, arguments = self._configuration, self._borgmatic.arguments
        return configuration.archived_to(arguments) if configuration else []

    @cached_property
    def _verdict(self) -> Verdict:
        from vl_borg_hooks.archiving.verdict import Verdict

        with telling(_warn):
            if self._judgement:
                return self._judgement.verdict()
        return Verdict()


@contextlib.contextmanager
def look(file: Path | None) -> Iterator[Look | None]:
    """Begin the look; None if no borgmatic runs us, or none that has said what its `file` is."""
    borgmatic = running() if file else None
    if file is None or borgmatic is None:
        yield None
        return
    shown = None
    with telling(_warn):
        shown = Shown(borgmatic.command, file, borgmatic.arguments)
    if shown is None:
        yield None
        return
    with contextlib.closing(Look(borgmatic, file, shown)) as found:
        yield found


def _warn(text: str) -> None:
    logger.warning("%s", text)
