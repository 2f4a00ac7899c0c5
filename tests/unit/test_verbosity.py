"""What the borgmatic that runs us shows, from its command line and its config."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from vl_borg_hooks.runs.borgmatic import Borgmatic
from vl_borg_hooks.runs.verbosity import is_json, verbosity


def called_with(*arguments: str) -> Borgmatic:
    """A borgmatic in our own directory, with these arguments."""
    return Borgmatic(psutil.Process(), ("borgmatic",), arguments)


@pytest.fixture(autouse=True)
def _without_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "personal"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("create", 0),
        ("-v 1 create", 1),
        ("-v1 create", 1),
        ("-v=2 create", 2),
        ("create --verbosity 1", 1),
        ("create --verbosity=2 --stats", 2),
        ("-v -1", -1),
        ("-v-2 create", -2),
        ("--verbosity -1 create", -1),
        ("--verbosity=-2", -2),
        ("-v 2 create -v 1", 1),
        # What cron would mail is decided by the console alone.
        ("create --syslog-verbosity 1", 0),
        ("-v 1 --syslog-verbosity 0", 1),
        ("create --log-file /a.log", 0),
        # borgmatic's sample units.
        ("--verbosity -2 --syslog-verbosity 1", 1),
        ("--verbosity -1 --syslog-verbosity 1", 1),
        ("--verbosity -1 --syslog-verbosity=2", 2),
        ("-v -1 --log-file /a.log --log-file-verbosity 2", 2),
        ("-v -1 --log-file /a.log", 1),
        ("-v -1 --log-file-verbosity 2", -1),
        # No number: borgmatic itself has refused it.
        ("create -v", 0),
        ("create -v much", 0),
        ("--verbosity= create", 0),
    ],
)
def test_the_command_line_says_how_much_is_shown(arguments: str, expected: int) -> None:
    assert verbosity(called_with(*arguments.split())) == expected


def test_the_config_says_it_too_and_an_argument_counts_more(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("repositories: []\nverbosity: 1\n")
    assert verbosity(called_with("--config", "config.yaml", "create")) == 1
    assert verbosity(called_with("-c", str(tmp_path / "config.yaml"))) == 1
    assert verbosity(called_with("--config=config.yaml", "-v", "0")) == 0
    assert verbosity(called_with("--config", "missing.yaml")) == 0


def test_the_usual_config_files_are_known(tmp_path: Path) -> None:
    directory = tmp_path / "personal" / "borgmatic.d"
    directory.mkdir(parents=True)
    (directory / "one.yaml").write_text("verbosity: -1\n")
    (directory / "two.yml").write_text("verbosity: 1\n")
    (directory / "other.txt").write_text("verbosity: 2\n")
    # As borgmatic has it for all of them: the largest.
    assert verbosity(called_with("create")) == 1
    (directory / "two.yml").write_text("retries: 1\n")
    assert verbosity(called_with("create")) == 0


def test_what_is_included_counts_and_what_includes_it_counts_more(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner.yaml", tmp_path / "outer.yaml"
    inner.write_text("verbosity: -2\nsyslog_verbosity: 1\n")
    outer.write_text(
        f"<<: !include {inner}\nkeep_daily: 7\nsource_directories: !retain [a]\nconstants: {{x: 1}}\n"
    )
    assert verbosity(called_with("--config", str(outer))) == 1
    outer.write_text("<<: !include [inner.yaml]\nverbosity: 0\n")
    assert verbosity(called_with("--config", str(outer))) == 0
    inner.write_text("<<: !include outer.yaml\nverbosity: 2\n")
    outer.write_text("<<: !include inner.yaml\n")
    assert verbosity(called_with("--config", str(outer))) == 2


@pytest.mark.parametrize(
    "text", ["", "a list:\n- 1", "- 1", "{", "verbosity: ${X}", "a: *b", "\0", "? [a]\n: 1"]
)
def test_a_config_that_can_not_be_read_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    assert verbosity(called_with("--config", "config.yaml")) == 0


def test_usual_places_that_can_not_be_looked_into_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Like a HOME of another user, but for root too.
    monkeypatch.setenv("XDG_CONFIG_HOME", "/" + "x" * 300)
    assert verbosity(called_with("create")) == 0


def test_a_log_file_in_the_config_has_a_verbosity(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("verbosity: -2\nlog_file: /a.log\n")
    assert verbosity(called_with("--config", str(config))) == 1
    config.write_text("verbosity: -2\nlog_file: /a.log\nlog_file_verbosity: 0\n")
    assert verbosity(called_with("--config", str(config))) == 0


def test_json_is_asked_for_by_an_argument() -> None:
    assert is_json(called_with("create", "--json"))
    assert not is_json(called_with("create", "--stats"))
