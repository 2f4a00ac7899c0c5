"""A borgmatic that would not archive a staging copy is told so, before VictoriaLogs is stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.faults.harness import starts
from tests.parts.site import Site
from tests.parts.victoria_logs import SteadyIngestion

USUAL = ("source_directories", "repositories", "unknown_unencrypted_repo_access_is_ok", "commands")
ROW = {"host": "a", "_msg": "one", "_time": "2026-01-02T00:00:00Z"}


@pytest.fixture
def ready(site: Site) -> Site:
    site.install()
    site.server.ingest([ROW])
    site.write_borgmatic_config()
    for repository in site.repositories:
        site.run("borg", "init", "--encryption", "none", str(repository))
    return site


def at(site: Site, value: Any) -> Any:
    """`value` with the site's places in it."""
    if isinstance(value, str):
        return value.replace("<staging>", str(site.staging.path)).replace("<root>", str(site.root))
    if isinstance(value, dict):
        return {name: at(site, item) for name, item in value.items()}
    return [at(site, item) for item in value] if isinstance(value, list) else value


def rewrite(site: Site, **options: Any) -> None:
    """Give the borgmatic config other options, with the same include."""
    include, _, own = site.borgmatic_config.read_text().partition("\n")
    usual = {name: value for name, value in YAML(typ="safe").load(own).items() if name in USUAL}
    site.write_yaml(site.borgmatic_config, {**usual, **at(site, options)})
    site.borgmatic_config.write_text(f"{include}\n{site.borgmatic_config.read_text()}")


def validate(site: Site) -> tuple[int, str]:
    done = site.hooks(
        "config", "validate", "--borgmatic-config", str(site.borgmatic_config), check=False
    )
    return done.returncode, done.stdout


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "*.bin": ({"exclude_patterns": ["*.bin"]}, "because of exclude_patterns: *.bin"),
    "sh": ({"exclude_patterns": ["sh:**/data"]}, "because of exclude_patterns: sh:**/data"),
    "all": ({"patterns": ["- **"]}, "because of patterns: - **"),
    "re": ({"exclude_patterns": ["re:parts.json"]}, "because of exclude_patterns: re:parts.json"),
    "fm": ({"exclude_patterns": ["fm:<staging>/*"]}, "because of exclude_patterns: fm:"),
    "pp": ({"patterns": ["! pp:<root>/staging"]}, "because of patterns: ! pp:"),
    "file": ({"exclude_from": ["<root>/excludes"]}, "/excludes: *.json"),
    "mark": ({"exclude_if_present": [".nobackup"]}, "because of <staging>/.nobackup"),
    "own sources": (
        {
            "repositories": [
                {"path": "<root>/first.borg", "source_directories": ["<root>/own-documents"]},
                {"path": "<root>/second.borg", "exclude_patterns": ["*.json"]},
            ]
        },
        "source_directories of its own",
    ),
}


# Each of them takes a borgmatic three times.
@pytest.mark.timeout(900)
def test_what_would_not_be_archived_is_said_before_the_stop(ready: Site) -> None:
    (ready.root / "excludes").write_text("*.pyc\n*.json\n")
    ready.borgmatic("create")
    (ready.staging.path / ".nobackup").touch()
    before = starts(ready)
    with SteadyIngestion(ready.server) as ingestion:
        for name, (options, text) in BAD.items():
            rewrite(ready, **options)
            said = at(ready, text)
            status, printed = validate(ready)
            assert (status, said in printed) == (1, True), f"{name}: {printed}"
            ingestion.wait_for(5)
            failed = ready.borgmatic("create", check=False)
            ingestion.wait_for(5)
            output = failed.stdout + failed.stderr
            assert (failed.returncode, said in output) == (1, True), f"{name}: {output}"
            assert "VictoriaLogs is running" in output
            assert "Traceback" not in output
            assert starts(ready) == before, f"{name}: was stopped for nothing"
            assert ready.is_published, f"{name}: the copy is not as it was"
    assert not ingestion.refused
    assert all(len(ready.archives(repository)) == 1 for repository in ready.repositories)


def test_an_include_that_is_overruled_is_found(ready: Site) -> None:
    text = ready.borgmatic_config.read_text()
    assert "\nsource_directories:\n" in text
    ready.borgmatic_config.write_text(
        text.replace("\nsource_directories:\n", "\nsource_directories: !retain\n")
    )
    before = starts(ready)
    status, printed = validate(ready)
    assert (status, "in none of its source_directories" in printed) == (1, True)
    failed = ready.borgmatic("create", check=False)
    assert failed.returncode == 1
    assert "in none of its source_directories" in failed.stdout + failed.stderr
    assert starts(ready) == before
    assert not ready.is_published


def test_excludes_that_are_not_about_us_are_no_reason_to_fail(ready: Site) -> None:
    rewrite(
        ready,
        exclude_patterns=["*.pyc", "/home/*/.cache", "sh:**/node_modules", "re:\\.bak$"],
        exclude_if_present=[".nobackup"],
        exclude_caches=True,
        one_file_system=True,
    )
    status, printed = validate(ready)
    assert (status, "ok: default" in printed, "warning" in printed) == (0, True, False)
    ready.borgmatic("create")
    assert starts(ready) == 2
    assert all(ready.archives(repository) for repository in ready.repositories)


def test_a_repository_for_other_things_is_a_warning(ready: Site) -> None:
    second = {"path": str(ready.repositories[1]), "source_directories": ["/etc/hostname"]}
    rewrite(ready, repositories=[{"path": str(ready.repositories[0])}, second])
    status, printed = validate(ready)
    assert status == 0
    assert f"warning: {ready.repositories[1]} in" in printed
    created = ready.borgmatic("create")
    said = created.stdout + created.stderr
    assert f"warning: vl-borg-hooks: default: {ready.repositories[1]} in" in said
    assert len(ready.archives(ready.repositories[0])) == 1


@pytest.mark.parametrize("how", ["skip_actions", "--repository", "--override"])
def test_victorialogs_is_not_stopped_if_nothing_is_archived(ready: Site, how: str) -> None:
    ready.borgmatic("create")
    manifest = ready.staging.manifest_path.read_text()
    before = starts(ready)
    arguments = ["create"]
    if how == "skip_actions":
        rewrite(ready, skip_actions=["create"])
    elif how == "--override":
        arguments = ["--override", "skip_actions=[create]", "create"]
    else:
        other = ready.root / "other.yaml"
        ready.write_yaml(
            other,
            {
                "source_directories": [str(ready.root / "own-documents")],
                "repositories": [{"path": str(ready.root / "third.borg"), "label": "third"}],
                "unknown_unencrypted_repo_access_is_ok": True,
            },
        )
        ready.run("borg", "init", "--encryption", "none", str(ready.root / "third.borg"))
        arguments = ["--config", str(other), "create", "--repository", "third"]
    done = ready.borgmatic("--verbosity", "1", *arguments)
    assert "makes no archive" in done.stdout + done.stderr
    assert starts(ready) == before, "was stopped for nothing"
    assert ready.staging.manifest_path.read_text() == manifest
    assert len(ready.archives(ready.repositories[0])) == 1


def test_a_repository_of_the_config_is_a_reason_to_stop(ready: Site) -> None:
    ready.borgmatic("create", "--repository", str(ready.repositories[1]))
    assert starts(ready) == 2
    assert ready.archives(ready.repositories[1])
    assert not ready.archives(ready.repositories[0])


@pytest.mark.parametrize("what", ["borgmatic", "borg"])
def test_a_look_that_cannot_be_taken_is_a_warning_only(
    ready: Site, what: str, tmp_path: Path
) -> None:
    if what == "borg":
        # It is told to `borg create` only if that is a dry run: then it fails.
        program = tmp_path / "borg"
        program.write_text(
            '#!/bin/sh\ncase " $* " in *" --log-json --patterns-from="*) exit 2;; esac\n'
            'exec borg "$@"\n'
        )
        program.chmod(0o755)
        rewrite(ready, local_path=str(program))
    else:
        text = (ready.root / "etc" / "borgmatic.yaml").read_text()
        include = text.replace("{configuration_filename}", "/no/such/file")
        (ready.root / "etc" / "borgmatic.yaml").write_text(include)
    created = ready.borgmatic("create")
    said = created.stdout + created.stderr
    assert "warning: vl-borg-hooks: what is archived was not looked at" in said
    assert all(ready.archives(repository) for repository in ready.repositories)


def test_before_the_include_is_there_it_is_said_what_is_left_to_do(site: Site) -> None:
    site.install()
    done = site.hooks("config", "validate")
    assert "no borgmatic config backs up default yet" in done.stdout
    usual = site.root / "home" / ".config" / "borgmatic.d"
    usual.mkdir(parents=True)
    site.write_borgmatic_config()
    (usual / "ours.yaml").write_text(site.borgmatic_config.read_text())
    (usual / "theirs.yaml").write_text(
        f"source_directories: [/etc]\nrepositories: [path: {site.root}/third.borg]\n"
    )
    done = site.hooks("config", "validate")
    assert "yet" not in done.stdout
    site.write_borgmatic_config(exclude_patterns=["*.bin"])
    (usual / "ours.yaml").write_text(site.borgmatic_config.read_text())
    done = site.hooks("config", "validate", check=False)
    assert done.returncode == 1
    assert f"in {usual}/ours.yaml would not get" in done.stdout


def test_a_dry_run_of_borgmatic_before_the_first_backup(site: Site) -> None:
    site.install()
    site.write_borgmatic_config()
    assert site.staging.path.stat().st_mode & 0o777 == 0o700
    for repository in site.repositories:
        site.run("borg", "init", "--encryption", "none", str(repository))
    before = starts(site)
    site.borgmatic("--dry-run", "create")
    assert starts(site) == before
