"""What is said about archives is what a real borgmatic and Borg do."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.parts.ports import free_port
from tests.parts.victoria_logs import LogServer, VictoriaLogsProcess
from tests.setup.victoria_logs import Found
from tests.support import write_config
from vl_borg_hooks.archiving.configuration import Configuration, Shown, Unknown
from vl_borg_hooks.archiving.verdict import Judgement, Verdict
from vl_borg_hooks.config import Instance, load
from vl_borg_hooks.victorialogs.layout import LOCK_FILE
from vl_borg_hooks.victorialogs.sample import SAMPLE


class Machine:
    """A staging copy, other files, a repository, and a borgmatic config without our hooks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.staging = directory / "lib" / "vl" / "default"
        self.others = directory / "home"
        self.repository = directory / "repository.borg"
        self.config = directory / "borgmatic.yaml"
        for name in ("manifest.json", "inventory.jsonl", *(f"data/{path}" for path in SAMPLE)):
            file = self.staging / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(name)
        (self.others / "node_modules").mkdir(parents=True)
        (self.others / "letter.txt").touch()
        (self.others / "node_modules" / "a.bin").touch()
        own = write_config(
            directory / "config.yaml",
            [
                {
                    "name": "default",
                    "data_path": str(directory / "data"),
                    "staging_path": str(self.staging),
                    "service": {"systemd": "unused.service"},
                }
            ],
        )
        self.instance: Instance = load(own).config.instances[0]
        self.environment = {**os.environ, "HOME": str(directory / "user")}
        self.borg("init", "--encryption", "none", str(self.repository))

    def borg(self, *arguments: str) -> str:
        return subprocess.run(
            ["borg", *arguments],
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def write(self, options: Mapping[str, Any]) -> None:
        text = json.dumps(
            {
                "source_directories": [str(self.others), str(self.staging)],
                "repositories": [{"path": str(self.repository)}],
                "unknown_unencrypted_repo_access_is_ok": True,
                **options,
            }
        )
        for name in ("staging", "directory"):
            text = text.replace(f"<{name}>", str(getattr(self, name)))
        with self.config.open("w") as file:
            YAML().dump(json.loads(text), file)
        self.config.chmod(0o600)

    def configuration(self) -> Configuration:
        """What the config file says, without waiting for borgmatic."""
        return Configuration(self.config, YAML(typ="safe").load(self.config))

    def archived(self) -> set[str]:
        """Make an archive, and return the paths of files in it."""
        name = f"a{time.monotonic_ns()}"
        subprocess.run(
            [
                *("borgmatic", "--config", str(self.config), "create"),
                *("--override", f"archive_name_format={name}"),
            ],
            env=self.environment,
            check=True,
            capture_output=True,
        )
        listed = self.borg("list", "--format", "{type} {path}{NL}", f"{self.repository}::{name}")
        return {line[2:] for line in listed.splitlines() if line.startswith("-")}

    def verdict(self, *arguments: str) -> Verdict:
        with contextlib.closing(
            Shown([str(shutil.which("borgmatic"))], self.config, arguments)
        ) as shown:
            configuration = shown.configuration()
        return judged(configuration, self.instance)


def judged(configuration: Configuration, instance: Instance) -> Verdict:
    repositories = configuration.archived_to([])
    with contextlib.closing(
        Judgement(configuration, repositories, [instance], ["borgmatic"])
    ) as judgement:
        return judgement.verdict()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


GOOD: dict[str, dict[str, Any]] = {
    "as it is": {},
    "many excludes": {
        "exclude_patterns": [
            *("*.pyc", "/home/*/.cache", "sh:**/node_modules", "fm:*/tmp/*", "re:\\.bak$"),
            *("pp:<directory>/home/node_modules", "~/.cache", "*~", "/proc", "sh:**/*.iso"),
        ]
    },
    "an include before": {"patterns": ["+ pp:<staging>", "- **"]},
    "an include before excludes": {
        "patterns": ["+ <staging>", "P fm", "- *.bin"],
        "exclude_patterns": ["*.json"],
    },
    "in patterns only": {"source_directories": [], "patterns": ["R <staging>", "- re:letter"]},
    "a directory above": {"source_directories": ["<directory>/lib"]},
    "a glob above": {"source_directories": ["<directory>/l*"]},
    "with a dot": {"source_directories": ["<directory>/lib/./vl"]},
    "relative": {"working_directory": "<directory>", "source_directories": ["lib/vl"]},
    "relative glob": {"working_directory": "<directory>/lib", "source_directories": ["v*"]},
    "a mark elsewhere": {"exclude_if_present": [".nobackup"], "exclude_caches": True},
    "one filesystem": {"one_file_system": True},
    "a slash too many": {"source_directories": ["<staging>/"]},
}
BAD: dict[str, dict[str, Any]] = {
    "bin": {"exclude_patterns": ["*.bin"]},
    "data": {"exclude_patterns": ["sh:**/data"]},
    "everything": {"patterns": ["- **"]},
    "everything, not descended into": {"patterns": ["! **"]},
    "re": {"exclude_patterns": ["re:/metadata\\.json$"]},
    "re of the beginning": {"patterns": ["- re:^tmp|^[^/]*/[^/]*/.*/lib/vl/default/manifest"]},
    "fm": {"exclude_patterns": ["fm:<staging>/*/indexdb"]},
    "pp": {"exclude_patterns": ["pp:<staging>/data/partitions"]},
    "pf": {"exclude_patterns": ["pf:<staging>/manifest.json"]},
    "pf in patterns": {"patterns": ["- pf:<staging>/inventory.jsonl"]},
    "sh from the top": {"exclude_patterns": ["sh:<directory>/**/values.bin*"]},
    "a directory above": {"exclude_patterns": ["<directory>/lib"]},
    "a slash at the end": {"exclude_patterns": ["<staging>/"]},
    "style of all": {"patterns": ["P re", "- parts\\.json"]},
    "style of all, and an include": {"patterns": ["P re", "+ manifest", "- .json"]},
    "an include too late": {"patterns": ["- sh:**/items.bin", "+ pp:<staging>"]},
    "an include of the directory only": {"patterns": ["+ pf:<staging>", "- <directory>"]},
    "not a source": {"source_directories": ["<directory>/home"]},
    "a part of it": {"source_directories": ["<staging>/data", "<directory>/home"]},
    "one that begins like it": {"source_directories": ["<staging>-2", "<directory>/home"]},
    "by Borg's own option": {"extra_borg_options": {"create": "--exclude '*.bin'"}},
    "by another of Borg's options": {"extra_borg_options": {"create": "--pattern='- **/data'"}},
    "json": {"exclude_patterns": ["*.json"], "patterns": ["+ **/manifest.json"]},
}


@pytest.mark.parametrize("name", [*GOOD, *BAD])
def test_the_verdict_is_what_a_real_archive_has(
    machine: Machine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which files are not archived, and with them the first that is named."""
    monkeypatch.setenv("HOME", str(machine.directory / "user"))
    (machine.directory / "lib" / "vl" / "default-2").mkdir(exist_ok=True)
    machine.write(GOOD.get(name) or BAD.get(name) or {})
    listed = machine.archived()
    names = ["manifest.json", "inventory.jsonl", *(f"data/{path}" for path in SAMPLE)]
    missing = [
        name for name in names if not any(path.endswith(f"vl/default/{name}") for path in listed)
    ]
    verdict = judged(machine.configuration(), machine.instance)
    assert verdict.partly == {}
    problems = verdict.nowhere.get("default", [])
    if not missing:
        assert problems == []
        return
    (problem,) = problems
    named = machine.staging / missing[0]
    if len(missing) == len(names):
        named = machine.staging
    assert f"would not get {named}" in problem.what


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exclude_patterns": ["*.pyc", "*.bin", "*.o"]}, "because of exclude_patterns: *.bin"),
        (
            {"patterns": ["+ **/manifest.json", "- **/*.json", "- **"]},
            "because of patterns: - **",
        ),
        ({"exclude_from": ["<directory>/excludes"]}, "/excludes: sh:**/data"),
        ({"patterns_from": ["<directory>/patterns"]}, "/patterns: - **/indexdb"),
    ],
)
def test_the_pattern_that_does_it_is_named(
    machine: Machine, options: dict[str, Any], said: str
) -> None:
    (machine.directory / "excludes").write_text("*.pyc\n\n# all\nsh:**/data\n*.o\n")
    (machine.directory / "patterns").write_text("- **/*.pyc\n- **/indexdb\n")
    machine.write(options)
    (problem,) = machine.verdict().nowhere["default"]
    assert said in problem.what
    # And what it says to do helps.
    assert problem.hint.endswith(f": + pp:{machine.staging}")
    include = problem.hint.rpartition(": ")[2]
    machine.write({**options, "patterns": [include, *options.get("patterns", [])]})
    assert machine.verdict() == Verdict()


@pytest.mark.parametrize("where", ["above", "in the data", "a cache"])
def test_a_mark_that_excludes_a_directory_is_found(tmp_path: Path, where: str) -> None:
    machine = Machine(tmp_path)
    options: dict[str, Any] = {"exclude_if_present": [".nobackup"], "exclude_caches": True}
    machine.write(options)
    assert machine.verdict() == Verdict()
    if where == "above":
        mark = machine.staging / ".nobackup"
        mark.touch()
    elif where == "in the data":
        # Where the first warm pass copies it from.
        mark = tmp_path / "data" / ".nobackup"
        mark.parent.mkdir()
        mark.touch()
    else:
        mark = machine.staging / "CACHEDIR.TAG"
        mark.write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (problem,) = machine.verdict().nowhere["default"]
    assert f"because of {mark}" in problem.what
    if where != "in the data":
        assert not any(path.endswith("/default/manifest.json") for path in machine.archived())


def test_a_staging_path_that_is_a_link_is_archived_as_a_link(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    real = machine.staging.rename(tmp_path / "elsewhere")
    machine.staging.symlink_to(real)
    machine.write({})
    assert not any(path.endswith("/default/manifest.json") for path in machine.archived())
    assert machine.verdict().nowhere["default"]
    machine.write({"source_directories": [str(real)]})
    assert any(path.endswith("/elsewhere/manifest.json") for path in machine.archived())
    assert machine.verdict() == Verdict()


def test_each_repository_is_judged_by_its_own_options(machine: Machine) -> None:
    second = {"path": "/nowhere/second.borg", "source_directories": ["/etc"], "label": "second"}
    first = {"path": str(machine.repository), "label": "first"}
    machine.write({"repositories": [first, second]})
    verdict = machine.verdict()
    assert verdict.nowhere == {}
    (problem,) = verdict.partly["default"]
    assert "second in" in problem.what
    assert "source_directories of its own" in problem.what
    machine.write({"repositories": [{**first, "source_directories": ["/etc"]}, second]})
    assert len(machine.verdict().nowhere["default"]) == 2


def test_what_the_command_line_of_borgmatic_says_counts(machine: Machine) -> None:
    machine.write({})
    assert machine.verdict("create", "--stats") == Verdict()
    for arguments in (
        ["--override", 'exclude_patterns=["*.bin"]', "create"],
        ["--exclude-patterns", '["*.bin"]', "create", "--stats"],
    ):
        (problem,) = machine.verdict(*arguments).nowhere["default"]
        assert "exclude_patterns: *.bin" in problem.what


def test_variables_are_resolved_as_by_who_archives(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STAGING", str(machine.staging))
    monkeypatch.setenv("REPOSITORY", str(machine.repository))
    machine.write(
        {
            "source_directories": ["${STAGING}"],
            "repositories": [
                {"path": "${REPOSITORY}", "label": "${L-far}"},
                {"path": f"${{NOWHERE:-{machine.directory}/other.borg}}"},
            ],
            "exclude_patterns": ["\\${STAGING}"],
        }
    )
    assert machine.verdict() == Verdict()
    shown = Shown([str(shutil.which("borgmatic"))], machine.config, [])
    with contextlib.closing(shown):
        configuration = shown.configuration()
    first, second = configuration.repositories
    for wanted in ("far", str(machine.repository)):
        assert first in configuration.archived_to(["create", "--repository", wanted])
    assert second in configuration.archived_to(["--repository", f"{machine.directory}/other.borg"])
    assert first not in configuration.archived_to(["create", "--repository", "near"])
    monkeypatch.delenv("STAGING")
    with pytest.raises(Unknown, match=r"has \$STAGING, which is not in the environment"):
        machine.verdict()


def test_a_borg_that_cannot_say_it_is_no_failure(machine: Machine) -> None:
    machine.write({"exclude_patterns": ["re:("]})
    with pytest.raises(Exception, match="what is archived was not looked at"):
        machine.verdict()


def test_the_passwords_of_a_config_get_into_no_log(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    log = tmp_path / "log"
    machine.write(
        {
            "encryption_passphrase": "secret-word",
            "log_file": str(log),
            "log_file_verbosity": 2,
            "syslog_verbosity": 2,
            "verbosity": -2,
        }
    )
    assert machine.verdict() == Verdict()
    assert not log.exists() or "secret-word" not in log.read_text()
    machine.write({"log_json": True, "verbosity": 2, "exclude_patterns": ["*.bin"]})
    assert machine.verdict().nowhere


@pytest.mark.real_victorialogs
def test_the_sample_has_every_name_that_victorialogs_writes(
    victoria_logs: Found, tmp_path: Path
) -> None:
    with VictoriaLogsProcess(victoria_logs.path, tmp_path / "data", free_port()) as server:
        fill(server.server)
        server.server.merge()
        server.stop()
    names = {path.rpartition("/")[2] for path in SAMPLE}
    written = {path.name for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert written - {LOCK_FILE} <= names | {"values.bin1", "bloom.bin1"}
    assert {"parts.json", "values.bin0", "items.bin"} <= written


def fill(server: LogServer) -> None:
    server.ingest(
        [
            {"host": f"h{n % 7}", "_msg": f"row {n}", "n": str(n), "_time": "2026-01-02T00:00:00Z"}
            for n in range(2000)
        ]
    )
