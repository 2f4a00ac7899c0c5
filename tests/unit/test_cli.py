"""The command line: the options of all commands, wherever they are, and what each verbosity shows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.parts.fakes import installed
from vl_borg_hooks import cli, errors
from vl_borg_hooks.system import log


def parsed(*argv: str) -> dict[str, Any]:
    arguments = vars(cli._parse(argv))
    return {name: arguments[name] for name in ("config", "instance", "verbosity", "dry_run")}


DEFAULTS: dict[str, Any] = {"config": None, "instance": [], "verbosity": None, "dry_run": False}
GIVEN = ("--config", "/c", "--instance", "a", "--verbosity", "2", "--dry-run")
AS_GIVEN = {"config": Path("/c"), "instance": ["a"], "verbosity": 2, "dry_run": True}
COMMANDS: Sequence[tuple[str, ...]] = [
    ("before-create",),
    ("after-create",),
    ("after-extract",),
    ("restore", "--from", "/x", "--yes"),
    ("verify", "/x", "--quick"),
    ("recover", "--wait"),
    ("status", "--json"),
    ("config", "generate", "--destination", "/x"),
    ("config", "validate"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_options_of_all_commands_are_before_or_after_or_in_the_command(
    command: tuple[str, ...],
) -> None:
    assert parsed(*command) == DEFAULTS
    for at in range(len(command) + 1):
        if at and command[at - 1] in ("--from", "--destination"):
            continue
        assert parsed(*command[:at], *GIVEN, *command[at:]) == AS_GIVEN


def test_options_before_and_after_add_up_and_the_last_of_two_values_counts() -> None:
    both = parsed(
        *("--config", "/one", "--instance", "a", "-v", "status"),
        *("--instance", "b", "--config", "/two", "-v"),
    )
    assert both == {
        "config": Path("/two"),
        "instance": ["a", "b"],
        "verbosity": 2,
        "dry_run": False,
    }
    assert parsed("--dry-run", "status")["dry_run"]


@pytest.mark.parametrize(
    ("argv", "verbosity"),
    [
        (["status"], None),
        (["-v", "status"], 1),
        (["status", "-v"], 1),
        (["status", "-vv"], 2),
        (["-v", "status", "-v"], 2),
        (["-vvvv", "status"], 2),
        # As borgmatic has it.
        (["-v", "2", "status"], 2),
        (["-v", "-1", "status"], -1),
        (["status", "-v", "1"], 1),
        (["--verbosity", "-2", "status"], -2),
        (["--verbosity=-1", "status", "-v"], 0),
        (["-v", "status", "--verbosity", "-1"], -1),
    ],
)
def test_verbosity_is_counted_or_a_number(argv: list[str], verbosity: int | None) -> None:
    assert parsed(*argv)["verbosity"] == verbosity


def test_a_path_that_looks_like_an_option_is_a_path_after_two_dashes() -> None:
    assert cli._parse(["verify", "--", "-v"]).path == Path("-v")


@pytest.mark.parametrize("value", ["3", "-3", "1e12", "inf", "nan", "9" * 5000, "", "1.5", "x"])
def test_a_verbosity_that_there_is_not_is_refused(
    value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["status", f"--verbosity={value}"])
    assert caught.value.code == 2
    assert "argument --verbosity: invalid " in capsys.readouterr().err


def test_no_option_is_taken_for_another_by_its_beginning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for argv in (["--conf", "/c", "status"], ["status", "--conf", "/c"], ["status", "--dry"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 2
        assert "usage: vl-borg-hooks" in capsys.readouterr().err


ALL = ("an error", "a warning", "a result", "the story", "a command")


@pytest.mark.parametrize(
    ("verbosity", "shown"), [(-2, 0), (-1, 1), (0, 3), (1, 4), (2, 5)], ids=str
)
def test_each_verbosity_shows_more_than_the_one_before(
    monkeypatch: pytest.MonkeyPatch, verbosity: int, shown: int
) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    log.set_up(verbosity)
    levels = (logging.ERROR, logging.WARNING, log.RESULT, logging.INFO, logging.DEBUG)
    enabled = [
        text for text, level in zip(ALL, levels, strict=True) if log.logger.isEnabledFor(level)
    ]
    assert enabled == list(ALL[:shown])


def test_a_hint_to_run_again_names_the_verbosity_that_shows_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hooks, loaded = installed(monkeypatch, tmp_path)
    hooks.failing("before_backup", RuntimeError("boom"))
    root = logging.getLogger()
    hint = errors.unexpected(RuntimeError("boom")).hint
    assert "--verbosity 2" in hint
    for option, traced in (([], False), (["-v"], False), (["--verbosity", "2"], True)):
        monkeypatch.setattr(root, "handlers", [])
        argv = ["before-create", "--config", str(loaded.path), *option]
        assert cli.main(argv) == 1
        said = capfd.readouterr().err
        assert ("Traceback" in said) is traced
        assert "unexpected RuntimeError: boom" in said
