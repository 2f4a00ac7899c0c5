"""`config generate`: what it writes loads, documents every option, and survives a shell."""

from __future__ import annotations

import json
import os
import re
import shlex
import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from borgmatic.hooks.command import interpolate_context  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from ruamel.yaml import YAML

from tests.support import EXAMPLES, umask, write_config
from vl_borg_hooks import cli, config
from vl_borg_hooks.actions import generate
from vl_borg_hooks.config import Config, Instance, LoadedConfig, RestoreOptions, WarmOptions
from vl_borg_hooks.errors import OperatorError
from vl_borg_hooks.services.command import CommandOptions
from vl_borg_hooks.services.systemd import SystemdOptions

# Where each model's options stand in the file.
MODELS: Mapping[type[BaseModel], tuple[str | int, ...]] = {
    Config: (),
    Instance: ("instances", 0),
    RestoreOptions: ("instances", 0, "restore"),
    WarmOptions: ("instances", 0, "warm"),
}


def uncommented(text: str) -> str:
    """Return `text` with each option that is commented out taken in."""
    return "\n".join(
        re.sub(r"^( *)# ( *[a-z_]+:( .*)?)$", r"\1\2", line) for line in text.splitlines()
    )


def parse(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def test_the_generated_config_loads_and_has_only_defaults(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "config.yaml"
    assert cli.main(["config", "generate", "--destination", str(path)]) == 0
    (instance,) = config.load(path).config.instances
    assert instance == Instance(
        name="default",
        data_path="/var/lib/victoria-logs",
        staging_path="/var/lib/vl-borg-hooks/default",
        url="http://127.0.0.1:9428",
        service={"systemd": "victorialogs.service"},
    )


def test_every_option_is_documented_with_its_default() -> None:
    text = generate.commented_config()
    for model, location in MODELS.items():
        for name, field in model.model_fields.items():
            lines = re.findall(rf"^[ #-]*\b{name}:(.*)$", text, re.MULTILINE)
            assert lines, f"{location} {name}"
            if isinstance(field.default, bool | int | float):
                assert any(parse(line) == field.default for line in lines if line), name
    for options in (CommandOptions, SystemdOptions):
        for name in options.model_fields:
            assert re.search(rf"^[ #]*\b{name}:", text, re.MULTILINE), name


def test_what_is_commented_out_is_right_too(tmp_path: Path) -> None:
    # All at once, with one service manager at a time: the names and the nesting have to be right.
    text = uncommented(generate.commented_config())
    command = text[text.index("command:") :].split("# Seconds that V")[0]
    for line in text.splitlines():
        assert not re.match(r"^ *# +[a-z_]+: ", line), line
    for name in CommandOptions.model_fields:
        assert f"{name}:" in command
    commented = generate.commented_config()
    # Those of the service managers stand in for each other; the rest can all be taken in.
    head, _, tail = commented.partition("          # systemd:\n")
    tail = tail[tail.index("      # Seconds that VictoriaLogs may take") :]
    path = tmp_path / "config.yaml"
    # Some options are for some urls only.
    head = head.replace(" url: http:", " url: https:")
    path.write_text(uncommented(head) + "\n" + uncommented(tail) + "\n")
    path.chmod(0o600)
    loaded = config.load(path).config
    assert loaded.instances[0].model_fields_set == set(Instance.model_fields)
    assert loaded.instances[0].restore.model_fields_set == set(RestoreOptions.model_fields)
    assert loaded.model_fields_set == set(Config.model_fields)
    assert loaded.instances[0].stop_timeout == Instance.model_fields["stop_timeout"].default


def loaded_with(directory: Path, *instances: str, staging: str = "/srv/staging") -> LoadedConfig:
    """Return a config in `directory` with `instances`."""
    directory.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)
    entries = [
        {
            "name": name,
            "data_path": f"/srv/data/{name}",
            "staging_path": f"{staging}/{name}",
            "service": {"systemd": "x.service"},
        }
        for name in instances
    ]
    return config.load(write_config(directory / "config.yaml", entries))


def test_the_include_has_both_hooks_and_the_staging_copies(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path, "one", "two")
    include = parse(generate.borgmatic_include(loaded, loaded.config.instances))
    assert include["source_directories"] == ["/srv/staging/one", "/srv/staging/two"]
    before, after = include["commands"]
    assert before["before"] == after["after"] == "configuration"
    assert before["when"] == after["when"] == ["create"]
    assert set(include) <= {"source_directories", "commands", "files_changed"}
    # borgmatic says there which of its config files it goes by.
    asks = ["before-create", "--borgmatic-config", "{configuration_filename}"]
    for hook, words in ((before, asks), (after, ["after-create"])):
        (command,) = hook["run"]
        executable, *rest = shlex.split(command)
        # A timer's PATH is short, and so is what a relative config is relative to.
        assert os.path.isabs(executable)
        assert os.access(executable, os.X_OK)
        assert rest == ["--config", str(tmp_path / "config.yaml"), *words]


@pytest.mark.parametrize(
    ("borgmatic", "borg", "quiet"),
    [
        ("2.1.3", "borg 1.4.2", "\nfiles_changed: mtime\n"),
        ("2.1.10", "borg 2.0.0b20", "\nfiles_changed: mtime\n"),
        ("2.1.2", "borg 1.4.2", "\n# files_changed: mtime\n"),
        ("2.1.10", "borg 1.4.1", "\n# files_changed: mtime\n"),
        ("2.1.10", "", "\n# files_changed: mtime\n"),
    ],
)
def test_the_include_keeps_borg_quiet_about_hard_links_if_both_programs_know_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, borgmatic: str, borg: str, quiet: str
) -> None:
    for name, version in (("borgmatic", borgmatic), ("borg", borg)):
        (tmp_path / name).write_text(f"#!/bin/sh\necho {version}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    loaded = loaded_with(tmp_path / "etc", "one")
    text = generate.borgmatic_include(loaded, loaded.config.instances)
    assert quiet in text
    assert parse(text).get("files_changed") == (None if "#" in quiet else "mtime")


def test_the_include_says_nothing_of_hard_links_between_two_filesystems(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path, "one", staging="/dev/shm")
    text = generate.borgmatic_include(loaded, loaded.config.instances)
    assert "files_changed" not in text


def test_the_include_names_the_file_that_it_was_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loaded_with(tmp_path, "one")
    monkeypatch.chdir(tmp_path)
    command = ["config", "generate", "--borgmatic", "--config", str(loaded.path), "--destination"]
    for written in ("etc/ours.yaml", str(tmp_path / "theirs.yaml")):
        assert cli.main([*command, written]) == 0
        text = (tmp_path / written).read_text()
        assert re.findall("!include (.*)", text) == [str(tmp_path / written)]


def test_the_include_for_some_instances_names_them(tmp_path: Path) -> None:
    loaded = loaded_with(tmp_path, "one", "two", "three")
    include = parse(generate.borgmatic_include(loaded, loaded.instances(["one", "three"])))
    assert include["source_directories"] == ["/srv/staging/one", "/srv/staging/three"]
    words = shlex.split(include["commands"][0]["run"][0])
    assert words[-7:-2] == ["--instance", "one", "--instance", "three", "before-create"]


def test_the_path_of_the_config_is_absolute_whatever_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded_with(tmp_path, "one")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["--config", "config.yaml", "config", "generate", "--borgmatic"]) == 0
    include = parse(capsys.readouterr().out)
    assert str(tmp_path / "config.yaml") in include["commands"][0]["run"][0]


NAMES = [
    "plain",
    "with space",
    "it's",
    'say "x"',
    "{repository}",
    "{log_file}{error}",
    "{{x}}",
    "$HOME $(id) `id`",
    "a: b #c",
    "back\\slash",
    "*?[x]",
    "ünïcode",
    "- x",
    "~",
    "trailing ",
]


BORGMATIC_CONFIG = "/etc/borgmatic.d/it's one.yaml"


def arrives_as(command: str, directory: Path) -> list[str]:
    """Return the arguments that `command` gives its program, run as borgmatic runs a hook."""
    show = directory / "show"
    show.write_text(f"#!{sys.executable}\nimport json, sys; print(json.dumps(sys.argv[1:]))\n")
    show.chmod(0o755)
    executable = shlex.split(command)[0]
    context = {"repository": "WRONG", "log_file": "WRONG", "error": "WRONG", "x": "WRONG"}
    context["configuration_filename"] = BORGMATIC_CONFIG
    interpolated: str = interpolate_context("command", command, context)
    assert interpolated.startswith(executable)
    shown = shlex.quote(str(show)) + interpolated.removeprefix(executable)
    printed = subprocess.run(shown, shell=True, capture_output=True, check=True, text=True)
    arguments: list[str] = json.loads(printed.stdout)
    return arguments


@pytest.mark.parametrize("name", NAMES)
def test_a_path_of_any_kind_survives_yaml_borgmatic_and_the_shell(
    tmp_path: Path, name: str
) -> None:
    loaded = loaded_with(tmp_path / name, "one", staging=f"/srv/{name}")
    include = parse(generate.borgmatic_include(loaded, loaded.config.instances))
    assert include["source_directories"] == [f"/srv/{name}/one"]
    (command,) = include["commands"][0]["run"]
    assert arrives_as(command, tmp_path) == [
        "--config",
        str(tmp_path / name / "config.yaml"),
        *("before-create", "--borgmatic-config", BORGMATIC_CONFIG),
    ]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generate")


@settings(max_examples=EXAMPLES, deadline=None)
@given(name=st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=12))
def test_any_staging_path_that_is_accepted_is_what_borg_archives(
    directory: Path, name: str
) -> None:
    try:
        loaded = loaded_with(directory, "one", staging=f"/srv/{name}")
    except OperatorError:
        return
    include = parse(generate.borgmatic_include(loaded, loaded.config.instances))
    assert include["source_directories"] == [loaded.config.instances[0].staging_path]


def test_a_file_is_written_for_us_only_and_never_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "config.yaml"
    with umask(0):
        generate.write_new(path, "text")
    assert path.read_text() == "text"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(OperatorError, match=f"{path} exists"):
        generate.write_new(path, "other")
    assert path.read_text() == "text"
    assert cli.main(["config", "generate", "--destination", str(path)]) == 1
    assert capsys.readouterr().out == ""


def test_a_dangling_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("outside")
    with pytest.raises(OperatorError):
        generate.write_new(tmp_path / "link", "text")
    assert not (tmp_path / "outside").exists()


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OperatorError, match=f"could not write {tmp_path}/file/config.yaml"):
        generate.write_new(tmp_path / "file" / "config.yaml", "text")


def test_the_staging_paths_are_made_for_a_borgmatic_that_wants_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    staging = tmp_path / "lib"
    loaded_with(tmp_path, "one", "two", staging=str(staging))
    (staging / "two").mkdir(parents=True, mode=0o755)
    arguments = ["--config", str(tmp_path / "config.yaml"), "config", "generate", "--borgmatic"]
    assert cli.main(arguments) == 0
    assert not (staging / "one").exists(), "it was only printed"
    capsys.readouterr()
    include = tmp_path / "borgmatic.yaml"
    assert cli.main([*arguments, "--destination", str(include)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"wrote {include}",
        f"made {staging}/one, for the staging copy of one",
    ]
    assert stat.S_IMODE((staging / "one").stat().st_mode) == 0o700
    assert stat.S_IMODE((staging / "two").stat().st_mode) == 0o755, "it is not ours to change"


def test_a_staging_path_in_a_directory_of_another_user_is_left_to_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = loaded_with(tmp_path, "one", staging=str(tmp_path / "lib"))
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    (said,) = generate.make_staging_paths(loaded.config.instances)
    assert said == f"{tmp_path}/lib/one is not there yet: the first backup makes it"
    assert not (tmp_path / "lib").exists()
