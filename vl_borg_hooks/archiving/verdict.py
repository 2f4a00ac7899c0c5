"""Whether the staging copies get into the archives: Borg itself says so, of a sample with their paths."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from vl_borg_hooks.archiving import rules
from vl_borg_hooks.archiving.configuration import Configuration, Repository, Unknown
from vl_borg_hooks.archiving.rules import Rule, Rules
from vl_borg_hooks.archiving.sample import Sample, is_reached
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.system import commands, processes

if TYPE_CHECKING:
    from vl_borg_hooks.config import Instance

BORG_SECONDS = 60
# Of `borg create --list --log-json --dry-run`: Borg would archive that file.
ARCHIVED = "-"
# A dry run opens no repository, so it need not exist (do_create in borg/archiver.py of 1.2 and 1.4).
NO_REPOSITORY = "none::sample"


@dataclass(frozen=True)
class Problem:
    """Why a repository would not get the staging copy of an instance: what, and what to do."""

    what: str
    hint: str


@dataclass
class Verdict:
    """What is wrong, by the name of the instance.

    `nowhere` has those that no repository would get, `partly` those that only some would get.
    """

    nowhere: dict[str, list[Problem]] = field(default_factory=dict)
    partly: dict[str, list[Problem]] = field(default_factory=dict)


class Judgement:
    """Asks Borg, beside us, whether `repositories` get the staging copies of `instances`.

    `borgmatic` is how the borgmatic is called that makes the archives. Raises
    Unknown, or OSError.
    """

    def __init__(
        self,
        configuration: Configuration,
        repositories: Sequence[Repository],
        instances: Sequence[Instance],
        borgmatic: Sequence[str],
    ) -> None:
        self._configuration = configuration
        self._repositories = repositories
        self._instances = instances
        self._judges: list[_Judge] = []
        self._scratch = tempfile.TemporaryDirectory(prefix="vl-borg-hooks-")
        try:
            known: dict[Rules, _Judge] = {}
            for repository in repositories:
                told = _rules(configuration, repository, borgmatic)
                if told not in known:
                    directory = Path(self._scratch.name, str(len(known)))
                    known[told] = _Judge(directory, told, instances)
                self._judges.append(known[told])
        except BaseException:
            self.close()
            raise

    def verdict(self) -> Verdict:
        """Return what Borg says, as soon as it has; raises Unknown."""
        verdict = Verdict()
        for instance in self._instances:
            problems = [
                problem
                for repository, judge in zip(self._repositories, self._judges, strict=True)
                if (problem := judge.problem(self._configuration, repository, instance))
            ]
            if problems:
                everywhere = len(problems) == len(self._repositories)
                where = verdict.nowhere if everywhere else verdict.partly
                where[instance.name] = problems
        return verdict

    def close(self) -> None:
        """Remove the sample, and end what still runs."""
        for judge in self._judges:
            judge.close()
        with contextlib.suppress(OSError):
            self._scratch.cleanup()


class _Judge:
    """Borg, told `told` by borgmatic, and a sample of the staging copies of `instances`."""

    def __init__(self, scratch: Path, told: Rules, instances: Sequence[Instance]) -> None:
        self._told = told
        self._scratch = scratch
        self._sample = Sample(scratch / "tree")
        (scratch / "tree").mkdir(parents=True)
        for instance in instances:
            data = instance.host.local_path(instance.data_directory)
            self._sample.add(instance.staging_path, str(data) if data else None, told.marks)
        self._roots = self._sample.roots(told.roots, told.directory)
        self._listings = self._start(told.rules, told.flags)

    @cached_property
    def _archived(self) -> set[str]:
        return self._finish(self._listings)

    def close(self) -> None:
        """End the Borg that still runs."""
        for listing in self._listings:
            listing.close()

    def problem(
        self, configuration: Configuration, repository: Repository, instance: Instance
    ) -> Problem | None:
        """Return why `repository` would not get all of the staging copy of `instance`."""
        staging, file = instance.staging_path, configuration.file
        missing = [name for name in self._sample.files(staging) if name not in self._archived]
        if not missing:
            return self._problem_of_filesystems(configuration, instance)
        sources = self._finish(self._start((), ()))
        if missing[0] not in sources:
            what = missing[0] if sources.intersection(self._sample.files(staging)) else staging
            return _not_a_source(configuration, repository, what)
        what = f"{repository.name} in {file} would not get {missing[0]}"
        rule = self._rule_that_excludes(missing[0])
        if rule:
            return Problem(
                f"{what}, because of {rule}",
                f"make that narrower, or put at the top of patterns: in {file}: + pp:{staging}",
            )
        marks = " or ".join(dict.fromkeys(self._sample.marks)) or "a file beside it"
        return Problem(
            f"{what}, because of {marks}",
            f"remove it, or see exclude_if_present and exclude_caches in {file}",
        )

    def _problem_of_filesystems(
        self, configuration: Configuration, instance: Instance
    ) -> Problem | None:
        if not self._told.one_file_system:
            return None
        roots = [os.path.join(base, name) for base, names in self._roots.items() for name in names]
        if any(is_reached(root, instance.staging_path) for root in roots):
            return None
        return Problem(
            f"{instance.staging_path} is on another filesystem than the source directory that holds "
            f"it, and {configuration.file} says one_file_system",
            f"name it in source_directories too: {instance.staging_path}",
        )

    def _rule_that_excludes(self, file: str) -> str:
        """Return the rule that keeps Borg from archiving `file`, empty if it is none of them.

        For each path Borg goes by the first rule that matches. So without the rules after that one it
        is the same, and without that one too it isn't.
        """
        every = self._told.rules
        low, high = 0, len(every)
        if file in self._finish(self._start(every, ())):
            return ""
        while low < high:
            middle = (low + high) // 2
            if file in self._finish(self._start(every[:middle], ())):
                low = middle + 1
            else:
                high = middle
        return every[low - 1].said if low else ""

    def _start(self, rules: Sequence[Rule], flags: Sequence[str]) -> list[_Listing]:
        """Have Borg list what it would archive by `rules` and `flags`; raises Unknown."""
        patterns = self._scratch / f"patterns-{len(rules)}"
        patterns.write_text("".join(f"{rule.line}\n" for rule in rules), encoding="utf-8")
        listings = []
        for base, roots in self._roots.items():
            argv = [
                *(*self._told.borg, "create", "--dry-run", "--list", "--log-json"),
                *(f"--patterns-from={patterns}", *flags),
                *("--", f"{self._scratch}/{NO_REPOSITORY}", *roots),
            ]
            listings.append(_Listing(argv, base, f"{self._sample.root}{base}", self._scratch))
        return listings

    def _finish(self, listings: Sequence[_Listing]) -> set[str]:
        """Return the files of the staging copies that Borg has listed; raises Unknown."""
        found = (
            self._sample.on_this_machine(path, listing.base)
            for listing in listings
            for path in listing.paths()
        )
        return {path for path in found if path}


class _Listing:
    """A Borg that lists what it would archive; `base` is where its paths are relative to."""

    def __init__(self, argv: Sequence[str], base: str, directory: str, scratch: Path) -> None:
        self.base = base
        self._output = os.fdopen(os.memfd_create("borg"), "w+b")
        environment = {"BORG_BASE_DIR": str(scratch), "BORG_LOGGING_CONF": "", "PYTHONUTF8": "1"}
        try:
            self._process = processes.beside(
                argv, errors=self._output, directory=directory, environment=environment
            )
        except OperatorError as error:
            raise Unknown(error.what, hint=error.hint) from None

    def paths(self) -> list[str]:
        """Return the paths that it lists, when it has ended; raises Unknown."""
        processes.wait(self._process, BORG_SECONDS)
        if self._process.poll() is None:
            raise Unknown(f"Borg takes longer than {BORG_SECONDS} seconds for it")
        with self._output as output:
            output.seek(0)
            lines = [*map(_parsed, output.read().decode("utf-8", "replace").splitlines())]
        listed = [line for line in lines if line.get("type") == "file_status"]
        if self._process.returncode and not listed:
            reasons = [str(line["message"]) for line in lines if line.get("message")]
            reason = reasons[-1] if reasons else f"exit status {self._process.returncode}"
            raise Unknown(f"Borg does not list it: {reason.strip()}")
        return [str(line.get("path")) for line in listed if line.get("status") == ARCHIVED]

    def close(self) -> None:
        """End it if it still runs."""
        processes.end(self._process)
        self._output.close()


def _not_a_source(configuration: Configuration, repository: Repository, path: str) -> Problem:
    if repository.has_own_sources:
        return Problem(
            f"{repository.name} in {configuration.file} would not get {path}: it has "
            "source_directories of its own, which replace all others",
            f"name it there too: {path}",
        )
    return Problem(
        f"{repository.name} in {configuration.file} would not get {path}: it is in none of its "
        "source_directories",
        "include what this prints: vl-borg-hooks config generate --borgmatic",
    )


def _rules(configuration: Configuration, repository: Repository, borgmatic: Sequence[str]) -> Rules:
    options = repository.options
    one_list = not configuration.has_sections
    if one_list and rules.order_matters(options):
        one_list = _makes_one_list(borgmatic)
    return rules.of(options, one_list=one_list)


def _makes_one_list(borgmatic: Sequence[str]) -> bool:
    """Say whether `borgmatic` is new enough to make one list of all patterns; raises Unknown."""
    try:
        printed = commands.run([*borgmatic, "--version"], timeout=BORG_SECONDS).stdout
    except OperatorError as error:
        raise Unknown(error.what) from None
    version = tuple(map(int, re.findall(r"\d+", printed)[:3]))
    return version >= rules.ONE_LIST_SINCE


def _parsed(line: str) -> dict[str, object]:
    try:
        parsed = json.loads(line)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}
