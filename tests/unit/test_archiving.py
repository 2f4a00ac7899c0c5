"""What borgmatic is asked, what it says, and what that tells Borg; without a borgmatic or a Borg."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from vl_borg_hooks.archiving import configuration, rules
from vl_borg_hooks.archiving.configuration import Configuration, Unknown
from vl_borg_hooks.archiving.sample import Sample

HOOK = "/usr/bin/vl-borg-hooks --config /etc/vl/config.yaml before-create"


def config(**options: Any) -> Configuration:
    return Configuration(Path("/etc/borgmatic/config.yaml"), options)


TWO = {
    "repositories": [
        {"path": "/srv/first.borg", "label": "first"},
        {"path": "ssh://host/./second.borg"},
    ]
}


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ([], ["first", "ssh://host/./second.borg"]),
        (["create", "--repository", "first"], ["first"]),
        (["create", "--repository=/srv/first.borg"], ["first"]),
        (["create", "--repository", "file:///srv/first.borg"], ["first"]),
        (["create", "--repository", "ssh://*"], ["ssh://host/./second.borg"]),
        (["create", "--repo", "f*"], ["first"]),
        (["create", "--repository", "third"], []),
    ],
)
def test_the_repositories_are_those_that_borgmatic_takes(
    arguments: list[str], names: list[str]
) -> None:
    assert [found.name for found in config(**TWO).archived_to(arguments)] == names


def test_a_skipped_create_archives_nothing() -> None:
    assert config(**TWO, skip_actions=["check", "create"]).archived_to([]) == []
    assert config(**TWO, skip_actions=["check"]).archived_to([])


def test_options_of_a_repository_replace_those_of_the_file() -> None:
    first, second = config(
        source_directories=["/etc"],
        repositories=["/srv/a", {"path": "/srv/b", "source_directories": ["/home"]}],
    ).repositories
    assert first.options["source_directories"] == ["/etc"]
    assert second.options["source_directories"] == ["/home"]
    assert (first.has_own_sources, second.has_own_sources) == (False, True)


def test_what_changes_what_is_archived_is_passed_on_and_nothing_else() -> None:
    arguments = [
        *("--config", "/etc/b.yaml", "create", "--override", "exclude_patterns=[a]", "-v", "1"),
        *("--exclude-patterns=[b]", "--source-directories[0]", "/srv", "--stats", "--list"),
        *("--one-file-system", "--repository", "first", "--comment", "x", "--patterns", "['- **']"),
    ]
    assert list(configuration._passed(arguments)) == [
        *("--override", "exclude_patterns=[a]", "--exclude-patterns=[b]"),
        *("--source-directories[0]", "/srv", "--one-file-system", "--patterns", "['- **']"),
    ]


def test_one_override_of_an_old_borgmatic_can_have_several_values() -> None:
    arguments = ["--override", "location.patterns=[a]", "hooks.x=y", "create", "--list"]
    assert list(configuration._passed(arguments)) == [
        *("--override", "location.patterns=[a]", "--override", "hooks.x=y"),
    ]


SHOWN = "source_directories:\n    - /etc\nrepositories:\n    - path: /srv/a\n"


@pytest.mark.parametrize(
    "text",
    [
        f"{SHOWN}\n\nsummary:\nAll configuration files are valid\n",
        f"{SHOWN}\nAll configuration files are valid\n",
        json.dumps({"type": "log_message", "message": SHOWN, "levelname": "ANSWER"})
        + '\n{"message": "All configuration files are valid", "levelname": "ANSWER"}\n',
    ],
)
def test_what_borgmatic_shows_is_understood(text: str) -> None:
    assert configuration._parsed(text) == {
        "source_directories": ["/etc"],
        "repositories": [{"path": "/srv/a"}],
    }


def borgmatic(directory: Path, text: str) -> tuple[str, ...]:
    program = directory / "borgmatic"
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return (str(program),)


@pytest.mark.parametrize(
    "text", ["echo password: secret; exit 1", "echo password: secret", "echo '*secret'", "exit 0"]
)
def test_a_borgmatic_that_does_not_say_is_no_failure_and_its_passwords_are_not_told(
    tmp_path: Path, text: str
) -> None:
    shown = configuration.Shown(borgmatic(tmp_path, text), Path("/etc/b.yaml"), [])
    with pytest.raises(Unknown) as raised:
        shown.configuration()
    shown.close()
    assert "/etc/b.yaml" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_borgmatic_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configuration, "SHOW_SECONDS", 0.1)
    shown = configuration.Shown(borgmatic(tmp_path, "exec sleep 60"), Path("/etc/b.yaml"), [])
    with pytest.raises(Unknown, match="takes longer"):
        shown.configuration()
    shown.close()
    assert shown._process.returncode == -9


def test_a_missing_borgmatic_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match="no-borgmatic"):
        configuration.Shown([str(tmp_path / "no-borgmatic")], Path("/etc/b.yaml"), [])


def test_the_instances_that_a_config_backs_up() -> None:
    ours = Path("/etc/vl/config.yaml")
    new = {"before": "configuration", "when": ["create"], "run": [f"{HOOK} --borgmatic-config x"]}
    assert (
        config(commands=[{"before": "repository", "run": ["echo 'it"]}, new]).backs_up(ours)
        == set()
    )
    assert config(before_everything=[HOOK]).backs_up(ours) == set()
    one = HOOK.replace(" before", " --instance one before")
    assert config(before_everything=[one]).backs_up(ours) == {"one"}
    assert config(before_everything=[HOOK]).backs_up(Path("/etc/vl/other.yaml")) is None
    assert config(before_everything=["echo before-create"]).backs_up(ours) is None
    assert config(**TWO).backs_up(ours) is None


def lines(one_list: bool, **options: Any) -> list[str]:
    return [rule.line for rule in rules.of(options, one_list=one_list).rules]


def test_the_patterns_are_in_the_order_that_borgmatic_puts_them(tmp_path: Path) -> None:
    (tmp_path / "patterns").write_text("# none\n\n+ sh:/from\nR /root\n")
    (tmp_path / "excludes").write_text("  *.from  \n")
    options = {
        "source_directories": ["/etc"],
        "patterns": ["P re", "- here", "R /other"],
        "exclude_patterns": ["*.here", "sh:**/x", "~/cache", "a:b"],
        "patterns_from": [str(tmp_path / "patterns")],
        "exclude_from": [str(tmp_path / "excludes")],
    }
    here = ["P re", "- here"]
    excludes = ["! fm:*.here", "! sh:**/x", f"! fm:{os.path.expanduser('~')}/cache", "! fm:a:b"]
    assert lines(True, **options) == [*here, *excludes, "+ sh:/from", "! fm:*.from"]
    assert lines(False, **options) == ["+ sh:/from", "P sh", *here, "! fm:*.from", *excludes]
    told = rules.of(options, one_list=True)
    assert told.roots == ("/etc", "/other", "/root")
    assert [rule.said for rule in told.rules][-1] == f"exclude_from: {tmp_path}/excludes: *.from"


def test_it_is_asked_for_the_version_only_if_the_order_depends_on_it() -> None:
    assert not rules.order_matters({"patterns": ["- a"], "exclude_patterns": ["b"]})
    assert not rules.order_matters({"patterns_from": ["a"], "exclude_from": ["b"]})
    assert rules.order_matters({"patterns_from": ["a"], "exclude_patterns": ["b"]})


def test_all_that_says_what_borg_leaves_out_is_told() -> None:
    told = rules.of(
        {
            "exclude_if_present": [".nobackup"],
            "exclude_caches": True,
            "one_file_system": False,
            "extra_borg_options": {
                "create": "--stats -x --exclude '*.bin' --comment new --pattern='- x'"
            },
            "working_directory": "/srv",
            "local_path": "sudo borg",
        },
        one_list=True,
    )
    assert told.flags == (
        *("--exclude-if-present=.nobackup", "--exclude-caches"),
        *("-x", "--exclude", "*.bin", "--pattern=- x"),
    )
    assert told.one_file_system
    assert told.borg == ("sudo", "borg")
    assert told.directory == "/srv"


def test_a_file_of_patterns_that_cannot_be_read_is_no_failure(tmp_path: Path) -> None:
    with pytest.raises(Unknown, match=r"exclude_from: .*/missing can't be read"):
        rules.of({"exclude_from": [str(tmp_path / "missing")]}, one_list=True)


def test_the_sample_has_the_links_of_the_way_and_the_marks_of_the_machine(tmp_path: Path) -> None:
    machine, tree = tmp_path / "machine", tmp_path / "tree"
    (machine / "big" / "staging" / "data").mkdir(parents=True)
    (machine / "link").symlink_to("big")
    (machine / "absolute").symlink_to(machine / "link" / "staging")
    (machine / "big" / ".nobackup").touch()
    tree.mkdir()
    sample = Sample(tree)
    sample.add(str(machine / "absolute"), None, [".nobackup"])
    inside = Path(f"{tree}{machine}")
    assert (inside / "link").readlink() == Path("big")
    assert (inside / "absolute").resolve() == inside / "big" / "staging"
    assert (inside / "big" / ".nobackup").exists()
    assert sample.marks == [str(machine / "big" / ".nobackup")]
    manifest = str(inside / "big" / "staging" / "manifest.json")
    found = sample.on_this_machine(manifest.removeprefix(str(tree)), "/")
    assert found == str(machine / "absolute" / "manifest.json")


def test_only_roots_that_hold_a_staging_copy_are_asked_about(tmp_path: Path) -> None:
    sample = Sample(tmp_path)
    sample.add("/srv/staging/one", None, [])
    roots = ["/etc", "/srv/st*", "/srv/staging/one/data", "staging", "/", "/srv/./staging"]
    assert sample.roots(roots, "/srv") == {
        "/": ["srv/staging", "srv/staging/one/data", ".", "srv/./staging"],
        "/srv": ["staging"],
    }
    assert sample.roots(["/etc", "no"], "/nowhere") == {}
